"""Rows written to files, and tokenizers that end a text as T5's and BART's do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = ("the cat sat on the mat", "a dog ate the hat", "今天天气很好", "你好世界 hello world")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write rows, or the text of a file, and return its path."""

    def write(rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        if not isinstance(rows, str):
            lines = [
                row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
                for row in rows  # type: ignore[attr-defined]
            ]
            rows = "\n".join(lines) + "\n"
        path.write_text(rows, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def t5_tokenizer() -> "PreTrainedTokenizerFast":
    """Unigram model like T5's: padding 0, `</s>` 1 behind every text, unknown 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(WORDS * 4, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def bart_tokenizer() -> "PreTrainedTokenizerFast":
    """Byte-level BPE like BART's: `<s>` 0 before and `</s>` 2 behind every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(WORDS, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>", mask_token="<mask>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip
