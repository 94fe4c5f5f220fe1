"""The preference doctor: what compared answers and prompts are, judged exactly as training would.

It needs the data and the tokenizer, but no weights.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sft_kit.config import Resolved
from sft_kit.data.preference.inspection import (
    PreferenceFigures,
    choose_comparisons,
    inspect_preferences,
)
from sft_kit.data.preference.page import write_preference_view
from sft_kit.data.preference.prompts import load_prompts
from sft_kit.data.preference.report import PreferenceSplits
from sft_kit.data.preference.rows import PreferenceExample
from sft_kit.data.preference.splits import load_preferences
from sft_kit.data.preference.tokenization import check_preferences, tokenize_preferences
from sft_kit.data.preference.view import PreferenceView, show_preference_view, show_prompt_view
from sft_kit.data.templates import Template, choose_template
from sft_kit.errors import ConfigError, DataError, FormatError
from sft_kit.models.base import load_tokenizer
from sft_kit.settings import ModelSettings, PpoSettings, PreferenceDataSettings, PromptDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def show_preferences(
    console: Console, resolved: Resolved, num_examples: int, html: Path | None = None
) -> None:
    """Show the report, in the terminal and as a page, then raise what training would raise.

    Args:
        console: Where to print.
        resolved: Settings of the recipe; its sections `model` and `data` are used.
        num_examples: Training comparisons to show.
        html: File for the page.

    Raises:
        DataError: Training would refuse this data.
        CheckpointError: No tokenizer.
    """
    settings = resolved.own("data", PreferenceDataSettings)
    tokenizer = load_tokenizer(resolved.own("model", ModelSettings))
    template = choose_template(tokenizer, settings.template)
    splits, refusal = _read_rows(settings, tokenizer, template)
    figures: list[PreferenceFigures] = []
    notes: list[str] = []
    examples: list[PreferenceExample] = []
    for name, rows in (("", splits.train), ("held out: ", splits.eval)):
        if not rows:
            continue
        tokenized = tokenize_preferences(rows, tokenizer, template, settings)
        figures.append(inspect_preferences(tokenized))
        examples = examples or choose_comparisons(tokenized, num_examples, settings.split_seed)
        try:
            told = check_preferences(tokenized, rows, tokenizer, template, settings)
            notes += [f"{name}{note}" for note in told if note not in notes]
        except DataError as error:
            refusal = refusal or error
    view = PreferenceView(splits, figures, examples, [*splits.notes()[1:], *notes])
    show_preference_view(console, view)
    if html:
        write_preference_view(html, view)
        console.print(Text(f"written: {html}"), soft_wrap=True)
    if refusal:
        raise refusal


def show_prompts(
    console: Console, resolved: Resolved, num_examples: int, html: Path | None = None
) -> None:
    """Show the prompts of a PPO recipe, or raise what training would raise.

    Args:
        console: Where to print.
        resolved: Settings of the recipe; its sections `model`, `data` and `ppo` are used.
        num_examples: Training prompts to show.
        html: There is no page of prompts; must be None.

    Raises:
        ConfigError: A page was asked for.
        DataError: Training would refuse this data.
        CheckpointError: No tokenizer.
    """
    if html:
        raise ConfigError(
            "--html: the prompts of PPO are shown in the terminal only (leave it out)"
        )
    settings = resolved.own("data", PromptDataSettings)
    max_new_tokens = resolved.own("ppo", PpoSettings).max_new_tokens
    tokenizer = load_tokenizer(resolved.own("model", ModelSettings))
    template = choose_template(tokenizer, settings.template)
    context = tokenizer.model_max_length
    splits = load_prompts(
        settings, tokenizer, template, context=context, max_new_tokens=max_new_tokens
    )
    show_prompt_view(console, splits, num_examples, settings.split_seed)


def _read_rows(
    settings: PreferenceDataSettings, tokenizer: "PreTrainedTokenizerBase", template: Template
) -> tuple[PreferenceSplits, DataError | None]:
    """Read the rows; where bad ones would stop training, read the others and return the error."""
    try:
        return load_preferences(settings, tokenizer, template), None
    except FormatError as error:
        skipping = replace(settings, on_bad_row="skip")
        return load_preferences(skipping, tokenizer, template), error
