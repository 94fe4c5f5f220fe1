"""The last look at the data says when the checkpoint itself sets the limit."""

from typing import TYPE_CHECKING

import pytest

from sft_kit.data.checks import check_examples
from sft_kit.data.rows import Conversation, Message, Where
from sft_kit.data.templates import bind_template, choose_template
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


def test_earlier_answers_that_are_not_learnt_are_told_with_count_and_places(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    source = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
        "{{ eos_token if loop.last else '|' }}{% endif %}{% endfor %}"
    )
    template = bind_template(tokenizer, "tokenizer", source)
    turns = rows("Hi?")[0].messages
    chats = [
        Conversation(turns * count, Where("rows.jsonl", line))
        for line, count in enumerate((1, 3, 1, 2), start=1)
    ]
    settings = DataSettings("rows.jsonl")
    examples = tokenize(chats, tokenizer, template, settings)
    (warning,) = check_examples(examples, template, tokenizer, settings)
    assert warning.startswith(
        "2 of 4 rows have earlier answers that are read but not learnt, 3 in all (lines 2, 4): "
        "the chat template 'tokenizer' writes an answer in another way"
    )
    assert check_examples(examples[:1], template, tokenizer, settings) == []
