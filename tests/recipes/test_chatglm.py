"""The ChatGLM recipe on tiny checkpoints in the original format, packed and not."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmForCausalLM

import sft_kit.models.chatglm  # noqa: F401  (all that plain transformers and PEFT need)
from sft_kit.artifacts import load_run, merge_and_save
from sft_kit.data.templates import encode_prompt
from sft_kit.errors import ConfigError
from sft_kit.inference.generate import generate
from sft_kit.settings import SampleSettings

from .conftest import RECIPES, Words, run
from .test_recipes import ADAPTER, RECORD, TOKENIZER, checkpoints, files_in

REPOSITORY = RECIPES.parent
STEM = "sft_chatglm2_int4_lora"
PROMPT = [{"role": "user", "content": "What does a cow eat?"}]
IDS = torch.tensor([[461, 463, 318, 327, 401, 328, 313, 375, 13, 13, 277]])


@pytest.fixture(scope="module")
def settings(chatglm_fixtures: Path, rows_file: Path, small_lora: Words) -> Words:
    """Six small steps on the packed checkpoint, with evaluations and checkpoints."""
    return {
        **small_lora,
        "model.checkpoint": chatglm_fixtures / "chatglm2_tiny_int4",
        "model.quantization": "none",
        "data.path": rows_file,
        "sample.prompts": '["What does a cow eat?"]',
        "sample.max_new_tokens": 4,
    }


@pytest.fixture(scope="module")
def packed_run(tmp_path_factory: pytest.TempPathFactory, settings: Words) -> Path:
    """Run folder of the six steps; nobody writes to it."""
    folder = tmp_path_factory.mktemp("runs") / "packed"
    run(STEM, settings | {"train.output_dir": folder})
    return folder


def trained_model(settings: Words, folder: Path, **changes: object) -> torch.nn.Module:
    """Run the recipe up to the point where it would save, and return the model."""
    kept: list[torch.nn.Module] = []

    def prepare(recipe: ModuleType) -> None:
        recipe.save_run = lambda run, model, *rest, **more: kept.append(model)  # type: ignore[attr-defined]

    words = {key.replace("__", "."): value for key, value in changes.items()}
    run(STEM, settings | words | {"train.output_dir": folder}, "--overwrite", change=prepare)
    return kept[0]


def test_the_recipe_leaves_exactly_its_files(packed_run: Path):
    tokenizer = TOKENIZER | {"tokenizer.model"}
    weights = ADAPTER | {"README.md"}
    expected = RECORD | tokenizer | ADAPTER | {"samples.md"} | checkpoints([2, 4, 6], weights)
    assert files_in(packed_run) == expected
    metrics = json.loads((packed_run / "metrics.json").read_text())
    assert metrics["reload_max_logit_difference"] == 0
    assert metrics["eval_loss"] < metrics["base_loss"]


def test_the_adapter_is_plain_peft_under_todays_names(packed_run: Path):
    config = json.loads((packed_run / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == [
        *("down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"),
    ]
    tensors = load_file(packed_run / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert len(tensors) == 2 * 6 * 2  # layers, projections, matrices


def test_the_weights_stay_packed_while_training(settings: Words, tmp_path: Path):
    model = trained_model(settings, tmp_path / "run")
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    assert layer.weight.dtype == torch.int8
    assert layer.weight.shape == (64, 128 // 2)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_plain_transformers_and_peft_give_the_logits_of_the_run(
    packed_run: Path, chatglm_fixtures: Path
):
    base = AutoModelForCausalLM.from_pretrained(
        chatglm_fixtures / "chatglm2_tiny_int4", dtype=torch.float32
    )
    plain = PeftModel.from_pretrained(base, packed_run).eval()
    loaded = load_run(str(packed_run))
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, loaded.model(IDS).logits)
        plain.disable_adapter_layers()
        assert not torch.equal(plain(IDS).logits, loaded.model(IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(packed_run)
    assert tokenizer.chat_template == loaded.template.source


def test_the_code_of_the_card_gives_the_logits_of_the_run(packed_run: Path, chatglm_fixtures: Path):
    text = (packed_run / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert "import sft_kit.models.chatglm" in code
    assert "| quantization | int4 |" in text
    code = code.replace("path/to/this/folder", str(packed_run))
    code = code.replace(
        '"path/to/chatglm2_tiny_int4"', repr(str(chatglm_fixtures / "chatglm2_tiny_int4"))
    )
    names: dict[str, object] = {}
    exec(code, names)
    loaded = load_run(str(packed_run))
    model = names["model"].float()  # type: ignore[attr-defined]
    with torch.no_grad():
        difference = (model(IDS).logits - loaded.model(IDS).logits).abs().max()
    assert difference < 1e-5


def test_a_run_folder_chats_in_the_original_prompt_format(packed_run: Path, chatglm_fixtures: Path):
    loaded = load_run(str(packed_run))
    expected = json.loads(
        (chatglm_fixtures / "chatglm2_tiny_int4" / "expected_tokenizer.json").read_text()
    )
    history = [{"role": "user", "content": expected["history"][0][0]}]
    history += [{"role": "assistant", "content": expected["history"][0][1]}]
    question = expected["build_prompt"]["1"].rpartition("问：")[2].partition("\n")[0]
    messages = [*history, {"role": "user", "content": question}]
    ids = encode_prompt(loaded.tokenizer, loaded.template, messages)
    assert ids == expected["build_prompt_ids"]["1"]


def test_a_resumed_run_ends_bit_identical_to_the_straight_one(
    packed_run: Path, settings: Words, tmp_path: Path
):
    folder = Path(shutil.copytree(packed_run, tmp_path / "resumed"))
    shutil.rmtree(folder / "checkpoint-6")
    shutil.rmtree(folder / "checkpoint-4")
    record = yaml.safe_load((folder / "run.yaml").read_text())
    (folder / "run.yaml").write_text(yaml.safe_dump(record | {"status": "running"}))
    (folder / "adapter_model.safetensors").unlink()
    run(STEM, settings | {"train.output_dir": folder}, "--resume")
    straight = (packed_run / "adapter_model.safetensors").read_bytes()
    assert (folder / "adapter_model.safetensors").read_bytes() == straight


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("name", ["chatglm2_tiny_fp16", "chatglm3_tiny_fp16"])
def test_checkpoints_in_fp16_train_with_every_storage(
    settings: Words, chatglm_fixtures: Path, tmp_path: Path, name: str, quantization: str
):
    folder = tmp_path / "run"
    changes = {
        "model.checkpoint": chatglm_fixtures / name,
        "model.quantization": quantization,
        "train.max_steps": 2,
        "train.warmup_steps": 1,
        "train.output_dir": folder,
    }
    run(STEM, settings | changes)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["reload_max_logit_difference"] == 0
    assert yaml.safe_load((folder / "run.yaml").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.quantization": "nf4"}, "stored as int4 already"),
        ({"adapter": "null"}, "without an adapter"),
        ({"adapter.target_modules": "[c_attn]"}, "matches no layer"),
        ({"model.config": "{rope_mod: linear}"}, "did you mean 'rope_mode'"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    run_recipe: Callable[..., ModuleType],
    settings: Words,
    tmp_path: Path,
    change: Words,
    words: str,
):
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=words):
        run_recipe(STEM, settings | change | {"train.output_dir": folder})
    assert not folder.exists()


def test_the_embedded_checkpoint_learns_to_stop_and_merges(tmp_path: Path):
    folder, merged = tmp_path / "run", tmp_path / "merged"
    settings: Words = {
        "model.checkpoint": REPOSITORY / "data" / "checkpoints" / "tiny-chatglm2-int4",
        "data.path": REPOSITORY / "data" / "instructions.jsonl",
        "data.num_rows": 64,
        "train.learning_rate": 1e-2,
        "train.max_steps": 24,
        "train.save_strategy": "no",
        "train.eval_strategy": "no",
        "train.disable_tqdm": "true",
        "train.output_dir": folder,
    }
    run(STEM, settings)
    prompts = [[{"role": "user", "content": "What does a cow eat?"}]]
    loaded = load_run(str(folder))
    (reply,) = generate(loaded.model, loaded.tokenizer, loaded.template, prompts, SampleSettings())
    assert reply.stopped
    assert "cow" in reply.text
    merge_and_save(str(folder), merged)
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert type(plain) is GlmForCausalLM
    again = generate(plain, loaded.tokenizer, loaded.template, prompts, SampleSettings())
    assert [answer.ids for answer in again] == [reply.ids]


def test_a_stretched_context_is_remembered_by_the_run(
    settings: Words, chatglm_fixtures: Path, tmp_path: Path
):
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(chatglm_fixtures / "chatglm2_tiny_int4", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_ratio": 4}))
    changes = {
        "model.checkpoint": base,
        "model.config": "{rope_mode: theta}",  # not what the checkpoint's name says
        "train.max_steps": 1,
        "train.warmup_steps": 0,
        "train.output_dir": folder,
    }
    run(STEM, settings | changes)
    assert json.loads((folder / "metrics.json").read_text())["reload_max_logit_difference"] == 0
    parameters = load_run(str(folder)).model.config.rope_parameters
    assert (parameters["rope_type"], parameters["rope_theta"]) == ("default", 40000.0)
    assert "rope_mode='theta'" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_recipe_takes_the_same_steps_as_that_of_gpt2():
    bodies = [
        ast.dump(ast.Module(ast.parse((RECIPES / f"{stem}.py").read_text("utf-8")).body[1:], []))
        for stem in (STEM, "sft_gpt2_lora")
    ]
    assert bodies[0] == bodies[1]
