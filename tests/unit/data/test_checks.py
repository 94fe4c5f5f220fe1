"""The last look at the data says when the checkpoint itself sets the limit."""

from typing import TYPE_CHECKING

import pytest

from sft_kit.data.checks import check_examples
from sft_kit.data.rows import Conversation, Message, Where
from sft_kit.data.templates import choose_template
from sft_kit.data.tokenization import tokenize
from sft_kit.errors import DataError
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def rows(question: str) -> list[Conversation]:
    messages: tuple[Message, ...] = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": "Yes."},
    )
    return [Conversation(messages, Where("rows.jsonl", 1))]


@pytest.mark.parametrize(("context", "is_told"), [(1000, False), (40, True)])
def test_a_limit_of_the_checkpoint_is_told_as_such(
    tokenizer: "PreTrainedTokenizerFast", context: int, is_told: bool
) -> None:
    tokenizer.model_max_length = context
    template = choose_template(tokenizer, "auto")
    settings = DataSettings("rows.jsonl", max_length=60)
    kept = tokenize(rows("Hi?"), tokenizer, template, settings)
    warnings = check_examples(kept, template, tokenizer, settings)
    assert any("lowered to 40" in warning for warning in warnings) == is_told
    cut = tokenize(rows("word " * 200), tokenizer, template, settings)
    with pytest.raises(DataError) as error:
        check_examples(cut, template, tokenizer, settings)
    assert ("Raising it does not help" in str(error.value)) == is_told
