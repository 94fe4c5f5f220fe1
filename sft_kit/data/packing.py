"""Documents packed into full context windows, for pretraining."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, cast

from sft_kit.data.rows import IGNORED, Conversation, Example
from sft_kit.data.segments import leading_special_tokens
from sft_kit.errors import DataError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pack_documents(
    documents: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", window: int
) -> list[Example]:
    """Join documents with the end-of-text token and cut the stream into windows.

    A document begins with what the tokenizer puts in front of a text, such as Llama's `<s>`. Every
    token is learnt but a window's first, which nothing predicts. The stream's last, partial window
    is dropped.

    Args:
        documents: Rows of plain text.
        tokenizer: Its end-of-text token closes each document.
        window: Tokens per example.

    Raises:
        DataError: Rows that are chats, text too short to fill one window, or a window longer than
            the model's context.
    """
    if window > tokenizer.model_max_length:
        raise DataError(
            f"data.max_length={window} is longer than the model's context of "
            f"{tokenizer.model_max_length} tokens: lower it, or raise the context in model.config"
        )
    problems = [
        Problem(str(document.where), "", "is a chat, not plain text", "set data.format=text")
        for document in documents
        if document.text is None
    ]
    if problems:
        raise DataError(f"{len(problems)} rows can't be packed", problems)
    texts = [document.text or "" for document in documents]
    encoded = cast(
        "list[list[int]]",
        tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [],
    )
    eos = cast("int | None", tokenizer.eos_token_id)
    if eos is None:
        raise DataError("the tokenizer has no end-of-text token to close documents with")
    prefix = leading_special_tokens(tokenizer)
    before = cast("list[int]", tokenizer(prefix, add_special_tokens=False)["input_ids"])
    stream = list(chain.from_iterable([*before, *ids, eos] for ids in encoded))
    starts = range(0, len(stream) - window + 1, window)
    if documents and not starts:
        raise DataError(
            f"the text has {len(stream):,} tokens, which do not fill one window of {window:,}: "
            "add text or lower data.max_length"
        )
    return [_window(stream[start : start + window], documents[0]) for start in starts]


def _window(ids: list[int], first: Conversation) -> Example:
    return Example(input_ids=ids, labels=[IGNORED, *ids[1:]], was_cut=False, where=first.where)
