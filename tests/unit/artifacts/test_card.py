import ast
import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast

import sft_kit
from sft_kit.artifacts.card import write_card

RECORD: dict[str, object] = {
    "status": "running",
    "recipe": "sft_gpt2_lora.py",
    "settings": {
        "model": {"checkpoint": "openai-community/gpt2", "quantization": "nf4"},
        "adapter": {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"},
        "data": {"path": "/secret/rows.json", "template": "human-assistant"},
        "train": {
            "learning_rate": 2e-4, "per_device_train_batch_size": 16, "seed": 42,
            "gradient_accumulation_steps": 1, "output_dir": "/secret/runs/x",
            "hub_token": "hf_secret",
        },
    },
    "origins": {"data.path": "/secret/recipe.yaml:12"},
    "data": {"num_train_rows": 950, "num_eval_rows": 50, "fingerprint": "abc123", "format": "x"},
    "base": {"name": "gpt2", "folder": "/secret/cache", "fingerprint": "f"},
    "template": {"name": "human-assistant", "stop_token": "<|endoftext|>", "stop_token_id": 50256},
    "versions": {"sft-kit": "0.1.0", "torch": "2.13.0"},
}  # fmt: skip
METRICS = {"eval_loss": 2.345678901, "num_steps": 100.0, "epochs": 2}


def card(tmp_path: Path, record: dict[str, object] = RECORD, **options: object) -> str:
    folder = tmp_path / "my-run"
    folder.mkdir(exist_ok=True)
    arguments = {"metrics": METRICS, "curves": ["loss.png"]} | options
    write_card(folder / "README.md", "my-run", record, **arguments)
    return (folder / "README.md").read_text(encoding="utf-8")


def header(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def snippet(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


def changed(section: str, **values: object) -> dict[str, object]:
    record = copy.deepcopy(RECORD)
    record["settings"][section] = values or None
    return record


def test_the_header_is_what_the_hub_reads(tmp_path: Path):
    assert header(card(tmp_path)) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "openai-community/gpt2",
        "tags": ["sft_kit", "lora"],
    }


def test_settings_figures_and_curves_are_told(tmp_path: Path):
    text = card(tmp_path)
    for line in (
        "# my-run",
        "| training rows | 950 |",
        "| held-out rows | 50 |",
        "| data fingerprint | `abc123` |",
        "| quantization | nf4 |",
        "| chat template | human-assistant |",
        "| r | 8 |",
        "| lora_alpha | 32 |",
        "| target_modules | all-linear |",
        "| learning_rate | 0.0002 |",
        "| seed | 42 |",
        "| eval_loss | 2.34568 |",
        "| num_steps | 100 |",
        "![loss.png](loss.png)",
    ):
        assert line in text.splitlines(), line
    assert "A LoRA adapter for `openai-community/gpt2`" in text
    assert f"recipe `sft_gpt2_lora.py` of sft_kit {sft_kit.__version__}" in text
    assert "Answers end with the token `<|endoftext|>`." in text


def test_folders_of_this_machine_and_secrets_stay_out(tmp_path: Path):
    text = card(tmp_path)
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_a_base_in_a_folder_is_named_without_its_path(tmp_path: Path):
    base = tmp_path / "bases" / "tiny"
    base.mkdir(parents=True)
    text = card(tmp_path, changed("model", checkpoint=str(base), quantization="none"))
    assert "base_model" not in header(text)
    assert "A LoRA adapter for `tiny`" in text
    assert str(tmp_path) not in text


def test_a_model_trained_whole_is_no_adapter(tmp_path: Path):
    text = card(tmp_path, changed("adapter"))
    assert header(text)["library_name"] == "transformers"
    assert header(text)["tags"] == ["sft_kit"]
    assert "peft" not in text.lower()
    assert "A language model trained from `openai-community/gpt2`" in text


def test_a_pretrained_model_names_its_architecture_and_has_no_chat(tmp_path: Path):
    record = changed("model", tokenizer="/secret/tokenizer", architecture="gpt2", config={})
    record["settings"] |= {"adapter": None}
    del record["template"]
    text = card(tmp_path, record)
    assert "base_model" not in header(text)
    assert "A new model of the architecture `gpt2`" in text
    assert "apply_chat_template" not in text
    assert "Answers end" not in text


@pytest.mark.parametrize("adapter", [True, False])
def test_the_code_of_the_card_imports_what_it_uses(tmp_path: Path, adapter: bool):
    record = RECORD if adapter else changed("model", checkpoint="gpt2", quantization="none")
    record = record if adapter else record | {"settings": record["settings"] | {"adapter": None}}
    tree = ast.parse(snippet(card(tmp_path, record)))
    names = {alias.name for node in tree.body if hasattr(node, "names") for alias in node.names}
    needed = {"AutoModelForCausalLM", "AutoTokenizer"}
    assert names == (needed | {"PeftModel", "BitsAndBytesConfig"} if adapter else needed)


@pytest.mark.parametrize(
    ("quantization", "double", "expected"),
    [
        ("none", True, None),
        ("int8", True, {"load_in_8bit": True}),
        ("nf4", True, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}),
        ("nf4", False, {"load_in_4bit": True, "bnb_4bit_use_double_quant": False}),
    ],
)
def test_the_code_of_the_card_quantizes_as_the_run_did(
    tmp_path: Path, quantization: str, double: bool, expected: dict[str, bool] | None
):
    model = {"checkpoint": "gpt2", "quantization": quantization, "double_quantization": double}
    tree = ast.parse(snippet(card(tmp_path, changed("model", **model))))
    calls = [
        {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "BitsAndBytesConfig"
    ]
    if expected is None:
        assert calls == []
    else:
        (found,) = calls
        assert expected.items() <= found.items()
        assert found.get("bnb_4bit_quant_type", "nf4") == "nf4"


def test_the_code_of_the_card_runs(
    tmp_path: Path, gpt2_checkpoint: Path, tokenizer: PreTrainedTokenizerFast
):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(gpt2_checkpoint)
    record = changed("adapter") | {
        "template": {"stop_token": "<|endoftext|>", "stop_token_id": tokenizer.eos_token_id}
    }
    code = snippet(card(tmp_path, record)).replace("path/to/this/folder", str(gpt2_checkpoint))
    found: dict[str, object] = {}
    exec(code.replace("max_new_tokens=64", "max_new_tokens=4, pad_token_id=0"), found)
    assert isinstance(found["reply"], torch.Tensor)
    prompt_length = found["prompt"]["input_ids"].shape[1]
    assert prompt_length < found["reply"].shape[1] <= prompt_length + 4


def test_the_data_is_named_with_its_licence_and_its_tokens(tmp_path: Path):
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    record = changed("data", path=str(tmp_path / "rows.json"))
    record["facts"] = {"tokens_per_step": 300, "num_steps": 20}
    text = card(tmp_path, record)
    assert "| data | `rows.json` |" in text
    assert "| licence of the data | mit |" in text
    assert "| tokens read in training | about 6,000 |" in text
    assert str(tmp_path) not in text


def test_a_data_set_of_the_hub_stands_in_the_header(tmp_path: Path):
    text = card(tmp_path, changed("data", path="org/rows"))
    assert header(text)["datasets"] == ["org/rows"]
    assert "| data | [org/rows](https://huggingface.co/datasets/org/rows) |" in text


def test_an_adapter_says_what_a_base_in_a_folder_means(tmp_path: Path):
    here = tmp_path / "tiny"
    here.mkdir()
    text = card(tmp_path, changed("model", checkpoint=str(here), quantization="none"))
    assert "The base was a folder that is not on the Hub under a known name" in text
    assert "`path/to/tiny`" in text
    assert "is not on the Hub" not in card(tmp_path)
