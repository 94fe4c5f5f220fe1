"""Conversations to token ids and labels.

Labels are masked by position, never by token id: GPT-2's padding token *is* its end-of-text token,
and a mask by id would hide every stop from the loss.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.control_tokens import conversation_problems
from sft_kit.data.examples import (
    ROW,
    TOKEN,
    Examples,
    ExampleWriter,
    batched,
    flat_examples,
    from_buffers,
    in_memory,
    place_names,
)
from sft_kit.data.plain_templates import chat_renderer
from sft_kit.data.rows import IGNORED, Conversation, Example
from sft_kit.data.segments import Segment, encode_segments, leading_special_tokens
from sft_kit.data.templates import Template
from sft_kit.errors import DataError, Problem, TemplateError
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["completion", "all"]

ROWS_AT_ONCE = 1024
"""Rows encoded in one call: enough for all cores, and few beside a large file."""


def tokenize(
    conversations: Iterable[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    settings: DataSettings,
) -> Examples:
    """Render, encode, label and cut conversations.

    Args:
        conversations: Rows as read.
        tokenizer: Carries the template; its `model_max_length` bounds `settings.max_length`.
        template: From `choose_template`.
        settings: `max_length` in tokens, `loss_on`.

    Returns:
        One example per conversation, in order, also those without a supervised token left.

    Raises:
        DataError: A row spells one of the tokenizer's special tokens in its text, or the template
            can't render it.
    """
    parts = in_memory()
    writer = ExampleWriter(parts)
    problems: list[Problem] = []
    for rows in batched(conversations, ROWS_AT_ONCE):
        try:
            write_examples(writer, rows, tokenizer, template, settings)
        except DataError as error:
            problems += error.problems
    refuse_unrenderable(problems)
    return from_buffers(parts, writer.files)


def write_examples(
    writer: ExampleWriter,
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    settings: DataSettings,
    *,
    are_checked: bool = False,
) -> None:
    """Tokenize some conversations and append them; the other arguments are those of `tokenize`.

    With `are_checked` rows that spell a special token are not looked for: reading refused them.

    Raises:
        DataError: One of them can't be rendered; none is appended then.
    """
    rows, segment_ids = _encode_all(conversations, tokenizer, template, are_checked=are_checked)
    max_length = min(settings.max_length, tokenizer.model_max_length)
    ids, labels, facts = _lay_out(rows, segment_ids, settings.loss_on, max_length)
    facts["num_unlearnt_answers"] = [
        _count_unlearnt(conversation, row, settings.loss_on)
        for conversation, row in zip(conversations, rows, strict=True)
    ]
    writer.add(ids, labels, facts, [conversation.where for conversation in conversations])


def refuse_unrenderable(problems: Sequence[Problem]) -> None:
    """Raise a `DataError` where there are rows that can't be rendered."""
    if problems:
        raise DataError("these rows can't be rendered as training text:", problems)


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    conversation: Conversation,
    loss_on: LossOn = "completion",
) -> tuple[list[int], list[int]]:
    """Encode one conversation without cutting it.

    Returns:
        T token ids and T labels; `IGNORED` at position 0 and wherever nothing is learnt.
    """
    (row,), (row_ids,) = _encode_all([conversation], tokenizer, template)
    return _label(row, row_ids, loss_on)


def to_dataset(examples: Sequence[Example]) -> "Dataset":
    """Make the data set a trainer takes, without the rows that teach nothing.

    Nothing is copied but the names of places: tokens stay where they are, in memory or on the disk.

    Returns:
        Columns `input_ids`, `labels` and, for messages only, `where` in which file a row stood.
    """
    import pyarrow as pa
    from datasets import Dataset

    flat = flat_examples(examples)
    starts = pa.array(np.append(flat.rows["start"], len(flat.ids)).astype(np.int64))
    places = pa.chunked_array(
        [pa.array(names, pa.string()) for names in batched(place_names(flat), ROWS_AT_ONCE)],
        pa.string(),
    )
    table = pa.table(
        {
            "input_ids": pa.LargeListArray.from_arrays(starts, pa.array(flat.ids)),
            "labels": pa.LargeListArray.from_arrays(starts, pa.array(flat.labels)),
            "where": places,
        }
    )
    kept = flat.chosen[flat.fact("num_supervised") > 0]
    rows = Dataset(table, fingerprint=uuid4().hex)  # upstream would read every token for one
    return rows if len(kept) == len(table) else rows.select(kept)


def _encode_all(
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    are_checked: bool = False,
) -> tuple[list[list[Segment]], list[list[list[int]]]]:
    """Render and encode conversations.

    Returns:
        The segments of each row, and the token ids of each segment.
    """
    rows = _render_all(conversations, tokenizer, template, are_checked=are_checked)
    ids = encode_segments(tokenizer, rows)
    # A template writes its leading tokens itself. Plain text gets them as ids: some tokenizers
    # don't take a text for the beginning when tokens are spelled before it.
    prefix = Segment(leading_special_tokens(tokenizer), is_completion=False)
    ((prefix_ids,),) = encode_segments(tokenizer, [[prefix]])
    for conversation, row, row_ids in zip(conversations, rows, ids, strict=True):
        if conversation.text is not None:
            row.insert(0, prefix)
            row_ids.insert(0, prefix_ids)
    return rows, ids


def _render_all(
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    are_checked: bool,
) -> list[list[Segment]]:
    rows: list[list[Segment]] = []
    problems: list[Problem] = []
    render = chat_renderer(tokenizer, template)
    for conversation in conversations:
        if not are_checked:
            problems.extend(conversation_problems(conversation, tokenizer))
        try:
            if conversation.text is None:
                rows.append(render(conversation.messages))
            else:
                text = conversation.text + template.stop_token
                rows.append([Segment(text, is_completion=True)])
        except TemplateError as error:
            problems.append(Problem(str(conversation.where), "messages", error.summary))
    refuse_unrenderable(problems)
    return rows


def _lay_out(
    rows: Sequence[Sequence[Segment]],
    segment_ids: Sequence[Sequence[list[int]]],
    loss_on: LossOn,
    max_length: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.void]]:
    """Join, label and cut rows as `_label` does one, all of them at once. T tokens, R rows.

    Returns:
        (T,) token ids, (T,) labels, and (R,) what is known of the rows.
    """
    sizes = [len(ids) for row in segment_ids for ids in row]
    learnt = [loss_on == "all" or segment.is_completion for row in rows for segment in row]
    lengths = np.array([sum(map(len, row)) for row in segment_ids], np.int64)
    flat = chain.from_iterable(chain.from_iterable(segment_ids))
    ids = np.fromiter(flat, TOKEN, int(lengths.sum()))
    places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    is_learnt = np.repeat(np.array(learnt, np.bool_), sizes) & (places > 0)
    kept = places < max_length
    ids, labels = ids[kept], np.where(is_learnt, ids, IGNORED)[kept].astype(TOKEN)
    facts = np.zeros(len(rows), ROW)
    facts["end"] = np.cumsum(np.minimum(lengths, max_length))
    facts["start"][1:] = facts["end"][:-1]
    facts["was_cut"] = lengths > max_length
    supervised = np.flatnonzero(labels != IGNORED)
    first, last = np.searchsorted(supervised, (facts["start"], facts["end"]))
    facts["num_supervised"] = last - first
    facts["last_label"] = IGNORED
    facts["last_label"][last > first] = labels[supervised[last[last > first] - 1]]
    return ids, labels, facts


def _label(
    segments: Sequence[Segment], segment_ids: Sequence[list[int]], loss_on: LossOn
) -> tuple[list[int], list[int]]:
    input_ids = list(chain.from_iterable(segment_ids))
    labels: list[int] = []
    for segment, ids in zip(segments, segment_ids, strict=True):
        is_learnt = loss_on == "all" or segment.is_completion
        labels.extend(ids if is_learnt else [IGNORED] * len(ids))
    # Nothing predicts the first token; counting its label would scale the loss by (n - 1) / n.
    labels[:1] = [IGNORED] * len(labels[:1])
    return input_ids, labels


def _count_unlearnt(conversation: Conversation, row: Sequence[Segment], loss_on: LossOn) -> int:
    """Count the answers that the template lets stand in the prompt only."""
    if loss_on == "all" or conversation.text is not None:
        return 0
    num_answers = sum(message["role"] == "assistant" for message in conversation.messages)
    return num_answers - sum(segment.is_completion for segment in row)
