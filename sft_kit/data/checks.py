"""The last look at the data before a run starts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sft_kit.data.examples import flat_examples
from sft_kit.data.inspection import check_labels, inspect_labels, name_places
from sft_kit.data.rows import Example
from sft_kit.data.templates import Template
from sft_kit.data.token_text import last_tokens
from sft_kit.errors import DataError
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_examples(
    examples: Sequence[Example],
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    settings: DataSettings,
) -> list[str]:
    """Refuse examples that can't teach, and say what looks unintended in those that can.

    Returns:
        Warnings, each a sentence.

    Raises:
        DataError: No example, nothing supervised, no supervised stop token, or too many rows
            without any supervised token.
    """
    report = inspect_labels(examples, template.stop_token_ids)
    context = tokenizer.model_max_length
    lowered = (
        [f"data.max_length={settings.max_length} was lowered to {context}, the context length."]
        if context < settings.max_length
        else []
    )
    try:
        warnings = check_labels(
            report,
            template_name=template.name,
            last_tokens=last_tokens(examples[0], tokenizer) if examples else [],
            max_dropped_fraction=settings.max_dropped_fraction,
        )
    except DataError as error:
        if not lowered:
            raise
        summary = f"{lowered[0]} Raising it does not help. {error.summary}"
        raise DataError(summary, error.problems) from error
    return [*lowered, *warnings, *_unlearnt_answers(examples, template)]


def _unlearnt_answers(examples: Sequence[Example], template: Template) -> list[str]:
    flat = flat_examples(examples)
    unlearnt = flat.fact("num_unlearnt_answers")
    rows = [flat.place(int(index)) for index in np.flatnonzero(unlearnt)]
    if not rows:
        return []
    total = int(unlearnt.sum())
    return [
        f"{len(rows):,} of {len(examples):,} rows have earlier answers that are read but not "
        f"learnt, {total:,} in all {name_places(rows)}: the chat template {template.name!r} writes "
        "an answer in another way once a turn follows. To learn them too, add each as the last "
        "answer of a row of its own, or choose another data.template."
    ]
