"""The last look at the data before a run starts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft_kit.data.inspection import check_labels, inspect_labels
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
    report = inspect_labels(examples, template.stop_token_id)
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
    return [*lowered, *warnings]
