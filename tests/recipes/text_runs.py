"""Texts, tiny tokenizers and settings for runs of the pretraining recipes."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Words = dict[str, object]

ENGLISH = ("good", "fine", "dull", "room", "food", "film", "very", "not", "the", "is", "was")
CHINESE = ("今天", "天气", "他们", "我们", "再见", "公园", "电影", "很好", "不好", "真的")
CHARACTERS = sorted({character for word in CHINESE for character in word} | set("夭汽她门在"))
DIGITS = [str(digit) for digit in range(10)]
ORDINARY = [*ENGLISH, *CHARACTERS, *DIGITS, ".", "。", *(f"##{digit}" for digit in DIGITS)]

SIZES: Mapping[str, Words] = {
    "bert": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 64,
    },
    "t5": {
        "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2,
        "num_heads": 2,
    },
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
    },
}  # fmt: skip
"""Two layers of width 32 and a context of 64 tokens."""

DROPOUT: Mapping[str, tuple[str, ...]] = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
    "t5": ("dropout_rate",),
    "bart": ("dropout", "attention_dropout"),
}


@dataclass(frozen=True)
class Case:
    """A recipe with one of its objectives."""

    stem: str
    family: str
    kind: str
    objective: str
    settings: Words = field(default_factory=dict)
    config: Words = field(default_factory=dict)


def _masked(objective: str, *, pairs: bool = False) -> Case:
    settings = {"pretrain.objective": objective, "pretrain.next_sentence": str(pairs).lower()}
    kind = "pairs" if pairs else "masked"
    return Case("pretrain_bert_mlm", "bert", kind, objective, settings)


def _prefix(objective: str) -> Case:
    settings: Words = {"pretrain.objective": objective}
    config: Words = {"type_vocab_size": 16} if objective == "infill" else {"type_vocab_size": 2}
    return Case("pretrain_prefix_lm", "bert", "masked", objective, settings, config)


CASES: Mapping[str, Case] = {
    "mlm": _masked("mlm"),
    "wwm": _masked("wwm"),
    "spell": _masked("spell"),
    "mlm and next sentences": _masked("mlm", pairs=True),
    "wwm and next sentences": _masked("wwm", pairs=True),
    "bidirectional": _prefix("bidirectional"),
    "causal": _prefix("causal"),
    "prefix": _prefix("prefix"),
    "infill": _prefix("infill"),
    "windows": Case("pretrain_gpt2_clm", "gpt2", "causal", "clm"),
    "documents": Case(
        "pretrain_gpt2_clm", "gpt2", "causal", "clm", {"pretrain.document_mask": "true"}
    ),
    "spans": Case("pretrain_t5_span", "t5", "seq2seq", "spans"),
    "denoise": Case(
        "pretrain_bart_denoise", "bart", "seq2seq", "denoise", {"pretrain.delete_fraction": 0.1}
    ),
}  # fmt: skip


def write_texts(path: Path, num_texts: int = 60, seed: int = 3) -> Path:
    """Write documents of one to six sentences in both languages, no two alike."""
    draw = random.Random(seed)
    lines = []
    for number in range(num_texts):
        sentences = [f"the room {number} is fine."]
        for _ in range(draw.randrange(6)):
            if draw.random() < 0.5:
                sentences.append(" ".join(draw.choices(ENGLISH, k=draw.randint(2, 9))) + ".")
            else:
                sentences.append("".join(draw.choices(CHINESE, k=draw.randint(2, 5))) + "。")
        lines.append(json.dumps({"text": " ".join(sentences)}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_tokenizer(family: str) -> "PreTrainedTokenizerBase":
    """Make a tokenizer over the words of the texts, with the special tokens of a family."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    named = {
        "bert": {
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        "gpt2": {"bos_token": "<|end|>", "eos_token": "<|end|>", "unk_token": "<|end|>"},
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "bart": {
            "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
    }[family]  # fmt: skip
    special = list(dict.fromkeys(named.values()))
    sentinels = [f"<extra_id_{number}>" for number in range(12)] if family == "t5" else []
    tokens = [*special, *ORDINARY, *sentinels]
    core = Tokenizer(
        models.WordPiece(
            {token: number for number, token in enumerate(tokens)}, unk_token=named["unk_token"]
        )
    )
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    around = {"bert": "[CLS] $A [SEP]", "llama": "<s> $A", "t5": "$A </s>", "bart": "<s> $A </s>"}
    if family in around:
        numbers = [(token, number) for number, token in enumerate(special)]
        core.post_processor = processors.TemplateProcessing(
            single=around[family], special_tokens=numbers
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **named, additional_special_tokens=sentinels
    )


def save_tokenizers(folder: Path) -> dict[str, Path]:
    """Save the tokenizer of each family in a folder of its own."""
    folders = {family: folder / family for family in SIZES}
    for family, place in folders.items():
        make_tokenizer(family).save_pretrained(place)
    return folders


def save_model(folder: Path, family: str, tokenizer: Path, *, dropout: float = 0.0) -> Path:
    """Save a random model with a family's head for pretraining, and its tokenizer."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    names = {"bert": "MaskedLM", "gpt2": "CausalLM", "llama": "CausalLM"}
    auto = getattr(transformers, f"AutoModelFor{names.get(family, 'Seq2SeqLM')}")
    words = AutoTokenizer.from_pretrained(tokenizer)
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    if family in ("t5", "bart"):
        start = {"t5": words.pad_token_id, "bart": words.eos_token_id}[family]
        ids |= {"decoder_start_token_id": start, "bos_token_id": words.bos_token_id}
    rates = dict.fromkeys(DROPOUT[family], dropout)
    config = AutoConfig.for_model(family, vocab_size=len(words), **(SIZES[family] | rates | ids))
    torch.manual_seed(17)
    auto.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def new_model(case: Case, tokenizers: Mapping[str, Path], *, dropout: float = 0.0) -> Words:
    """Settings of a new model of two layers."""
    fields = SIZES[case.family] | dict.fromkeys(DROPOUT[case.family], dropout) | case.config
    return {
        "model.tokenizer": tokenizers[case.family],
        "model.architecture": case.family,
        **{f"model.config.{name}": value for name, value in fields.items()},
    }


def going_on(checkpoint: Path) -> Words:
    """Settings that take a checkpoint in place of the recipe's new model."""
    return {
        "model.checkpoint": checkpoint,
        "model.tokenizer": "null",
        "model.architecture": "null",
        "model.config": "{}",
    }


def few_steps(texts: Path, folder: Path, num_steps: int = 4) -> Words:
    """Settings of a few steps, evaluated at every second and saved at the last."""
    return {
        "data.path": texts,
        "data.max_length": 32,
        "data.eval_fraction": 0.2,
        "sample.prompts": "[]",
        "train.output_dir": folder,
        "train.per_device_train_batch_size": 4,
        "train.per_device_eval_batch_size": 4,
        "train.learning_rate": 5e-3,
        "train.warmup_steps": 1,
        "train.max_steps": num_steps,
        "train.logging_steps": 1,
        "train.eval_steps": 2,
        "train.save_steps": num_steps,
        "train.disable_tqdm": "true",
    }
