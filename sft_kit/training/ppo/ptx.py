"""PTX: rows of language that are learnt beside the reward."""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from sft_kit.data.checks import check_examples
from sft_kit.data.packing import pack_documents
from sft_kit.data.rows import IGNORED, Example
from sft_kit.data.splits import load_conversations
from sft_kit.data.templates import Template
from sft_kit.data.tokenization import tokenize
from sft_kit.errors import ConfigError, DataError, Problem
from sft_kit.settings import DataSettings
from sft_kit.settings.ppo import PtxSettings
from sft_kit.training.ppo.order import prompt_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHARED = sorted({of.name for of in fields(PtxSettings)} & {of.name for of in fields(DataSettings)})
_SHARED_KEY = re.compile(rf"\bdata\.({'|'.join(_SHARED)})\b")
_ADVICE_WITHOUT_KEY = re.compile(
    r",? or (?:leave them out with|set) data\.on_bad_row=skip|"
    r" \(data\.max_dropped_fraction\)|, or accept a larger share|, data\.num_rows"
)
"""Advice to change settings of `data` that `ptx` does not have."""


def load_ptx_rows(
    settings: PtxSettings, tokenizer: "PreTrainedTokenizerBase", template: Template
) -> list[Example]:
    """Read the rows that PTX learns: chats as in fine-tuning, plain text packed into full windows.

    Args:
        settings: The `ptx` section.
        tokenizer: The policy's.
        template: The chat template of the prompts.

    Returns:
        Rows with at least one supervised token.

    Raises:
        ConfigError: `ptx.path` is not set.
        DataError: Rows that can't be read or can't teach; keys are those of the `ptx` section.
    """
    if settings.path is None:
        problem = Problem("", "ptx.path", "found null, accepts a file, a folder or a Hub data set",
            "name one, or set ptx.coefficient=0",
        )  # fmt: skip
        raise ConfigError("PTX has nothing to learn from:", [problem])
    data = _data_settings(settings)
    data.max_length = min(data.max_length, tokenizer.model_max_length)
    try:
        rows = load_conversations(data).train
        if all(row.text is not None for row in rows):
            return pack_documents(rows, tokenizer, data.max_length)
        examples = tokenize(rows, tokenizer, template, data)
        check_examples(examples, template, tokenizer, data)
    except DataError as error:
        problems = [
            Problem(found.where, *map(_in_ptx, (found.key, found.message, found.todo)))
            for found in error.problems
        ]
        raise type(error)(_in_ptx(error.summary), problems) from error
    return [row for row in examples if any(label != IGNORED for label in row.labels)]


def ptx_warnings(
    rows: Sequence[Example],
    settings: PtxSettings,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
) -> list[str]:
    """Say what looks unintended in rows that can be learnt.

    Args:
        rows: From `load_ptx_rows`.
        settings: The `ptx` section.
        tokenizer: The policy's.
        template: The chat template of the prompts.
    """
    if not any(row.was_cut or IGNORED in row.labels[1:] for row in rows):
        return []  # every token of every row is learnt, as in packed text
    return [
        _in_ptx(warning)
        for warning in check_examples(rows, template, tokenizer, _data_settings(settings))
    ]


def ptx_batch(rows: Sequence[Example], cursor: int, batch_size: int, seed: int) -> list[Example]:
    """Take the next rows of the cycle that PTX goes through, shuffled anew in every epoch.

    Args:
        rows: All rows, at least 1.
        cursor: Rows taken so far.
        batch_size: Rows to take; may be more than there are.
        seed: Of the run.
    """
    return [rows[index] for index in prompt_batch(len(rows), cursor, batch_size, seed)]


def _data_settings(settings: PtxSettings) -> DataSettings:
    chosen = {name: getattr(settings, name) for name in _SHARED}
    return DataSettings(**chosen, eval_fraction=0)


def _in_ptx(text: str) -> str:
    return _SHARED_KEY.sub(r"ptx.\1", _ADVICE_WITHOUT_KEY.sub("", text))
