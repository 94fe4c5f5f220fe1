"""The card of a classifier: what it says of the run, and that its code runs as it stands."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from sft_kit.artifacts.classifier_card import write_classifier_card
from sft_kit.artifacts.save import save_model
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_tokenizer
from sft_kit.models.heads import load_classifier
from sft_kit.settings import ModelSettings

NAMES = ["bad", "good", "mixed"]
BASE = "google-bert/bert-base-chinese"
RECORD: dict[str, object] = {
    "recipe": "classify_x.py",
    "settings": {
        "model": {"checkpoint": BASE, "quantization": "none"},
        "adapter": {"r": 8, "lora_alpha": 32},
        "data": {"path": "/secret/rows.tsv"},
        "classify": {"class_weights": "equal", "label_smoothing": 0.0, "lm_weight": 0.0},
        "train": {"learning_rate": 5e-4, "seed": 42, "load_best_model_at_end": True},
    },
    "data": {"num_train_rows": 90, "num_eval_rows": 10, "fingerprint": "abc"},
    "labels": {"names": NAMES, "multi_label": False},
}
METRICS = {"eval_loss": 0.5, "eval_macro_f1": 0.75}
WriteCard = Callable[..., str]


@pytest.fixture
def card(tmp_path: Path) -> WriteCard:
    """Writes a card, with some settings changed section by section."""

    def write(metrics: dict[str, float] = METRICS, **sections: dict[str, object] | None) -> str:
        record = copy.deepcopy(RECORD)
        for name, values in sections.items():
            record["settings"][name] = values and (record["settings"][name] or {}) | values
        write_classifier_card(tmp_path / "README.md", "my-run", record, metrics, ["confusion.png"])
        return (tmp_path / "README.md").read_text(encoding="utf-8")

    return write


def test_the_header_is_what_the_hub_reads(card: WriteCard):
    expected = {
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "base_model": BASE,
        "tags": ["sft_kit", "text-classification", "lora"],
    }
    assert yaml.safe_load(card().split("---\n")[1]) == expected


def test_the_loss_is_told_where_it_is_not_the_plain_one(card: WriteCard):
    plain = card()
    for word in ("class_weights", "label_smoothing", "lm_weight"):
        assert word not in plain
    weights = {"bad": 2.0, "good": 0.5}
    lines = card(classify={"class_weights": weights, "label_smoothing": 0.1}).splitlines()
    assert "| class_weights | bad: 2.0, good: 0.5 |" in lines
    assert "| label_smoothing | 0.1 |" in lines
    lines = card(classify={"class_weights": "balanced", "lm_weight": 0.5}).splitlines()
    assert "| class_weights | balanced |" in lines
    assert "| lm_weight | 0.5 |" in lines


def test_the_limits_say_when_the_checkpoint_was_chosen_on_the_held_out_rows(card: WriteCard):
    sentence = "its checkpoint was chosen on these rows"
    assert sentence in card().partition("## Limits")[2]
    assert sentence not in card(train={"load_best_model_at_end": False})
    assert sentence not in card(metrics={"train_loss": 1.0})


def test_a_base_of_this_machine_is_not_taken_for_one_of_the_hub(card: WriteCard, tmp_path: Path):
    (tmp_path / "tiny-bert").mkdir()
    text = card(model={"checkpoint": str(tmp_path / "tiny-bert")})
    assert '"path/to/tiny-bert",' in text
    assert str(tmp_path) not in text
    assert "base_model" not in text


def run_code(text: str, folder: Path, base: Path) -> dict[str, object]:
    """Run the code block of a card, with folders of this machine in the place of its names."""
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    found: dict[str, object] = {}
    exec(code.replace("path/to/this/folder", str(folder)).replace(BASE, str(base)), found)
    return found


def test_the_code_of_an_adapters_card_gives_the_logits_of_the_run(card: WriteCard, tmp_path: Path):
    base, folder = tmp_path / "base", tmp_path / "run"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "text", "another"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(base)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, initializer_range=0.4,
    )  # fmt: skip
    BertModel(config).save_pretrained(base)
    settings = ModelSettings(str(base))
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", init_lora_weights=False)
    model = attach_lora(load_classifier(settings, NAMES), lora).eval()
    tokenizer = load_tokenizer(settings)
    save_model(model, tokenizer, folder)
    found = run_code(card(), folder, base)
    assert type(found["model"]).__name__ == "PeftModelForSequenceClassification"
    assert found["base"].config.id2label == dict(enumerate(NAMES))
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")) for text in ("a text", "another")]
    expected = torch.cat([one.logits for one in alone])
    assert found["logits"].shape == (2, 3)
    assert torch.allclose(found["logits"], expected, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


def test_the_code_of_a_whole_decoders_card_gives_the_logits_of_the_run(
    card: WriteCard, gpt2_checkpoint: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    model = load_classifier(ModelSettings(str(gpt2_checkpoint)), NAMES)
    with torch.no_grad():
        model.get_submodule("score").weight.normal_()
    save_model(model, load_tokenizer(ModelSettings(str(gpt2_checkpoint))), tmp_path / "run")
    text = card(adapter=None, model={"checkpoint": "openai-community/gpt2"})
    found = run_code(text, tmp_path / "run", gpt2_checkpoint)
    backbone = GPT2LMHeadModel.from_pretrained(gpt2_checkpoint).transformer
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in ("a text", "another")]
        last = torch.cat([backbone(one).last_hidden_state[:, -1] for one in ids])
    expected = last @ model.get_submodule("score").weight.T
    assert found["logits"].shape == (2, 3)
    assert torch.allclose(found["logits"], expected, atol=1e-4)
