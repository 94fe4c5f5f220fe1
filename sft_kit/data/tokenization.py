"""Conversations to token ids and labels.

Labels are masked by position, never by token id: GPT-2's padding token *is* its end-of-text token,
and a mask by id would hide every stop from the loss.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal, cast

from sft_kit.data.rows import IGNORED, Conversation, Example
from sft_kit.data.templates import (
    Segment,
    Template,
    begins_with_bos,
    render_segments,
    spelled_special_tokens,
)
from sft_kit.errors import DataError, Problem, TemplateError
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["completion", "all"]


def tokenize(
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    settings: DataSettings,
) -> list[Example]:
    """Render, encode, label and cut conversations.

    Args:
        conversations: Rows as read.
        tokenizer: Carries the template; its `model_max_length` bounds `settings.max_length`.
        template: From `choose_template`.
        settings: `max_length` in tokens, `loss_on`.

    Returns:
        One example per conversation, in order, also those without a supervised token left.

    Raises:
        DataError: A row spells one of the tokenizer's special tokens in its text.
        TemplateError: The template can't render a row.
    """
    segments = _render_all(conversations, tokenizer, template)
    ids = _encode_segments(tokenizer, [segment.text for row in segments for segment in row])
    max_length = min(settings.max_length, tokenizer.model_max_length)
    examples: list[Example] = []
    position = 0
    for conversation, row in zip(conversations, segments, strict=True):
        row_ids = ids[position : position + len(row)]
        position += len(row)
        input_ids, labels = _label(row, row_ids, settings.loss_on)
        examples.append(
            Example(
                input_ids=input_ids[:max_length],
                labels=labels[:max_length],
                was_cut=len(input_ids) > max_length,
                where=conversation.where,
            )
        )
    return examples


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
    (row,) = _render_all([conversation], tokenizer, template)
    return _label(row, _encode_segments(tokenizer, [segment.text for segment in row]), loss_on)


def to_dataset(examples: Iterable[Example]) -> "Dataset":
    """Make the data set a trainer takes, without the rows that teach nothing.

    Returns:
        Columns `input_ids` and `labels`.
    """
    from datasets import Dataset

    kept = [example for example in examples if any(label != IGNORED for label in example.labels)]
    return Dataset.from_dict(
        {
            "input_ids": [example.input_ids for example in kept],
            "labels": [example.labels for example in kept],
        }
    )


def _render_all(
    conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", template: Template
) -> list[list[Segment]]:
    rows: list[list[Segment]] = []
    problems: list[Problem] = []
    prefix = str(tokenizer.bos_token) if begins_with_bos(tokenizer) else ""
    for conversation in conversations:
        problems.extend(_special_token_problems(conversation, tokenizer))
        try:
            if conversation.text is None:
                rows.append(render_segments(tokenizer, template, conversation.messages))
            else:
                text = prefix + conversation.text + template.stop_token
                rows.append([Segment(text, is_completion=True)])
        except TemplateError as error:
            problems.append(Problem(str(conversation.where), "messages", error.summary))
    if problems:
        raise DataError("these rows can't be rendered as training text:", problems)
    return rows


def _special_token_problems(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase"
) -> Iterable[Problem]:
    """Find text that the tokenizer would read as a control token, such as a stop in mid-answer."""
    texts = [message["content"] for message in conversation.messages] + [conversation.text or ""]
    for token in spelled_special_tokens(tokenizer, texts):
        yield Problem(
            str(conversation.where),
            "content",
            f"spells the special token {token!r}, which the model reads as a control token",
            "remove or rewrite it in the row",
        )


def _encode_segments(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    return cast(
        "list[list[int]]",
        tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"],
    )


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
