"""What a run says before step 1: everything derived from the settings, once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accelerate import PartialState
from rich.console import Console
from rich.markup import escape

from sft_kit.data.corpus.marking import describe_corrupted, mark_corrupted, written_tokens
from sft_kit.data.corpus.rows import Corrupted
from sft_kit.data.corpus.view import ShownExample, render_example
from sft_kit.data.label_view import render_tokens
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.preference.rows import PreferenceExample
from sft_kit.data.rows import Example
from sft_kit.data.token_text import mark_tokens
from sft_kit.training.facts import fact_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TOKENS_SHOWN = 120
_MAX_ANSWERS_SHOWN = 4


def announce(
    facts: dict[str, object],
    notes: Sequence[str],
    warnings: Sequence[str],
    example: Example,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Print device, precision, parameters, batch, steps, warnings and one example with its labels.

    Args:
        facts: From `derive_facts`.
        notes: What was picked for `auto` settings.
        warnings: What works but was probably not meant.
        example: A training example; its supervised tokens are marked.
        tokenizer: Decodes it.
    """
    if not PartialState().is_main_process:
        return
    console = Console(stderr=True)
    _say(console, facts, notes, warnings)
    tokens = mark_tokens(example, tokenizer)[:_MAX_TOKENS_SHOWN]
    has_colour = console.color_system is not None
    marking = "in green" if has_colour else "in ⟦ ⟧"
    console.print(escape(f"first example ({example.where}), what is learnt {marking}:"))
    console.print(render_tokens(tokens, has_colour=has_colour))


def announce_classifier(
    facts: dict[str, object],
    notes: Sequence[str],
    warnings: Sequence[str],
    row: LabelledText,
    example: LabelledExample,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Print the same of a classifier, and one row as the model sees it with the label it has.

    Args:
        facts: From `derive_facts`.
        notes: What was picked for `auto` settings, and how the data was read.
        warnings: What works but was probably not meant.
        row: A training row.
        example: The same row, tokenized.
        tokenizer: Decodes it.
    """
    if not PartialState().is_main_process:
        return
    console = Console(stderr=True)
    _say(console, facts, notes, warnings)
    shown = tokenizer.decode(example.input_ids[:_MAX_TOKENS_SHOWN])
    labels = ", ".join(row.labels) or "no label"
    console.print(escape(f"first example ({example.where}): {shown!r} -> {labels}"))


def announce_preferences(
    facts: dict[str, object],
    notes: Sequence[str],
    warnings: Sequence[str],
    example: PreferenceExample,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Print the same of a reward model, and the first answers of a comparison, the best first.

    Args:
        facts: From `derive_facts`.
        notes: What was picked for `auto` settings, how the data was read, where the head is from.
        warnings: What works but was probably not meant.
        example: A training example.
        tokenizer: Decodes it.
    """
    if not PartialState().is_main_process:
        return
    console = Console(stderr=True)
    _say(console, facts, notes, warnings)
    prompt = example.input_ids[0][: example.num_prompt_tokens]
    texts = [("prompt", prompt[-_MAX_TOKENS_SHOWN:])]
    for number, ids in enumerate(example.input_ids[:_MAX_ANSWERS_SHOWN], start=1):
        texts.append((f"answer {number}", ids[example.num_prompt_tokens :][:_MAX_TOKENS_SHOWN]))
    console.print(escape(f"first example ({example.comparison.where}), the best answer first:"))
    for name, ids in texts:
        console.print(escape(f"  {name}: {tokenizer.decode(list(ids))!r}"))
    num_more = len(example.input_ids) - _MAX_ANSWERS_SHOWN
    if num_more > 0:
        console.print(f"  ... and {num_more:,} more")


def announce_pretraining(
    facts: dict[str, object],
    notes: Sequence[str],
    warnings: Sequence[str],
    corrupted: Corrupted,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Print the same of a pretraining, and an example as the model sees it with what it learns.

    Args:
        facts: From `derive_facts`.
        notes: What was picked for `auto` settings, and how the data was read.
        warnings: What works but was probably not meant.
        corrupted: A training example.
        tokenizer: Decodes it.
    """
    if not PartialState().is_main_process:
        return
    console = Console(stderr=True)
    _say(console, facts, notes, warnings)
    has_colour = console.color_system is not None
    told = "; ".join(describe_corrupted(corrupted))
    marking = "in green" if has_colour else "in ⟦ ⟧"
    console.print(escape(f"first example ({told}), what is learnt {marking}:"))
    example = ShownExample(
        told,
        mark_corrupted(corrupted, tokenizer)[:_MAX_TOKENS_SHOWN],
        (written_tokens(corrupted, tokenizer) or [])[:_MAX_TOKENS_SHOWN] or None,
    )
    console.print(render_example(example, has_colour=has_colour))


def _say(
    console: Console, facts: dict[str, object], notes: Sequence[str], warnings: Sequence[str]
) -> None:
    for line in [*notes, *fact_lines(facts)]:
        console.print(escape(line))
    for line in warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(line)}")
