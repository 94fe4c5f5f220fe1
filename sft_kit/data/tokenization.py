"""Conversations to token ids and labels.

Labels are masked by position, never by token id: GPT-2's padding token *is* its end-of-text token,
and a mask by id would hide every stop from the loss.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal

from sft_kit.data.rows import IGNORED, Conversation, Example
from sft_kit.data.segments import Segment, encode_segments, leading_special_tokens
from sft_kit.data.templates import Template, render_segments, spelled_special_tokens
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
    rows, ids = _encode_all(conversations, tokenizer, template)
    max_length = min(settings.max_length, tokenizer.model_max_length)
    examples: list[Example] = []
    for conversation, row, row_ids in zip(conversations, rows, ids, strict=True):
        input_ids, labels = _label(row, row_ids, settings.loss_on)
        examples.append(
            Example(
                input_ids=input_ids[:max_length],
                labels=labels[:max_length],
                was_cut=len(input_ids) > max_length,
                where=conversation.where,
                num_unlearnt_answers=_count_unlearnt(conversation, row, settings.loss_on),
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
    (row,), (row_ids,) = _encode_all([conversation], tokenizer, template)
    return _label(row, row_ids, loss_on)


def to_dataset(examples: Iterable[Example]) -> "Dataset":
    """Make the data set a trainer takes, without the rows that teach nothing.

    Returns:
        Columns `input_ids`, `labels` and, for messages only, `where` in which file a row stood.
    """
    from datasets import Dataset

    kept = [example for example in examples if any(label != IGNORED for label in example.labels)]
    return Dataset.from_dict(
        {
            "input_ids": [example.input_ids for example in kept],
            "labels": [example.labels for example in kept],
            "where": [str(example.where) for example in kept],
        }
    )


def _encode_all(
    conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", template: Template
) -> tuple[list[list[Segment]], list[list[list[int]]]]:
    """Render and encode conversations.

    Returns:
        The segments of each row, and the token ids of each segment.
    """
    rows = _render_all(conversations, tokenizer, template)
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
    conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase", template: Template
) -> list[list[Segment]]:
    rows: list[list[Segment]] = []
    problems: list[Problem] = []
    for conversation in conversations:
        problems.extend(_special_token_problems(conversation, tokenizer))
        try:
            if conversation.text is None:
                rows.append(render_segments(tokenizer, template, conversation.messages))
            else:
                text = conversation.text + template.stop_token
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
