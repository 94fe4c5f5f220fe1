"""The card of a pretraining: what it says of the run, and that its code runs as it stands."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from sft_kit.artifacts.pretraining_card import write_pretraining_card
from sft_kit.artifacts.save import save_model
from sft_kit.models.adapters import attach_lora

RECORD: dict[str, object] = {
    "recipe": "pretrain_x.py",
    "settings": {
        "model": {"checkpoint": None, "tokenizer": "/secret/tokenizer", "architecture": "bert",
                  "quantization": "none", "config": {"hidden_size": 8}},
        "adapter": None,
        "data": {"path": "/secret/texts.txt", "max_length": 64},
        "pretrain": {"objective": "spell", "mask_fraction": 0.15, "confusions": "/secret/c.json",
                     "random_token_fraction": None},
        "train": {"learning_rate": 5e-4, "seed": 42},
        "sample": {"prompts": []},
    },
    "data": {"num_train_rows": 1_900, "num_eval_rows": 100, "fingerprint": "abc"},
    "pretraining": {"kind": "masked", "objective": "mlm"},
}  # fmt: skip
METRICS = {"eval_loss": 2.5, "eval_accuracy": 0.75}
TOKENS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<extra_id_0>", "A", "a", "text", "that", "goes",
    "on", "with", "behind", "it", "mistake", "to", "read", ".", "translate", ":",
]  # fmt: skip
SMALL = {"vocab_size": len(TOKENS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
WriteCard = Callable[..., str]


@pytest.fixture
def card(tmp_path: Path) -> WriteCard:
    """Writes the card of an objective, with some settings changed section by section."""

    def write(
        kind: str = "masked",
        objective: str = "mlm",
        num_tokens: int | None = None,
        metrics: dict[str, float] = METRICS,
        **sections: dict[str, object],
    ) -> str:
        record = copy.deepcopy(RECORD)
        record["pretraining"] = {"kind": kind, "objective": objective}
        for name, values in sections.items():
            part = record["data"] if name == "read" else record["settings"]
            part |= values if name == "read" else {name: {**(part[name] or {}), **values}}
        path = tmp_path / "README.md"
        write_pretraining_card(path, "my-run", record, metrics, ["loss.png"], num_tokens)
        return path.read_text(encoding="utf-8")

    return write


# --- what it says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "task", "objective"),
    [
        ("causal", "text-generation", "clm"),
        ("masked", "fill-mask", "mlm"),
        ("pairs", "fill-mask", "mlm"),
        ("seq2seq", "text2text-generation", "spans"),
    ],
)
def test_the_header_is_what_the_hub_reads(card: WriteCard, kind: str, task: str, objective: str):
    expected = {
        "library_name": "transformers", "pipeline_tag": task, "tags": ["sft_kit", "pretrained"],
    }  # fmt: skip
    assert yaml.safe_load(card(kind, objective).split("---\n")[1]) == expected


def test_a_new_model_is_called_so_and_a_checkpoint_by_its_name(card: WriteCard, tmp_path: Path):
    assert "A new model of the architecture `bert`" in card()
    text = card(model={"checkpoint": "google-bert/bert-base-chinese"})
    assert "A model trained from `google-bert/bert-base-chinese`" in text
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "google-bert/bert-base-chinese"
    (tmp_path / "my-bert").mkdir()
    text = card(model={"checkpoint": str(tmp_path / "my-bert")}, adapter={"r": 4})
    assert "A LoRA adapter for `my-bert`" in text
    assert 'AutoModelForMaskedLM.from_pretrained("path/to/my-bert"' in text
    assert "base_model" not in text


def test_no_place_of_this_machine_is_told(card: WriteCard, tmp_path: Path):
    (tmp_path / "base").mkdir()
    texts = [card(objective="spell"), card(model={"checkpoint": str(tmp_path / "base")})]
    assert not [text for text in texts if "/secret" in text or str(tmp_path) in text]


def test_objective_data_and_tokens_are_told(card: WriteCard):
    text = card(num_tokens=1_234_567)
    lines = text.splitlines()
    for line in (
        "| training rows | 1900 |", "| held-out rows | 100 |", "| data fingerprint | `abc` |",
        "| tokens read in training | 1,234,567 |", "| tokens per example | 64 |",
        "| mask_fraction | 0.15 |", "| eval_accuracy | 0.75 |", "![loss.png](loss.png)",
    ):  # fmt: skip
        assert line in lines
    assert "random_token_fraction" not in text
    assert "Devlin et al. 2018" in text
    assert "what 1,900 texts of plain text taught it" in " ".join(text.split())
    assert "tokens read in training" not in card()
    assert "whether two parts follow each other" in card("pairs")


def test_a_stream_has_no_number_of_texts(card: WriteCard):
    text = card(read={"num_train_rows": 0})
    assert "training rows" not in text
    assert "a stream of plain text taught it" in " ".join(text.split())


def test_the_limits_are_those_of_the_objective(card: WriteCard):
    def limits(**how: object) -> str:
        return " ".join(card(**how).partition("## Limits")[2].split())

    assert "does not continue texts" in limits()
    assert "does not continue texts" not in limits(objective="prefix")
    assert "mistakes made by a program" in limits(objective="spell")
    assert "follows no instructions" in limits(kind="causal", objective="clm")
    assert "1900 training pairs" in limits(kind="seq2seq", objective="pairs of texts")
    assert "Nothing was held out" in limits(metrics={"train_loss": 1.0})


# --- what its code does --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    vocab = {token: number for number, token in enumerate(TOKENS)}
    return BertTokenizer(
        vocab=vocab, do_lower_case=False, additional_special_tokens=["<extra_id_0>"],
        bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip


def bert(cls: type[PreTrainedModel]) -> PreTrainedModel:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.5, max_position_embeddings=32, type_vocab_size=4, **SMALL,
    )  # fmt: skip
    return cls(config).eval()


def bart() -> PreTrainedModel:
    config = BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, init_std=0.5,
        max_position_embeddings=80, decoder_start_token_id=3, forced_eos_token_id=None, **SMALL,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def t5() -> PreTrainedModel:
    config = T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **SMALL
    )
    return T5ForConditionalGeneration(config).eval()


def gpt2() -> PreTrainedModel:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=80, **SMALL)
    return GPT2LMHeadModel(config).eval()


def run_code(text: str, folder: Path, base: str = "") -> dict[str, object]:
    """Run the code block of a card, with folders of this machine in the place of its names."""
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    code = code.replace("path/to/this/folder", str(folder))
    found: dict[str, object] = {}
    exec(code.replace("path/to/base", base), found)
    return found


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    save_model(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "cls"), [("masked", BertForMaskedLM), ("pairs", BertForPreTraining)]
)
def test_a_mask_is_filled_with_the_likeliest_token(
    card: WriteCard, tmp_path: Path, tokenizer, kind: str, cls: type[PreTrainedModel]
):
    model = bert(cls)
    found = run_code(card(kind), saved(model, tokenizer, tmp_path / "run"))
    assert type(found["model"]) is cls
    words = torch.tensor([[2, 6, 8, 12, 7, 4, 18, 3]])  # [CLS] A text with a [MASK] . [SEP]
    logits = model(words)[0]
    assert found["filled_in"] == tokenizer.decode([logits[0, 5].argmax()])


def test_a_text_is_corrected_character_by_character(card: WriteCard, tmp_path: Path, tokenizer):
    model = bert(BertForMaskedLM)
    found = run_code(card(objective="spell"), saved(model, tokenizer, tmp_path / "run"))
    words = torch.tensor([[2, 6, 8, 12, 7, 15, 18, 3]])
    assert found["corrected"] == tokenizer.decode(model(words).logits[0, 1:-1].argmax(-1))


def test_what_follows_a_prefix_is_read_at_its_end_token(card: WriteCard, tmp_path: Path, tokenizer):
    model = bert(BertForMaskedLM)
    found = run_code(card(objective="prefix"), saved(model, tokenizer, tmp_path / "run"))
    words = torch.tensor([[2, 6, 8, 9, 10, 11, 3]])
    assert found["next_token"] == tokenizer.decode([model(words).logits[0, -1].argmax()])


def test_left_to_right_no_token_sees_a_later_one(card: WriteCard, tmp_path: Path, tokenizer):
    model = bert(BertForMaskedLM)
    found = run_code(card(objective="causal"), saved(model, tokenizer, tmp_path / "run"))
    first = model(torch.tensor([[2]])).logits[0, 0]  # alone, the first token sees itself only
    assert torch.allclose(found["logits"][0, 0], first, atol=1e-5)
    assert found["ids"].tolist() == [[2, 6, 8, 9, 10, 11]]


def test_a_blank_is_written_behind_a_text_that_does_not_see_it(
    card: WriteCard, tmp_path: Path, tokenizer
):
    model = bert(BertForMaskedLM)
    found = run_code(card(objective="infill"), saved(model, tokenizer, tmp_path / "run"))
    text = torch.tensor([[2, 6, 8, 12, 7, 4, 18, 3]])
    assert torch.allclose(found["logits"][0, :-1], model(text).logits[0], atol=1e-5)
    both = torch.cat([text, torch.tensor([[2]])], dim=1)
    ends = model(
        both,
        position_ids=torch.tensor([[*range(8), 5]]),
        token_type_ids=torch.tensor([[0] * 8 + [1]]),
        attention_mask=torch.ones(9, 9).bool().index_put(
            (torch.arange(8), torch.tensor(8)), torch.tensor(False)
        )[None, None],
    ).logits[0, -1]  # fmt: skip
    assert torch.allclose(found["logits"][0, -1], ends, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "objective", "make", "read"),
    [
        ("causal", "clm", gpt2, [2, 6, 8, 9, 10, 11, 3]),
        ("seq2seq", "spans", t5, [2, 6, 8, 12, 5, 13, 14, 18, 3]),
        ("seq2seq", "denoise", bart, [2, 6, 8, 12, 7, 4, 18, 3]),
        ("seq2seq", "pairs of texts", t5, [2, 19, 20, 6, 8, 16, 17, 18, 3]),
    ],
)
def test_generators_write_what_they_would_in_memory(
    card: WriteCard, tmp_path: Path, tokenizer, kind: str, objective: str, make, read: list[int]
):
    model = make()
    text = card(kind, objective, data={"prefix": "translate: "})
    found = run_code(text, saved(model, tokenizer, tmp_path / "run"))
    assert found["inputs"]["input_ids"].tolist() == [read]
    expected = model.generate(torch.tensor([read]), max_new_tokens=64, do_sample=False)[0]
    assert found["written"] == tokenizer.decode(expected)


def test_an_adapter_is_put_on_its_base(card: WriteCard, tmp_path: Path, tokenizer):
    base = tmp_path / "base"
    plain = t5()
    plain.save_pretrained(base)
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], init_lora_weights=False)
    model = attach_lora(plain, lora).eval()
    folder = saved(model, tokenizer, tmp_path / "run")
    started = {"checkpoint": str(base), "config": {}}
    text = card("seq2seq", "spans", model=started, adapter={"r": 8})
    found = run_code(text, folder, str(base))
    words = torch.tensor([[2, 6, 8, 12, 5, 13, 14, 18, 3]])
    expected = model.generate(input_ids=words, max_new_tokens=64, do_sample=False)[0]
    assert found["written"] == tokenizer.decode(expected)
