"""Training rows and held-out rows of an objective, ready for the Trainer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from sft_kit.data.corpus.corrupted import Corrupt, CorruptedRows, pairing_seed
from sft_kit.data.corpus.inspection import (
    RowFigures,
    chosen_rows,
    doubtful_rows,
    has_labels,
    measure_rows,
    nothing_learnt,
)
from sft_kit.data.corpus.report import TextSplits
from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corpus.streaming import StreamedRows
from sft_kit.data.corpus.tokenized import tokenize_texts
from sft_kit.data.corruption.choose import Objective
from sft_kit.data.corruption.draws import row_seed
from sft_kit.errors import DataError
from sft_kit.settings import TextDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HOLD_OUT = "raise data.eval_fraction, or give more texts in data.eval_path"


@dataclass(frozen=True, slots=True)
class Datasets:
    """Rows of an objective.

    Attributes:
        train: Corrupted anew in each epoch.
        eval: Corrupted alike whenever they are asked for; may be empty.
        first: A training row.
        num_tokens: Tokens of the training texts; None of a stream.
        most_frequent: The token that is a label most often in the training rows; None of a stream.
        warnings: What works but was probably not meant.
    """

    train: CorruptedRows | StreamedRows
    eval: CorruptedRows
    first: Corrupted
    num_tokens: int | None = None
    most_frequent: int | None = None
    warnings: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Say how many rows were made of the texts."""
        if isinstance(self.train, StreamedRows):
            return ["rows: read, tokenized and shuffled while training (data.streaming)"]
        return [
            f"rows: {len(self.train):,} to train on, {len(self.eval):,} held out, from "
            f"{self.num_tokens:,} tokens of training texts"
        ]


def make_datasets(
    texts: TextSplits,
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: Vocabulary,
    settings: TextDataSettings,
    objective: Objective,
    corrupt: Corrupt,
    seed: int,
) -> Datasets:
    """Tokenize texts, cut them into rows, and have the rows corrupted as they are asked for.

    Args:
        texts: From `load_texts`; the training texts of a stream are read again and again.
        tokenizer: Makes the tokens.
        vocabulary: Of the tokenizer.
        settings: The `data` section.
        objective: What the rows are for.
        corrupt: Its corruption.
        seed: Decides order and corruption of the training rows; those of the held-out rows follow
            `data.split_seed`, so that runs can be compared.

    Raises:
        DataError: There is no row to train on, or one would be longer than the model's context;
            nothing is learnt of the rows, or nothing is asked of the held-out ones.
    """
    shorter = replace(settings, max_length=objective.row_length)
    layout, words = objective.layout, objective.words
    # What is wrong with both parts is said of the training texts.
    if settings.streaming:
        stream = StreamedRows(
            shorter, tokenizer, vocabulary, corrupt, layout=layout, words=words, seed=seed
        )
        first = stream.first()
        if first is None:
            raise DataError(f"{settings.path}: {nothing_learnt(objective.name)}")
        evaluation = _held_out(texts, tokenizer, vocabulary, shorter, objective, corrupt)
        return Datasets(stream, evaluation, first)
    rows = tokenize_texts(texts.train, tokenizer, vocabulary, shorter, layout=layout, words=words)
    if not len(rows):
        raise DataError(f"{settings.path}: the texts give no row to train on: add text")
    train = CorruptedRows(rows, corrupt, seed=seed)
    figures = measure_split(train, objective, vocabulary, tokenizer)
    if not figures.num_learnt:
        raise DataError(
            f"{settings.path}: {nothing_learnt(objective.name, figures.unknown_fraction)}"
        )
    evaluation = _held_out(texts, tokenizer, vocabulary, shorter, objective, corrupt)
    warnings = doubtful_rows(figures, settings, held_out=len(evaluation) > 0)
    frequent = int(figures.label_counts.argmax())
    return Datasets(train, evaluation, train[0], len(rows.stream.ids), frequent, tuple(warnings))


def _held_out(
    texts: TextSplits,
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: Vocabulary,
    settings: TextDataSettings,
    objective: Objective,
    corrupt: Corrupt,
) -> CorruptedRows:
    place = settings.eval_path or settings.path
    layout, words = objective.layout, objective.words
    try:
        rows = tokenize_texts(
            texts.eval, tokenizer, vocabulary, settings, layout=layout, words=words
        )
    except DataError as error:
        raise DataError(
            f"{place}: the held-out part can't be used: {error}; {_HOLD_OUT}"
        ) from error
    evaluation = CorruptedRows(rows, corrupt, seed=settings.split_seed, fixed=True)
    if texts.eval and not any(
        has_labels(evaluation[index]) for index in chosen_rows(len(evaluation))
    ):
        why = nothing_learnt(objective.name)
        raise DataError(f"{place}: the held-out part can't be used: {why}; {_HOLD_OUT}")
    return evaluation


def measure_split(
    split: CorruptedRows,
    objective: Objective,
    vocabulary: Vocabulary,
    tokenizer: "PreTrainedTokenizerBase",
) -> RowFigures:
    """Count what is in a split's rows (`MAX_MEASURED` at most), and what epoch 0 does to them."""
    unknown = tokenizer.unk_token_id
    figures = measure_rows(
        _before_and_after(split),
        len(split),
        vocabulary,
        # GPT-2's byte-level tokenizer calls its end-of-text token the unknown one, too.
        None if unknown == tokenizer.eos_token_id else cast("int | None", unknown),
        words=objective.words,
        left_to_right=objective.layout == "causal",
    )
    figures.num_spelled = split.rows.stream.num_spelled
    return figures


def _before_and_after(split: CorruptedRows) -> Iterator[tuple[Row, Corrupted]]:
    for index in chosen_rows(len(split)):
        seed = row_seed(split.seed, 0, index)
        yield split.rows.row(index, pairing_seed(seed)), split[index]
