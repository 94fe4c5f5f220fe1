"""The class doctor: what a classification recipe's data teaches, judged exactly as training would.

It needs the data and the tokenizer, but no weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sft_kit.config import Resolved
from sft_kit.data.labelled.inspection import (
    choose_rows,
    class_balance,
    majority_answer,
    measure_lengths,
    score_answer,
    unknown_labels,
)
from sft_kit.data.labelled.page import write_view
from sft_kit.data.labelled.report import LabelledSplits
from sft_kit.data.labelled.splits import check_splits, read_splits
from sft_kit.data.labelled.tokenization import check_labelled, tokenize_labelled
from sft_kit.data.labelled.view import LabelledView, SplitFigures, show_view
from sft_kit.errors import DataError, FormatError
from sft_kit.models.base import load_tokenizer
from sft_kit.settings import LabelledDataSettings, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def show_classes(
    console: Console, resolved: Resolved, num_examples: int, html: Path | None = None
) -> None:
    """Show the report, in the terminal and as a page, then raise what training would raise.

    Args:
        console: Where to print.
        resolved: Settings of the recipe; its sections `model` and `data` are used.
        num_examples: Training rows to show.
        html: File for the page.

    Raises:
        DataError: Training would refuse this data.
        CheckpointError: No tokenizer.
    """
    settings = resolved.own("data", LabelledDataSettings)
    tokenizer = load_tokenizer(resolved.own("model", ModelSettings))
    splits, refusals = _read_rows(settings)
    try:
        check_splits(splits, settings)
    except DataError as error:
        refusals.append(error)
    view = _look(splits, tokenizer, settings, num_examples, refusals)
    show_view(console, view)
    if html:
        write_view(html, view)
        console.print(Text(f"written: {html}"), soft_wrap=True)
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise DataError("\n".join(map(str, refusals)))


def _read_rows(settings: LabelledDataSettings) -> tuple[LabelledSplits, list[DataError]]:
    """Read the rows; where bad ones would stop training, read the others and return the error."""
    try:
        return read_splits(settings), []
    except FormatError as error:
        return read_splits(replace(settings, on_bad_row="skip")), [error]


def _look(
    splits: LabelledSplits,
    tokenizer: "PreTrainedTokenizerBase",
    settings: LabelledDataSettings,
    num_examples: int,
    refusals: list[DataError],
) -> LabelledView:
    """Gather what is shown; what training would refuse joins the refusals."""
    names = [*splits.label_names, *unknown_labels(splits.eval, splits.label_names)]
    train = tokenize_labelled(splits.train, tokenizer, names, settings)
    held_out = tokenize_labelled(splits.eval, tokenizer, names, settings)
    notes: Sequence[str] = []
    try:
        notes = check_labelled([*train, *held_out], tokenizer, settings)
    except DataError as error:
        refusals.append(error)
    balance = class_balance(splits.train, names)
    answer = majority_answer(splits.train, names, multi_label=settings.multi_label)
    baseline = score_answer(answer, splits.train, names)
    figures = [SplitFigures(balance, baseline, measure_lengths(train))]
    if splits.eval:
        baseline = score_answer(answer, splits.eval, names)
        balance = class_balance(splits.eval, names)
        figures.append(SplitFigures(balance, baseline, measure_lengths(held_out)))
    chosen = choose_rows(splits.train, num_examples, settings.split_seed)
    examples = [(splits.train[index], train[index]) for index in chosen]
    return LabelledView(splits, names, figures, examples, [*splits.warnings(), *notes])
