"""The label doctor: what a recipe's data teaches, read and judged exactly as training would.

It needs the data and the tokenizer, but no weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sft_kit.config import Resolved
from sft_kit.data.checks import check_examples
from sft_kit.data.inspection import choose_examples, inspect_labels
from sft_kit.data.label_page import write_page
from sft_kit.data.label_view import show_report
from sft_kit.data.rows import Example, Splits
from sft_kit.data.splits import load_conversations
from sft_kit.data.templates import Template, choose_template
from sft_kit.data.token_text import mark_tokens
from sft_kit.data.tokenization import tokenize
from sft_kit.errors import DataError, FormatError
from sft_kit.models.base import load_tokenizer
from sft_kit.settings import DataSettings, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def show_labels(
    console: Console, resolved: Resolved, num_examples: int, html: Path | None = None
) -> None:
    """Show the report, in the terminal and as a page, then raise what training would raise.

    Args:
        console: Where to print.
        resolved: Settings of the recipe; its sections `model` and `data` are used.
        num_examples: Examples to show token by token.
        html: File for the page.

    Raises:
        DataError: Training would refuse this data.
        CheckpointError: No tokenizer.
    """
    settings = resolved.own("data", DataSettings)
    tokenizer = load_tokenizer(resolved.own("model", ModelSettings))
    template = choose_template(tokenizer, settings.template)
    stops = template.stop_token_ids
    splits, bad_rows = _read_rows(settings, tokenizer)
    train = tokenize(splits.train, tokenizer, template, settings)
    held_out = tokenize(splits.eval, tokenizer, template, settings)
    notes, bad_labels = _judge(train, tokenizer, template, settings)
    report = inspect_labels(train, stops)
    held_out_report = inspect_labels(held_out, stops) if held_out else None
    chosen = choose_examples(train, stops, num_examples, settings.split_seed)
    shown = [train[index] for index in chosen]
    marked = [mark_tokens(example, tokenizer) for example in shown]
    _say(console, _describe_template(template))
    show_report(console, splits.report, report, held_out_report, marked, notes, sources=shown)
    if html:
        write_page(str(html), splits.report, report, held_out_report, marked, notes, sources=shown)
        _say(console, f"written: {html}")
    refusal = bad_rows or bad_labels
    if refusal:
        raise refusal


def _read_rows(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[Splits, DataError | None]:
    """Read the rows; where bad ones would stop training, read the others and return the error."""
    try:
        return load_conversations(settings, tokenizer), None
    except FormatError as error:
        return load_conversations(replace(settings, on_bad_row="skip"), tokenizer), error


def _judge(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    settings: DataSettings,
) -> tuple[list[str], DataError | None]:
    """Return what training would warn of, and the error with which it would refuse."""
    try:
        return check_examples(examples, template, tokenizer, settings), None
    except DataError as error:
        return [], error


def _describe_template(template: Template) -> str:
    parts = [
        f"chat template {template.name}",
        f"stop token {template.stop_token} (id {template.stop_token_id})",
    ]
    if template.turn_stop_token is not None:
        parts.append(
            f"{template.turn_stop_token} (id {template.turn_stop_token_id}) when a turn follows"
        )
    if template.learns_last_answer_only:
        parts.append("only the last answer of a chat is learnt")
    return ", ".join(parts)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
