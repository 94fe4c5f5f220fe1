"""The command `sft-kit`, called as its console script calls it."""

import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig
from typer.testing import CliRunner

import sft_kit.artifacts
from sft_kit import __version__
from sft_kit.artifacts import LoadOptions, load_named
from sft_kit.cli import app, main
from sft_kit.config import json_schema
from sft_kit.data.templates import choose_template, encode_prompt
from sft_kit.inference.generate import generate
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_causal_lm
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.probe import probe_logits
from sft_kit.settings import ModelSettings, SampleSettings

RECIPE = '''"""A recipe."""

from dataclasses import dataclass

from peft import LoraConfig
from transformers import TrainingArguments

from sft_kit.settings import DataSettings, ModelSettings, SampleSettings

raise RuntimeError("checking a recipe must not run it")


@dataclass
class Settings:
    """Its sections."""

    model: ModelSettings
    adapter: LoraConfig | None
    data: DataSettings
    train: TrainingArguments
    sample: SampleSettings
'''
SETTINGS = """\
model:
  checkpoint: {checkpoint}
adapter:
  r: 8
  lora_alpha: 32
  target_modules: [c_attn, c_proj]
data:
  path: {rows}
  eval_fraction: 0.25
train:
  output_dir: runs/x
  learning_rate: 2e-4
sample:
  prompts: [hello]
"""


@pytest.fixture
def recipe(tmp_path, gpt2_checkpoint):
    """A recipe's YAML with its Python file, checkpoint and rows."""
    rows = tmp_path / "rows.jsonl"
    questions = [f"What is {number} plus one?" for number in range(12)]
    write_rows(rows, [{"prompt": question, "completion": "A number."} for question in questions])
    (tmp_path / "sft_x_lora.py").write_text(RECIPE, encoding="utf-8")
    file = tmp_path / "sft_x_lora.yaml"
    file.write_text(SETTINGS.format(checkpoint=gpt2_checkpoint, rows=rows), encoding="utf-8")
    return file


@pytest.fixture
def run(monkeypatch, gpt2_model, tokenizer):
    """A model with emphatic random weights, which `load_named` finds in the folder `run`."""
    with torch.no_grad():
        for parameter in gpt2_model.parameters():
            parameter.mul_(8.0)
    template = choose_template(tokenizer, "human-assistant")
    info = {"recipe": "sft_x_lora.py"}
    loaded = SimpleNamespace(model=gpt2_model, tokenizer=tokenizer, template=template, info=info)

    def load_named(name, options):
        assert (name, options) == ("run", LoadOptions(base="elsewhere"))
        return loaded

    monkeypatch.setattr(sft_kit.artifacts, "load_named", load_named)
    return loaded


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the console script's function; return exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, arguments)])
        capsys.readouterr()  # what the fixtures printed
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return call


def write_rows(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def answers(run, prompts, system="", **sampling):
    head = [{"role": "system", "content": system}] if system else []
    chats = [[*head, {"role": "user", "content": prompt}] for prompt in prompts]
    settings = SampleSettings(**sampling)
    return generate(run.model, run.tokenizer, run.template, chats, settings)


# --- check ---------------------------------------------------------------------------------------


def test_check_counts_the_settings_that_were_given(call, recipe):
    sections = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    num_settings = sum(len(section) for section in sections.values())
    assert call("check", recipe) == (0, f"{recipe}: ok, {num_settings} settings\n", "")
    code, out, _ = call("check", recipe, "train.max_steps=5", "adapter.r=4")
    assert (code, out) == (0, f"{recipe}: ok, {num_settings + 1} settings\n")


def test_check_reports_all_problems_of_file_and_command_line_at_once(call, recipe):
    text = recipe.read_text(encoding="utf-8").replace("lora_alpha", "lora_alhpa")
    recipe.write_text(text, encoding="utf-8")
    line = text.splitlines().index("  lora_alhpa: 32") + 1
    code, out, err = call("check", recipe, "data.eval_fraction=1.5")
    assert (code, out) == (2, "")
    assert f"{recipe.name}:{line}: adapter.lora_alhpa" in err
    assert "'lora_alpha'" in err
    assert "data.eval_fraction" in err
    assert "Traceback" not in err


def test_check_of_another_yaml_needs_its_recipe_and_reads_the_recipes_own_first(
    call, recipe, tmp_path
):
    other = tmp_path / "other.yaml"
    other.write_text("train:\n  learning_rate: 1e-3\n  max_steps: 7\n", encoding="utf-8")
    code, _, err = call("check", other)
    assert code == 2
    assert "--recipe" in err
    num_settings = int(call("check", recipe)[1].split()[-2])
    code, out, _ = call("check", other, "--recipe", recipe.with_suffix(".py"))
    assert (code, out) == (0, f"{other}: ok, {num_settings + 1} settings\n")


def test_check_of_a_missing_file_is_an_error_without_traceback(call, tmp_path):
    code, out, err = call("check", tmp_path / "absent.yaml")
    assert (code, out) == (2, "")
    assert "absent.yaml" in err
    assert "Traceback" not in err


def test_check_answers_without_importing_torch(recipe):
    script = (
        "import sys, time\n"
        "from sft_kit.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)\n"
        "    print(end.code or 0, sorted(heavy), time.process_time() < 2.0)\n"
    )
    arguments = [sys.executable, "-c", script, "check", str(recipe)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].endswith("settings")
    assert done.stdout.splitlines()[-1] == "0 [] True"


# --- schema --------------------------------------------------------------------------------------


def test_schema_is_written_beside_the_recipe_and_printed_on_request(call, recipe, tmp_path):
    expected = json_schema(recipe.with_suffix(".py"))
    written = tmp_path / "schema" / "sft_x_lora.json"
    for named in (recipe, recipe.with_suffix(".py")):
        assert call("schema", named) == (0, f"{written}\n", "")
        assert json.loads(written.read_text(encoding="utf-8")) == expected
        written.unlink()
    assert "learning_rate" in json.dumps(expected)
    code, out, _ = call("schema", recipe, "--out", "-")
    assert (code, json.loads(out)) == (0, expected)
    elsewhere = tmp_path / "a" / "b"
    assert call("schema", recipe, "--out", elsewhere)[0] == 0
    assert [path.name for path in elsewhere.iterdir()] == ["sft_x_lora.json"]
    assert not written.exists()


def test_schema_without_names_takes_all_recipes_here(call, recipe, tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "recipes").mkdir(parents=True)
    monkeypatch.chdir(project)
    code, _, err = call("schema")
    assert code == 2
    assert "name a RECIPE" in err
    for stem in ("sft_a_lora", "sft_b_lora"):
        (project / "recipes" / f"{stem}.py").write_text(RECIPE, encoding="utf-8")
        (project / "recipes" / f"{stem}.yaml").write_text("", encoding="utf-8")
    (project / "recipes" / "no_recipe.py").write_text("", encoding="utf-8")
    assert call("schema")[0] == 0
    names = sorted(path.name for path in (project / "recipes" / "schema").iterdir())
    assert names == ["sft_a_lora.json", "sft_b_lora.json"]


def test_schema_into_a_place_that_cannot_be_a_folder_is_an_error(call, recipe):
    code, _, err = call("schema", recipe, "--out", recipe / "below-a-file")
    assert code == 2
    assert "can't be written" in err


# --- inspect -------------------------------------------------------------------------------------


class Texts(HTMLParser):
    """Collects the text of a page."""

    def __init__(self):
        super().__init__()
        self.text = ""

    def handle_data(self, data):
        self.text += data


def test_inspect_shows_examples_and_writes_the_page(call, recipe, tmp_path):
    page = tmp_path / "labels.html"
    code, out, err = call("inspect", recipe, "--html", page, "--examples", "2")
    assert (code, err) == (0, "")
    assert "chat template human-assistant, stop token <|endoftext|>" in out
    assert out.count("⟦") >= 2
    assert "A number." in out
    parser = Texts()
    parser.feed(page.read_text(encoding="utf-8"))
    assert "A number." in parser.text


def test_inspect_needs_no_weights(call, recipe, gpt2_checkpoint):
    (gpt2_checkpoint / "model.safetensors").unlink()
    assert call("inspect", recipe)[0] == 0


def test_inspect_follows_overrides(call, recipe):
    code, out, _ = call("inspect", recipe, "data.template=alpaca", "--examples", "1")
    assert code == 0
    assert "### Instruction" in out


def test_inspect_ends_with_1_after_the_report_when_no_stop_token_is_learnt(call, recipe, tokenizer):
    template = choose_template(tokenizer, "human-assistant")
    prompt = [{"role": "user", "content": "What is 11 plus one?"}]
    num_prompt_tokens = len(encode_prompt(tokenizer, template, prompt))
    assert len(tokenizer(" A number.")["input_ids"]) > 2
    code, out, err = call("inspect", recipe, f"data.max_length={num_prompt_tokens + 2}")
    assert code == 1
    assert "chat template" in out
    assert err.startswith("error: ")
    assert "stop token" in err
    assert "Traceback" not in err


def test_inspect_names_bad_rows_and_still_reports_the_others(call, recipe, tmp_path):
    rows = tmp_path / "rows.jsonl"
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "broken", "completion": 5}\n')
    code, out, err = call("inspect", recipe)
    assert code == 1
    assert f"{rows.name}:13" in err
    assert "A number." in out
    code, _, err = call("inspect", recipe, "data.on_bad_row=skip")
    assert (code, err) == (0, "")


def test_inspect_of_data_without_any_good_row_is_an_error(call, recipe, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": None}])
    code, _, err = call("inspect", recipe)
    assert code == 1
    assert "rows.jsonl:1" in err


# --- generate and chat ---------------------------------------------------------------------------


def test_generate_prints_json_that_holds_what_the_library_answers(call, run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff今天天气？\r\n\r\n  a\u2028b \n".encode())
    prompts = ["hello", "今天天气？", "a\u2028b"]
    code, out, err = call(
        "generate", "run", "--base", "elsewhere", "--prompt", "hello", "--prompt-file", file,
        "--json", "--temperature", "0.9", "--top-k", "20", "--top-p", "0.8", "--seed", "3",
        "--max-new-tokens", "9", "--system", "be brief",
    )  # fmt: skip
    expected = answers(
        run, prompts, "be brief", temperature=0.9, top_k=20, top_p=0.8, seed=3, max_new_tokens=9
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {
            "prompt": prompt,
            "reply": reply.text,
            "stopped": reply.stopped,
            "num_tokens": len(reply.ids),
        }
        for prompt, reply in zip(prompts, expected, strict=True)
    ]
    assert expected != answers(run, prompts, "be brief", max_new_tokens=9)


def test_generate_prints_one_reply_bare_and_several_under_their_prompts(call, run):
    one, two = answers(run, ["hello", "water"], max_new_tokens=5)
    common = ("generate", "run", "--base", "elsewhere", "--max-new-tokens", "5")
    assert call(*common, "--prompt", "hello")[1] == f"{one.text}\n"
    both = call(*common, "--prompt", "hello", "--prompt", "water")[1]
    assert both == f"> hello\n{one.text}\n\n> water\n{two.text}\n\n"


def test_chat_answers_a_pipe_line_by_line(call, run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/reset\nwater\n"))
    code, out, err = call(
        "chat", "run", "--base", "elsewhere", "--system", "be brief", "--max-new-tokens", "6"
    )
    replies = answers(run, ["hello", "water"], "be brief", max_new_tokens=6)
    assert (code, err) == (0, "")
    assert out == "".join(f"{reply.text}\n" for reply in replies)


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_sampling_options_out_of_range_are_all_reported(call, run, command):
    prompt = ["--prompt", "x"] if command == "generate" else []
    options = ["--top-p", "0", "--temperature", "nan", "--seed", "-1"]
    code, out, err = call(command, "run", *prompt, *options)
    assert (code, out) == (2, "")
    for name in ("top_p", "temperature", "seed"):
        assert f"command line: {name}: found" in err


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_folder_that_is_no_run_is_explained(call, tmp_path, command):
    prompt = ["--prompt", "x"] if command == "generate" else []
    code, out, err = call(command, tmp_path, *prompt)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "run.yaml" in err


def test_generate_without_a_prompt_or_with_an_unreadable_one_is_an_error(call, run, tmp_path):
    code, _, err = call("generate", "run")
    assert code == 2
    assert "--prompt TEXT or --prompt-file FILE" in err
    assert call("generate", "run", "--prompt-file", tmp_path / "absent")[0] == 2
    damaged = tmp_path / "damaged.txt"
    damaged.write_bytes("汉字".encode("gbk"))
    code, _, err = call("generate", "run", "--prompt-file", damaged)
    assert code == 2
    assert "damaged.txt is not UTF-8 text: found byte 0xba at offset 0" in err
    code, _, err = call("generate", "run", "--prompt", "half \udcff")
    assert code == 2
    assert "not UTF-8" in err


# --- a model that no run has written, and merging ------------------------------------------------


def test_generate_with_a_checkpoint_hands_over_its_options(call, gpt2_checkpoint, monkeypatch):
    asked = []
    real = sft_kit.artifacts.load_named

    def load_named(name, options):
        asked.append(options)
        return real(name, LoadOptions())

    monkeypatch.setattr(sft_kit.artifacts, "load_named", load_named)
    code, out, err = call(
        "generate", gpt2_checkpoint, "--prompt", "hello", "--max-new-tokens", "3",
        "--adapter", "a", "--quantization", "int8", "--dtype", "bfloat16", "--fast-int4",
        "--config", "rope_mode=linear", "--config", "rope_ratio = 4", "--config", "family='2e1'",
        "--config", "pad=",
    )  # fmt: skip
    config = {"rope_mode": "linear", "rope_ratio": 4, "family": "2e1", "pad": None}
    options = LoadOptions(None, Path("a"), "int8", "bfloat16", fast_int4=True, config=config)
    assert asked == [options]
    assert type(asked[0].config["rope_ratio"]) is int
    assert (code, out != "") == (0, True)
    note = f"note: {gpt2_checkpoint} has no chat template; prompts are written as human-assistant"
    assert err == f"{note}\n"


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_options_that_do_not_fit_end_in_one_message(call, gpt2_checkpoint, command):
    prompt = ["--prompt", "x"] if command == "generate" else []
    code, out, err = call(command, gpt2_checkpoint, *prompt, "--base", "elsewhere")
    assert (code, out) == (2, "")
    assert "command line: --base: is the base of a run folder, and this is a checkpoint" in err


def test_generate_refuses_a_quantization_it_does_not_know(call, gpt2_checkpoint):
    code, _, err = call("generate", gpt2_checkpoint, "--prompt", "x", "--quantization", "int3")
    assert code == 2
    assert "int3" in err
    assert "nf4" in err


def test_a_chatglm_checkpoint_answers_from_its_original_folder(call, chatglm_fixtures):
    folder = chatglm_fixtures / "chatglm2_tiny_int4"
    command = ["generate", folder, "--prompt", "你好", "--max-new-tokens", "4", "--json"]
    code, out, err = call(*command)
    assert (code, err) == (0, "")
    (reply,) = answers(load_named(str(folder), LoadOptions()), ["你好"], max_new_tokens=4)
    assert len(reply.ids) == 4
    assert json.loads(out) == [
        {"prompt": "你好", "reply": reply.text, "stopped": reply.stopped, "num_tokens": 4}
    ]


def test_fast_int4_answers_with_the_kernel(call, chatglm_fixtures, monkeypatch):
    folder = chatglm_fixtures / "chatglm2_tiny_int4"
    loaded = []

    def load_and_keep(name, options):
        loaded.append(load_named(name, options))
        return loaded[-1]

    monkeypatch.setattr(sft_kit.artifacts, "load_named", load_and_keep)
    code, out, err = call(
        "generate", folder, "--prompt", "你好", "--max-new-tokens", "4", "--json", "--fast-int4"
    )
    assert (code, err) == (0, "")
    layers = [m for m in loaded[0].model.modules() if isinstance(m, RowwiseQuantLinear)]
    assert len(layers) == 12
    assert all(layer.no_grad_product is not None for layer in layers)
    fast = load_named(str(folder), LoadOptions(fast_int4=True))
    (reply,) = answers(fast, ["你好"], max_new_tokens=4)
    assert [json.loads(out)[0][key] for key in ("reply", "num_tokens")] == [reply.text, 4]


@pytest.fixture
def nameless_chatglm(tmp_path, chatglm_fixtures):
    """A ChatGLM2 checkpoint with a stretched context; nothing tells its family."""
    folder = tmp_path / "model"
    shutil.copytree(chatglm_fixtures / "chatglm2_tiny_fp16", folder)
    config = json.loads((folder / "config.json").read_text())
    del config["_name_or_path"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_ratio": 4}))
    return folder


def test_a_checkpoint_that_does_not_tell_its_family_answers_once_it_is_said(call, nameless_chatglm):
    command = ["generate", nameless_chatglm, "--prompt", "你好", "--max-new-tokens", "8", "--json"]
    code, _, err = call(*command)
    assert code == 2
    assert "rope_ratio: found 4, and nothing tells whether this is ChatGLM2 or ChatGLM3" in err
    code, out, err = call(*command, "--config", "rope_mode=linear")
    assert (code, err) == (0, "")
    expected = load_named(str(nameless_chatglm), LoadOptions(config={"rope_mode": "linear"}))
    (reply,) = answers(expected, ["你好"], max_new_tokens=8)
    assert json.loads(out)[0]["reply"] == reply.text


def test_a_checkpoint_that_does_not_tell_its_family_is_merged_once_it_is_said(
    call, nameless_chatglm, tmp_path
):
    assert call("merge", nameless_chatglm, "--output", tmp_path / "none")[0] == 2
    found = {}
    for mode in ("linear", "theta"):
        output = tmp_path / mode
        command = ["merge", nameless_chatglm, "--output", output, "--config", f"rope_mode={mode}"]
        assert call(*command)[0] == 0
        rope = json.loads((output / "config.json").read_text())["rope_parameters"]
        assert rope["rope_theta"] == {"linear": 10000, "theta": 40000}[mode]
        assert rope.get("factor") == {"linear": 4, "theta": None}[mode]
        found[mode] = probe_logits(load_causal_lm(ModelSettings(str(output))))
    assert (found["linear"] - found["theta"]).abs().max() > 0.01


@pytest.mark.parametrize("command", ["chat", "generate", "merge"])
def test_fields_that_can_not_be_read_are_all_reported(call, gpt2_checkpoint, command, tmp_path):
    needed = {"generate": ["--prompt", "x"], "merge": ["--output", tmp_path / "x"]}
    words = ["a", "=1", "b=[1, 2]", "c={", "d=.inf", "e=1", "e=2"]
    options = [part for word in words for part in ("--config", word)]
    code, out, err = call(command, gpt2_checkpoint, *needed.get(command, []), *options)
    assert (code, out) == (2, "")
    for line in (
        "--config a: accepts KEY=VALUE",
        "--config =1: accepts KEY=VALUE",
        "--config b=[1, 2]: accepts a number, text, true, false or null",
        "--config c={: found broken YAML",
        "--config d=.inf: accepts finite numbers",
        "--config e=2: found a second time (keep one of them)",
    ):
        assert f"  command line: {line}" in err
    assert "--config e=1" not in err


def test_merge_prints_what_it_measured_and_writes_a_model_to_chat_with(
    call, gpt2_checkpoint, tmp_path
):
    adapter = tmp_path / "adapter"
    base = load_causal_lm(ModelSettings(str(gpt2_checkpoint)))
    attach_lora(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])).save_pretrained(
        adapter, save_embedding_layers=False
    )
    output = tmp_path / "merged"
    code, out, err = call(
        "merge", gpt2_checkpoint, "--adapter", adapter, "--output", output, "--dtype", "bfloat16"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 5
    assert "by merging" in lines[1]
    assert "by storing bfloat16" in lines[2]
    assert lines[-1] == f"merged model: {output}"
    code, _, err = call("merge", gpt2_checkpoint, "--adapter", adapter, "--output", output)
    assert code == 2
    assert "--overwrite" in err
    code, out, err = call("generate", output, "--prompt", "hello", "--max-new-tokens", "3")
    assert (code, err) == (0, "")


def test_merge_needs_a_folder_to_write(call, gpt2_checkpoint):
    code, _, err = call("merge", gpt2_checkpoint)
    assert code == 2
    assert "--output" in err


# --- the program ---------------------------------------------------------------------------------


def test_version_is_the_packages(call):
    assert call("--version") == (0, f"sft-kit {__version__}\n", "")


def test_without_arguments_the_commands_are_listed():
    output = CliRunner().invoke(app, []).output
    for command in ("check", "schema", "inspect", "chat", "generate", "merge"):
        assert f" {command} " in output


@pytest.mark.parametrize("command", ["check", "schema", "inspect", "chat", "generate", "merge"])
def test_every_command_explains_all_its_options(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    "arguments", [["explode"], ["check"], ["chat"], ["check", "x.yaml", "--lr=1"]]
)
def test_a_wrong_command_line_ends_with_2_and_no_traceback(call, arguments):
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in err
    assert err


def test_ctrl_c_ends_the_program_with_130(call, run, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sft_kit.artifacts, "load_named", interrupt)
    code, _, err = call("chat", "run")
    assert code == 130
    assert "Traceback" not in err


def test_output_that_the_terminal_cannot_show_is_escaped_not_fatal(call, run, monkeypatch):
    class Narrow(io.TextIOWrapper):
        def kept(self):
            self.flush()
            return self.buffer.getvalue()

    narrow = Narrow(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", narrow)
    code, _, _ = call(
        "generate", "run", "--base", "elsewhere", "--prompt", "水", "--prompt", "a",
        "--max-new-tokens", "1",
    )  # fmt: skip
    assert code == 0
    assert narrow.kept().startswith(b"> \\u6c34\n")
