"""Tokenizers of other kinds than GPT-2's: they put a blank before a text, or tokens around it."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = (
    "hello world, the play was played well",
    "今天天气很好，我们去公园散步。",
    "[Round 1]\n\n问：什么是水？\n\n答：水是一种液体。\n\n[Round 2]\n\n问：\n\n答：",
    "Sesame! sesame? barley? yes and no",
)
SPECIAL = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
# As ChatGLM3: a role token opens a message, so an answer ends where the next one opens.
ROLES = (
    "{{- '[gMASK]<sop>' -}}{%- for m in messages -%}"
    "{{- '<|' + m['role'] + '|>\\n ' + m['content'] -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}"
    "{%- elif messages[-1]['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
)
# As ChatGLM2: only a last answer begins with a blank and has a stop token.
ROUNDS = (
    "{{- '[gMASK]<sop>' -}}{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}{{- '问：' + m['content'] + '\\n\\n答：' -}}"
    "{%- elif loop.last -%}{{- ' ' + m['content'] + eos_token -}}"
    "{%- else -%}{{- m['content'] + '\\n\\n' -}}{%- endif -%}{%- endfor -%}"
)
KINDS = ("prepend", "metaspace-first", "metaspace-always")


def train(kind: str, words: tuple[str, ...] = WORDS) -> "PreTrainedTokenizerFast":
    """Train a SentencePiece-like BPE: blanks are ▁, unknown characters fall back to bytes.

    Args:
        kind: How the blank before a text comes about: "prepend" as in Llama 2 and ChatGLM,
            "metaspace-first" as in newer conversions of Llama 2 (only where the whole text begins),
            "metaspace-always" (at each piece between special tokens).
        words: What to learn merges from; a line end stays a byte unless it is among them.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if kind == "prepend":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        scheme = kind.removeprefix("metaspace-")
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    lines = [line for text in words for line in text.split("\n")] if words is WORDS else words
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="</s>",
        extra_special_tokens=list(SPECIAL),
    )


def put_in_front(
    tokenizer: "PreTrainedTokenizerFast", *tokens: str, behind: tuple[str, ...] = ()
) -> None:
    """Let the tokenizer add special tokens around every text."""
    from tokenizers.processors import TemplateProcessing

    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (*tokens, *behind)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, "$A", *behind], special_tokens=ids
    )


@pytest.fixture(scope="session")
def trained_kinds() -> "dict[str, PreTrainedTokenizerFast]":
    """One tokenizer of each of KINDS."""
    return {kind: train(kind) for kind in KINDS}


@pytest.fixture
def blank_tokenizer(
    trained_kinds: "dict[str, PreTrainedTokenizerFast]",
) -> "Callable[[str], PreTrainedTokenizerFast]":
    """Function from a kind to a tokenizer that puts `[gMASK]<sop>` and a blank before a text."""

    def get(kind: str) -> "PreTrainedTokenizerFast":
        tokenizer = copy.deepcopy(trained_kinds[kind])
        put_in_front(tokenizer, "[gMASK]", "<sop>")
        return tokenizer

    return get


@pytest.fixture(scope="session")
def train_tokenizer() -> "Callable[..., PreTrainedTokenizerFast]":
    """Give the function that trains a tokenizer of one of KINDS."""
    return train


@pytest.fixture(scope="session")
def put_tokens_in_front() -> Callable[..., None]:
    """Give the function that lets a tokenizer add special tokens."""
    return put_in_front
