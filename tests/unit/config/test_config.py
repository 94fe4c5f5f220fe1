"""What a YAML and a command line become, and how every mistake in them is reported."""

import json
import re
import struct
import sys
import time

import pytest
import yaml as pyyaml

from sft_kit import devices
from sft_kit.command import run_recipe
from sft_kit.config import find_recipe, load_config, read_config
from sft_kit.config.checkpoint_header import module_names
from sft_kit.config.yaml_text import read_yaml, scalar
from sft_kit.errors import ConfigError, Problem
from sft_kit.settings import DataSettings, SampleSettings

RECIPE = """\
from dataclasses import dataclass, field
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from sft_kit.settings import DataSettings, ModelSettings, SampleSettings

@dataclass
class Settings:
    model: ModelSettings
    adapter: LoraConfig | None
    data: DataSettings
    train: TrainingArguments
    sample: SampleSettings = field(default_factory=SampleSettings)
"""
YAML = """\
model:
  checkpoint: owner/gpt2
adapter:
  task_type: CAUSAL_LM
  r: 8
  target_modules: [c_attn, c_proj]
data:
  path: owner/instructions
  max_length: 128
train:
  learning_rate: 2e-4
  max_steps: 100
  eval_strategy: "no"
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sft_gpt2_lora.py"
    path.write_text(RECIPE, encoding="utf-8")
    path.with_suffix(".yaml").write_text(YAML, encoding="utf-8")
    return path


def _read(recipe, *overrides, text=None):
    path = recipe.with_suffix(".yaml")
    if text is not None:
        path.write_text(text, encoding="utf-8")
    return read_config(recipe, [path], overrides)


def _problems(recipe, *overrides, text=None):
    with pytest.raises(ConfigError) as caught:
        _read(recipe, *overrides, text=text)
    return [str(problem) for problem in caught.value.problems]


# --- YAML 1.2 ------------------------------------------------------------------------------------

# From chapter 10.3.2 of the YAML 1.2.2 specification ("Core Schema", tag resolution).
CORE_SCHEMA = {
    "null": None, "Null": None, "NULL": None, "~": None, "": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    "0": 0, "-19": -19, "+12": 12, "0123": 123, "0o17": 15, "0x1F": 31, "0xDEAD": 57005,
    "2e-4": 2e-4, "1E-3": 1e-3, "1e+3": 1000.0, "0.": 0.0, "-0.0": -0.0, ".5": 0.5,
    "12e03": 12000.0,
    "-2E+05": -200000.0, "1.10": 1.1, "+.5e1": 5.0,
    "no": "no", "off": "off", "yes": "yes", "on": "on", "y": "y", "N": "N", "nULL": "nULL",
    "1_000": "1_000", "12:30:45": "12:30:45", "2024-01-01": "2024-01-01", "-0x1F": "-0x1F",
    "0b11": "0b11", "1e": "1e", "e3": "e3", ".": ".", "+": "+", "1.2.3": "1.2.3", "=": "=",
    "0o8": "0o8", "١٢": "١٢",
}  # fmt: skip


def test_plain_scalars_follow_the_core_schema_of_yaml_1_2():
    for written, value in CORE_SCHEMA.items():
        got = scalar(written, "x").value
        assert (got, type(got)) == (value, type(value)), written


def test_numbers_that_a_computer_would_change_have_a_fault():
    for written in (".inf", "-.INF", ".nan", "1e999", "1e-999", "9223372036854775808", "9" * 5000):
        assert scalar(written, "x").fault, written
    for written in ("9223372036854775807", "5e-324", "0e999", "1.7976931348623157e308"):
        assert not scalar(written, "x").fault, written


def test_quoted_block_and_nested_values_agree_with_another_parser(tmp_path):
    text = (
        "a: 'it''s'\nb: \"x\\ty\"\nc: |\n  one\n  two\nd: >-\n  p\n  q\ne: [1, {f: x}]\ng: 'no'\n"
    )
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_yaml(path).root.plain() == pyyaml.safe_load(text)


def test_an_alias_bomb_is_refused_fast(tmp_path):
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 60)]
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(rows), encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"x\.yaml:5: a4\.8: found more than 10,000 values"):
        read_yaml(path)
    assert time.process_time() - start < 1.0


def test_an_anchor_and_its_alias_give_the_same_value(recipe):
    text = YAML.replace("max_steps: 100", "max_steps: &n 100\n  save_steps: *n")
    assert _read(recipe, text=text).sections["train"]["save_steps"] == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object:os.system {}\n", r"x\.yaml:1: a: found the tag .*python/object"),
        ("a: 1\n---\nb: 2\n", r"x\.yaml:2: found a second document"),
        ("- a\n", r"x\.yaml:1: found no settings"),
        ("text\n", r"x\.yaml:1: found no settings"),
        ("a:\n\tb: 1\n", r"x\.yaml:2: a\.b: found broken YAML.*never with tabs"),
        ("a: 'x\nb: 1\n", r"x\.yaml:1: a: found broken YAML"),
        ("a: 1\nb: [1,\nc: 2\n", r"x\.yaml:2: b: found broken YAML"),
        ("a: *b\n", r"x\.yaml:1: a: found \*b without"),
        ("a: &b [*b]\n", r"x\.yaml:1: a\.0: found \*b without a finished &b"),
        ("a: " + "[" * 5000, r"x\.yaml:1: a.*: found more than 20 levels"),
        ("%YAML 1.1\n---\na: 1\n", r"x\.yaml:2: found another YAML version"),
        ("a: 1\nb: \x00\n", r"x\.yaml:2: found a NUL byte"),
    ],
)
def test_a_file_that_is_no_settings_file_gives_one_error_with_a_line(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert len(caught.value.problems) == 1


def test_text_that_is_not_utf_8_names_its_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes("a: 1\nb: é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"x\.yaml:2: found byte 0xe9, accepts UTF-8"):
        read_yaml(path)


def test_a_duplicate_key_names_both_lines(recipe):
    text = YAML.replace("max_steps: 100", "max_steps: 100\n  learning_rate: 1e-3")
    assert _problems(recipe, text=text) == [
        "sft_gpt2_lora.yaml:13: train.learning_rate: found a second time; the first is in line 11 "
        "(keep one of them)"
    ]


# --- values and problems -------------------------------------------------------------------------


def test_values_defaults_and_origins_are_resolved(recipe):
    resolved = _read(recipe)
    train = resolved.sections["train"]
    assert train["learning_rate"] == 2e-4
    assert train["weight_decay"] == 0.0
    assert train["bf16"] == "auto"
    assert "optim" not in train
    assert resolved.origins["train.learning_rate"] == "sft_gpt2_lora.yaml:11"
    assert resolved.origins["train.weight_decay"] == "default"
    assert resolved.given("adapter") == {
        "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["c_attn", "c_proj"]
    }  # fmt: skip
    data = resolved.own("data", DataSettings)
    assert data == DataSettings(path="owner/instructions", max_length=128)


def test_unknown_key_is_reported_with_line_and_suggestion(recipe):
    (problem,) = _problems(recipe, text=YAML.replace("learning_rate", "learning_rat"))
    assert problem.startswith("sft_gpt2_lora.yaml:11: train.learning_rat: found an unknown key")
    assert problem.endswith("(did you mean 'learning_rate'?)")


def test_an_unknown_key_of_a_small_section_is_told_all_keys_and_of_a_large_one_the_nearest(recipe):
    (small,) = _problems(recipe, "sample.zzz=1")
    names = list(SampleSettings.__dataclass_fields__)
    assert len(names) <= 8
    assert f"found an unknown key, accepts {', '.join(names)}" in small
    (large,) = _problems(recipe, "data.max_len_tokens=1")
    count = len(DataSettings.__dataclass_fields__)
    assert count > 8
    assert f"accepts the {count} keys of DataSettings, such as max_length, " in large


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("learning_rate=1", "did you mean 'train.learning_rate'?"),
        ("modle.checkpoint=x", "did you mean 'model.checkpoint'?"),
        ("trian=null", "did you mean 'train'?"),
        ("train.max_length=3", "did you mean 'data.max_length'?"),
        ("data.seed=3", "did you mean 'train.seed' or 'sample.seed'?"),
        ("train.warmup_ratio=0.1", "use train.warmup_steps"),
        ("train.evaluation_strategy=no", "use train.eval_strategy"),
        ("model.load_in_4bit=true", "use model.quantization: nf4"),
        ("train.hub_token=hf_x", "log in with `hf auth login` or set HF_TOKEN"),
        ("train.resume_from_checkpoint=x", "use `--resume`"),
        ("train.push_to_hub=true", "set train.hub_model_id=NAME/REPO"),
        ("train.hub_model_id=alone", "accepts"),
        ("train.hub_strategy=every_save", "use train.push_to_hub"),
        ("train.lr_scheduler_type=cosin", "did you mean 'cosine'?"),
        ("adapter.r=8.0", "write 8"),
        ("train.max_steps=1_000", "write 1000"),
        ("model.checkpoint=1.10", 'write "1.10" in quotes'),
        ("train.logging_first_step=yes", "write true"),
        ("train.run_name=007", 'write "007" in quotes'),
        ("data.num_rows=None", "write null"),
        ("train.learning_rate='1e-4'", "write 0.0001 without quotes"),
    ],
)
def test_a_mistake_gets_the_hint_that_mends_it(recipe, override, hint):
    (problem,) = _problems(recipe, override)
    assert problem.startswith("command line: " + override.partition("=")[0])
    assert hint in problem


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        (
            "train.learning_rate",
            ["0", "-1", ".inf", ".nan", "1e999", "text", "true", "null", "[1]"],
        ),
        ("train.per_device_train_batch_size", ["0", "-1", "8.5", "8.0", "true", "'8'"]),
        ("train.max_steps", ["0", "-2", "1.5", "true"]),
        ("train.adam_beta1", ["1", "-0.1"]),
        ("train.warmup_steps", ["-1", "a"]),
        ("train.save_total_limit", ["0"]),
        ("train.seed", ["-1", "4294967296"]),
        ("train.label_smoothing_factor", ["0.1"]),
        ("train.logging_steps", ["0"]),
        ("train.max_grad_norm", ["-1"]),
        ("adapter.r", ["0", "true"]),
        ("adapter.lora_dropout", ["1", "1.0", "-0.1"]),
        ("adapter.init_lora_weights", ["eva", "pissa_niter_", "pissa_niter_0", "3"]),
        ("adapter.target_modules", ["3", "[1, a]", "{a: b}"]),
        ("adapter.use_bdlora", ["{nblock: 2}", "{nblocks: x}"]),
        ("data.eval_fraction", ["1", "1.0", "-0.1"]),
        ("data.max_length", ["1", "1e3"]),
        ("sample.prompts", ["text", "[1]"]),
        ("sample.top_p", ["0", "1.01"]),
        ("train.bf16", ["automatic", "1"]),
        ("train.report_to", ["wanb", "[wandb, x]"]),
        ("train.lr_scheduler_kwargs", ["{a: .inf}"]),
    ],
)
def test_values_out_of_range_or_of_the_wrong_type_are_refused(recipe, key, wrong):
    for value in wrong:
        (problem,) = _problems(recipe, f"{key}={value}")
        assert problem.startswith(f"command line: {key}"), problem


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1", 1.0),
        ("train.max_steps=-1", -1),
        ("train.adam_beta1=0", 0.0),
        ("train.warmup_steps=0.1", 0.1),
        ("train.logging_steps=10", 10),
        ("train.label_smoothing_factor=0", 0.0),
        ("train.push_to_hub=false", False),
        ("train.logging_nan_inf_filter=false", False),
        ("train.bf16=auto", "auto"),
        ("train.report_to=[wandb, tensorboard]", ["wandb", "tensorboard"]),
        ("adapter.init_lora_weights=pissa_niter_4", "pissa_niter_4"),
        ("adapter.init_lora_weights=false", False),
        ("adapter.layer_replication=[[0, 4], [2, 5]]", [[0, 4], [2, 5]]),
        ("adapter.use_bdlora={nblocks: 2}", {"nblocks": 2}),
        ("train.run_name=2024-01-01", "2024-01-01"),
        ("train.run_name='007'", "007"),
        ("train.run_name=a: b #c", "a: b #c"),
        ("data.eval_fraction=0", 0.0),
    ],
)
def test_values_inside_the_range_are_taken_exactly(recipe, override, value):
    resolved = _read(recipe, override)
    dotted = override.partition("=")[0]
    section, key = dotted.split(".")
    got = resolved.sections[section][key]
    assert (got, type(got)) == (value, type(value))
    assert resolved.origins[dotted] == "command line"


def test_all_problems_are_in_one_report_in_the_order_of_the_file(recipe):
    text = YAML.replace("r: 8", "r: 0").replace("max_length: 128", "max_length: x")
    text = text.replace("max_steps: 100", "max_step: 100\n  fp16: true\n  bf16: true")
    problems = _problems(recipe, "train.seed=x", text=text)
    keys = ["adapter.r", "data.max_length", "train.max_step", "train.fp16", "train.seed"]
    assert [problem.split(": ")[1] for problem in problems] == keys
    places = [problem.split(": ")[0] for problem in problems]
    assert places == [*(f"sft_gpt2_lora.yaml:{n}" for n in (5, 9, 12, 13)), "command line"]


def test_missing_sections_and_keys_name_the_file_and_what_to_add(recipe):
    problems = _problems(recipe, text="model: {revision: main}\n")
    assert problems[0].startswith("sft_gpt2_lora.yaml:1: model.checkpoint: found nothing")
    assert [p.split(": ")[1] for p in problems] == ["model.checkpoint", "data", "train"]
    assert "add `data:` with path" in problems[1]


def test_a_misspelt_section_is_not_also_reported_as_missing(recipe):
    (problem,) = _problems(recipe, text=YAML.replace("\ntrain:", "\ntrian:"))
    assert problem.startswith("sft_gpt2_lora.yaml:10: trian: found an unknown section")


def test_null_adapter_is_full_fine_tuning(recipe):
    assert _read(recipe, "adapter=null").sections["adapter"] is None
    assert "null" in _problems(recipe, "train=null")[0]


def test_a_deprecated_key_is_read_under_its_new_name_with_a_note(recipe):
    resolved = _read(recipe, "train.gradient_checkpointing=true")
    assert resolved.given("train")["activation_checkpointing"] is True
    assert "train.activation_checkpointing" in resolved.notes[0]
    both = ("train.gradient_checkpointing=true", "train.activation_checkpointing=true")
    assert "found together with activation_checkpointing" in _problems(recipe, *both)[0]


# --- settings that don't go together -------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["adapter=null", "model.quantization=nf4"], "model.quantization"),
        (["adapter=null", "model.quantization=int8"], "model.quantization"),
        (["data.eval_path=owner/held", "data.eval_fraction=0.1"], "data.eval_fraction"),
        (["data.eval_fraction=0", "train.eval_strategy=steps"], "train.eval_strategy"),
        (["train.bf16=true", "train.fp16=true"], "train.fp16"),
        (["train.logging_steps=1.5"], "train.logging_steps"),
        (["train.save_steps=2.5"], "train.save_steps"),
        (["train.warmup_steps=101"], "train.warmup_steps"),
        (["train.load_best_model_at_end=true"], "train.load_best_model_at_end"),
        (["train.lr_scheduler_type=greedy"], "train.lr_scheduler_type"),
        (["train.dataloader_prefetch_factor=2"], "train.dataloader_prefetch_factor"),
        (["train.dataloader_persistent_workers=true"], "train.dataloader_persistent_workers"),
        (["train.deepspeed=x.json", "train.fsdp=full_shard"], "train.deepspeed"),
        (["adapter.layers_pattern=h"], "adapter.layers_pattern"),
        (["adapter.target_modules=all-linear", "adapter.layers_to_transform=1"],
         "adapter.layers_to_transform"),
        (["adapter.lora_bias=true", "adapter.use_dora=true"], "adapter.lora_bias"),
        (["model.checkpoint=data/checkpoints/none"], "model.checkpoint"),
        (["model.checkpoint=./none"], "model.checkpoint"),
        (["data.path=none.jsonl"], "data.path"),
        (["data.path=/none"], "data.path"),
    ],
)  # fmt: skip
def test_settings_that_cannot_go_together_are_refused_and_each_alone_is_fine(
    recipe, overrides, key
):
    (problem,) = _problems(recipe, *overrides)
    assert key in problem
    for override in overrides if len(overrides) > 1 else []:
        if override not in ("adapter.layers_to_transform=1", "train.eval_strategy=steps"):
            _read(recipe, override)


@pytest.mark.parametrize("eval_steps", ["10", "30", "0.1", "0.25", "null"])
@pytest.mark.parametrize("save_steps", ["20", "30", "0.2", "0.5"])
@pytest.mark.parametrize("strategies", ["steps steps", "steps epoch", "no best", "epoch epoch"])
def test_best_model_rules_agree_with_training_arguments(
    recipe, tmp_path, eval_steps, save_steps, strategies
):
    from transformers import TrainingArguments

    evaluation, saving = strategies.split()
    written = {
        "load_best_model_at_end": "true", "eval_strategy": evaluation, "save_strategy": saving,
        "eval_steps": eval_steps, "save_steps": save_steps, "logging_steps": "10",
    }  # fmt: skip
    values = {key: pyyaml.safe_load(value) for key, value in written.items()}
    values |= {"eval_strategy": evaluation}
    try:
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **values)
        accepted = True
    except ValueError:
        accepted = False
    overrides = [f"train.{key}={value}" for key, value in written.items()]
    if accepted and saving != "best":
        _read(recipe, *overrides)
    else:  # "best" without evaluation never saves anything, which upstream lets pass
        _problems(recipe, *overrides)


def _write_checkpoint(folder, tensors):
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in tensors.items()
    }
    data = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)


TENSORS = {
    "h.0.attn.c_attn.weight": [8, 24], "h.0.attn.c_attn.bias": [24],
    "h.0.attn.c_proj.weight": [8, 8], "h.0.mlp.c_fc.weight": [8, 32],
    "h.0.ln_1.weight": [8], "wte.weight": [100, 8],
}  # fmt: skip


def test_each_target_module_that_matches_no_layer_is_reported_on_its_own(recipe, tmp_path):
    _write_checkpoint(tmp_path / "tiny", TENSORS)
    found = _problems(
        recipe, "model.checkpoint=./tiny", "adapter.target_modules=[c_attn, c_atn, q_proj, ln_1]"
    )
    assert len(found) == 3
    assert (
        "'c_atn', which matches no layer of the checkpoint; it has c_attn, c_fc, c_proj, wte"
        in (found[0])
    )
    assert "did you mean 'c_attn'?" in found[0]
    assert "'q_proj'" in found[1]
    assert "'ln_1'" in found[2]


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        ("all-linear", True), ("[c_attn, lm_head]", True), ("[attn.c_proj]", True),
        ("[transformer.h.0.mlp.c_fc]", True), (r".*\.c_(attn|proj)", True),
        (r"transformer\.h\.\d+\.mlp\.c_fc", True), ("c_attn", False), ("[mlp]", False),
        (r"'.*\.q_proj'", False), ("'['", False), ("null", True),
    ],
)  # fmt: skip
def test_target_modules_match_as_in_peft(recipe, tmp_path, target, fits):
    _write_checkpoint(tmp_path / "tiny", TENSORS)
    overrides = ["model.checkpoint=./tiny", f"adapter.target_modules={target}"]
    if fits:
        _read(recipe, *overrides)
    else:
        assert "adapter.target_modules" in _problems(recipe, *overrides)[0]


@pytest.fixture
def chatglm2(chatglm_fixtures):
    """A packed checkpoint with 2 layers; its files are pickles."""
    return f"model.checkpoint={chatglm_fixtures / 'chatglm2_tiny_int4'}"


@pytest.mark.parametrize(
    "target",
    [
        "[query_key_value]", "[q_proj, dense]", "[dense_h_to_4h, down_proj]", "all-linear",
        "[model.layers.1.mlp.gate_up_proj]", r"'.*\.(q|v)_proj'",
    ],
)  # fmt: skip
def test_layers_of_chatglm_have_their_names_of_then_and_now(recipe, chatglm2, target):
    _read(recipe, chatglm2, "model.quantization=none", f"adapter.target_modules={target}")


def test_a_name_given_as_text_is_told_to_be_a_pattern(recipe, chatglm2):
    overrides = ["model.quantization=none", "adapter.target_modules=query_key_value"]
    (found,) = _problems(recipe, chatglm2, *overrides)
    assert "a text is a pattern for whole names: write [query_key_value]" in found
    assert "did you mean" not in found


@pytest.mark.parametrize("target", ["[c_attn]", "[query_key]", "[model.layers.2.self_attn.q_proj]"])
def test_names_that_chatglm_never_had_are_refused(recipe, chatglm2, target):
    overrides = ["model.quantization=none", f"adapter.target_modules={target}"]
    (found,) = _problems(recipe, chatglm2, *overrides)
    assert "matches no layer of the checkpoint" in found
    assert "query_key_value" in found


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_packed_checkpoint_is_not_quantized_again(recipe, chatglm2, quantization):
    overrides = [f"model.quantization={quantization}", "adapter.target_modules=[query_key_value]"]
    (found,) = _problems(recipe, chatglm2, *overrides)
    assert "model.quantization" in found
    assert "stored as int4 already" in found


def test_a_packed_checkpoint_is_not_trained_without_an_adapter(recipe, chatglm2):
    (found,) = _problems(recipe, chatglm2, "model.quantization=none", "adapter=null")
    assert "stored as int4 without an adapter" in found


def test_a_checkpoint_that_bitsandbytes_wrote_is_not_quantized_again(recipe, tmp_path):
    _write_checkpoint(tmp_path / "tiny", TENSORS)
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    (found,) = _problems(recipe, "model.checkpoint=./tiny", "model.quantization=int8")
    assert "stored as bitsandbytes already" in found


def test_layers_of_a_cached_hub_checkpoint_are_checked_too(recipe, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--owner--gpt2"
    _write_checkpoint(cached / "snapshots" / "abc", TENSORS)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert "'q_proj'" in _problems(recipe, "adapter.target_modules=[q_proj]")[0]
    assert _read(recipe, "adapter.target_modules=[q_proj]", "model.revision=other")


def test_module_names_of_a_real_checkpoint_are_those_of_the_model(real_data):
    from transformers import AutoModelForCausalLM

    folder = real_data / "checkpoints" / "gpt2basic"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    expected = {
        name
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.ndim >= 2
    }
    prefix = model.base_model_prefix + "."
    found = {name.removeprefix(prefix) for name in module_names(folder)}
    assert {name.removeprefix(prefix) for name in expected} - {"lm_head"} == found - {"lm_head"}
    assert len(found) > 10


# --- merging and the command line ----------------------------------------------------------------


def test_later_yaml_wins_key_by_key_and_the_command_line_wins_over_all(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("train:\n  learning_rate: 1e-3\n  seed: 7\n", encoding="utf-8")
    yamls = [recipe.with_suffix(".yaml"), other]
    resolved = read_config(recipe, yamls, ["train.seed=9"])
    given = resolved.given("train")
    assert given == {
        "learning_rate": 1e-3, "max_steps": 100, "eval_strategy": "no", "seed": 9
    }  # fmt: skip
    assert resolved.origins["train.learning_rate"] == "other.yaml:2"
    assert resolved.origins["train.seed"] == "command line"


def test_an_override_reaches_into_a_mapping_and_keeps_its_other_keys(recipe):
    text = YAML + "  lr_scheduler_kwargs: {num_cycles: 1, last_epoch: 3}\n"
    resolved = _read(recipe, "train.lr_scheduler_kwargs.num_cycles=2", text=text)
    assert resolved.sections["train"]["lr_scheduler_kwargs"] == {"num_cycles": 2, "last_epoch": 3}
    assert resolved.origins["train.lr_scheduler_kwargs.num_cycles"] == "command line"


@pytest.mark.parametrize(
    "word",
    ["lone", "=3", ".a=3", "train.=3", "train.seed=[1", "train.lr_scheduler_kwargs={a: 1, a: 2}"],
)
def test_a_broken_override_is_reported(recipe, word):
    assert _problems(recipe, word)[0].startswith("command line")


def test_the_same_override_twice_is_reported(recipe):
    (problem,) = _problems(recipe, "train.seed=1", "train.seed=2")
    assert problem == "command line: train.seed: found a second time (keep one of them)"


def test_find_recipe_takes_the_python_file_beside_the_yaml(recipe, tmp_path):
    assert find_recipe(recipe.with_suffix(".yaml")) == recipe
    lonely = tmp_path / "lonely.yaml"
    lonely.write_text("a: 1")
    with pytest.raises(ConfigError, match=r"lonely\.yaml:1: found no lonely\.py .*--recipe"):
        find_recipe(lonely)
    with pytest.raises(ConfigError, match="no such file"):
        find_recipe(tmp_path / "none.yaml")


# --- building ------------------------------------------------------------------------------------


def _settings_class(recipe):
    # As an import would: the class's annotations are looked up in its module.
    namespace = {"__name__": "recipe_under_test"}
    module = type(sys)("recipe_under_test")
    module.__dict__.update(namespace)
    sys.modules["recipe_under_test"] = module
    exec(compile(RECIPE, str(recipe), "exec"), module.__dict__)
    return module.Settings


@pytest.fixture
def load(recipe, monkeypatch):
    cls = _settings_class(recipe)
    updates = {
        "train": {"use_cpu": True, "bf16": False, "fp16": False},
        "model": {"dtype": "float32"},
    }
    resolution = devices.Resolution(updates, notes=["device: cpu"])
    monkeypatch.setattr(devices, "resolve", lambda sections: resolution)

    def run(*words):
        monkeypatch.setattr(sys, "argv", [str(recipe), *words])
        return load_config(cls, str(recipe))

    yield run
    sys.modules.pop("recipe_under_test")


def test_load_config_builds_the_real_classes_from_what_was_given(load, tmp_path):
    import peft
    import transformers

    config = load("train.seed=5", "--resume", f"train.output_dir={tmp_path / 'run'}")
    settings = config.settings
    assert isinstance(settings.train, transformers.TrainingArguments)
    assert isinstance(settings.adapter, peft.LoraConfig)
    assert settings.adapter.target_modules == {"c_attn", "c_proj"}
    assert (settings.train.seed, settings.train.learning_rate) == (5, 2e-4)
    assert settings.train.weight_decay == transformers.TrainingArguments().weight_decay
    assert settings.model.dtype == "float32"
    assert settings.sample.max_new_tokens == 64
    assert (config.resume, config.overwrite) == (True, False)
    assert config.notes == ["device: cpu"]
    assert config.resolved.sections["train"]["use_cpu"] is True
    assert config.resolved.origins["train.use_cpu"] == "auto (default)"


def test_load_config_reads_a_second_yaml_and_null_sections(load, tmp_path):
    (tmp_path / "full.yaml").write_text("adapter: null\n", encoding="utf-8")
    assert load("--config", "full.yaml").settings.adapter is None
    assert load("--config=full.yaml", "adapter.r=4").settings.adapter.r == 4


def test_what_the_machine_lacks_is_reported_at_the_line_that_asks_for_it(load, monkeypatch):
    problem = Problem("", "train.max_steps", "found bf16, which this machine lacks")
    resolution = devices.Resolution({}, [], [problem])
    monkeypatch.setattr(devices, "resolve", lambda sections: resolution)
    with pytest.raises(ConfigError, match=r"sft_gpt2_lora\.yaml:12: train\.max_steps: found bf16"):
        load()


def test_what_an_upstream_class_refuses_names_section_and_line(load):
    with pytest.raises(ConfigError) as caught:
        load("train.accelerator_config={no_such_key: 1}")
    (problem,) = caught.value.problems
    assert str(problem).startswith("sft_gpt2_lora.yaml:10: train: TrainingArguments refuses:")
    assert "no_such_key" in str(problem)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--learning_rate", "1e-4"], "write `train.learning_rate=1e-4`"),
        (["--train.learning_rate=1e-4"], "write `train.learning_rate=1e-4`"),
        (["--learning-rat=3"], "write `train.learning_rate=3`"),
        (["--resum"], "did you mean --resume?"),
        (["--config"], "found no file name"),
        (["--resume", "--overwrite"], "keep one of them"),
        (["-xyz"], "see --help"),
        (["-r", "4"], "write `adapter.r=4`"),
        (["lone"], "accepts section.key=value"),
    ],
)
def test_an_option_that_does_not_exist_is_answered_with_the_right_form(load, words, hint):
    with pytest.raises(ConfigError, match=re.escape(hint)) as caught:
        load(*words)
    assert len(caught.value.problems) == 1


def test_help_lists_every_key_and_exits_0(load, capsys):
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: sft_gpt2_lora.py [section.key=value ...]")
    assert "  train.learning_rate  [5e-05]  a number > 0\n" in text
    assert "  data.path  [required]  text" in text
    assert "hub_token" not in text


def test_print_config_is_yaml_with_an_origin_for_each_key(load, capsys):
    with pytest.raises(SystemExit) as caught:
        load("--print-config", "train.seed=5")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert '  checkpoint: "owner/gpt2"  # sft_gpt2_lora.yaml:2\n' in text
    assert "  seed: 5  # command line\n" in text
    assert '  dtype: "float32"  # auto (default)\n' in text
    assert pyyaml.safe_load(text)["adapter"]["target_modules"] == ["c_attn", "c_proj"]


def test_a_users_mistake_ends_a_recipe_with_its_message_and_exit_code_2(capsys, monkeypatch):
    def main():
        raise ConfigError("x.yaml: 1 problem", [Problem("x.yaml:3", "train.seed", "found a")])

    with pytest.raises(SystemExit) as caught:
        run_recipe(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: x.yaml: 1 problem\n  x.yaml:3: train.seed: found a\n"
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        run_recipe(main)
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_a_recipe_with_exit_code_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_recipe(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err.startswith("stopped by Ctrl-C")
