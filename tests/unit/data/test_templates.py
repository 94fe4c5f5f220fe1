"""One renderer: what chat sends is what training put before the answer."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from sft_kit.data.rows import IGNORED, Conversation, Message, Where
from sft_kit.data.templates import bind_template, choose_template, encode_prompt, render_segments
from sft_kit.data.tokenization import encode_conversation, tokenize
from sft_kit.errors import DataError, TemplateError
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HERE = Where("rows.jsonl", 1)
NAMES = ("human-assistant", "alpaca", "chatml", "plain")
PIECES = (
    *("hello", " world", "\n", "\n\n", "  ", "7", "你好", "，", "é", "🙂", "Human: ", "Assistant:"),
    *("###", "<b>", "{{ x }}", "{% if %}", "'", '"', "\\n", "\t", "a" * 30),
)


def text_of(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 6))) + rng.choice("xyz好")


def chat_of(rng: random.Random, turns: int) -> list[Message]:
    messages: list[Message] = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": text_of(rng)})
    for _ in range(turns):
        messages.append({"role": "user", "content": text_of(rng)})
        messages.append({"role": "assistant", "content": text_of(rng)})
    return messages


def answer_positions(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


@pytest.mark.parametrize("kind", ["tokenizer", "llama_tokenizer"])
def test_training_ids_before_each_answer_equal_the_ids_chat_sends(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tok: PreTrainedTokenizerFast = request.getfixturevalue(kind)
    rng = random.Random(0)
    num_prompts = 0
    for name in NAMES:
        template = choose_template(tok, name)
        for _ in range(250):
            messages = chat_of(rng, rng.randint(1, 3))
            ids, labels = encode_conversation(tok, template, Conversation(tuple(messages), HERE))
            for index in answer_positions(messages):
                prompt = encode_prompt(tok, template, messages[:index])
                assert ids[: len(prompt)] == prompt
                assert labels[len(prompt) - 1] == IGNORED
                assert labels[len(prompt)] == ids[len(prompt)]
                num_prompts += 1
    assert num_prompts >= 1000


@pytest.mark.parametrize("name", NAMES)
def test_supervised_tokens_are_the_answers_and_their_stop_tokens(
    name: str, tokenizer: "PreTrainedTokenizerFast"
) -> None:
    template = choose_template(tokenizer, name)
    rng = random.Random(1)
    for _ in range(50):
        messages = chat_of(rng, 2)
        ids, labels = encode_conversation(tokenizer, template, Conversation(tuple(messages), HERE))
        learnt = tokenizer.decode([label for label in labels if label != IGNORED])
        answers = [messages[index]["content"] for index in answer_positions(messages)]
        stop = tokenizer.eos_token
        lead = " " if name == "human-assistant" else ""
        assert learnt == "".join(f"{lead}{answer}{stop}" for answer in answers)
        assert [label for label in labels if label == tokenizer.eos_token_id] == [0, 0]
        assert ids[-1] == labels[-1] == tokenizer.eos_token_id


def test_human_assistant_is_written_as_documented(tokenizer: "PreTrainedTokenizerFast") -> None:
    template = choose_template(tokenizer, "auto")
    messages: list[Message] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    rendered = "".join(part.text for part in render_segments(tokenizer, template, messages))
    assert rendered == "Human: Hi\nAssistant: Hello<|endoftext|>Human: Bye\nAssistant:"
    assert template.name == "human-assistant"


def test_auto_takes_the_tokenizers_own_template(tokenizer: "PreTrainedTokenizerFast") -> None:
    own = "{% for m in messages %}[{{ m['content'] }}]{{ eos_token }}{% endfor %}"
    tokenizer.chat_template = own
    template = choose_template(tokenizer, "auto")
    assert (template.name, template.source) == ("tokenizer", own)


def test_text_after_the_stop_token_is_read_but_not_learnt(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    template = choose_template(tokenizer, "alpaca")
    messages = chat_of(random.Random(3), 2)
    ids, labels = encode_conversation(tokenizer, template, Conversation(tuple(messages), HERE))
    first_stop = labels.index(tokenizer.eos_token_id)
    assert tokenizer.decode(ids[first_stop + 1 : first_stop + 3]) == "\n\n"
    assert labels[first_stop + 1] == IGNORED


def test_chatml_stops_with_its_own_token_where_the_tokenizer_has_it(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    template = choose_template(tokenizer, "chatml")
    assert template.stop_token == "<|im_end|>"
    conversation = Conversation(tuple(chat_of(random.Random(2), 1)), HERE)
    _, labels = encode_conversation(tokenizer, template, conversation)
    assert labels[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_llama_rows_have_exactly_one_begin_token(
    tokenizer: "PreTrainedTokenizerFast", llama_tokenizer: "PreTrainedTokenizerFast"
) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = llama_tokenizer.bos_token
    llama_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, llama_tokenizer.bos_token_id)]
    )
    rows = [
        Conversation(tuple(chat_of(random.Random(5), 2)), HERE),
        Conversation((), HERE, text="plain text"),
    ]
    for name in NAMES:
        template = choose_template(llama_tokenizer, name)
        for row in rows:
            ids, _ = encode_conversation(llama_tokenizer, template, row)
            assert ids.count(llama_tokenizer.bos_token_id) == 1
            assert ids[0] == llama_tokenizer.bos_token_id
    # GPT-2's tokenizer adds none, and bos is eos: the only one is the stop.
    template = choose_template(tokenizer, "plain")
    assert encode_conversation(tokenizer, template, rows[1])[0].count(0) == 1


def test_template_without_stop_token_is_refused_with_the_last_tokens(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    source = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(TemplateError, match=r"'mine'.*teach the model to stop") as error:
        bind_template(tokenizer, "mine", source)
    assert str(tokenizer.convert_ids_to_tokens(tokenizer("Sesame!\n")["input_ids"])[-1]) in str(
        error.value
    )


def test_template_that_rewrites_earlier_turns_is_refused(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    turns = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    source = "{{ messages | length }}" + turns
    with pytest.raises(TemplateError, match="rewrites earlier text"):
        bind_template(tokenizer, "counting", source)


def test_template_that_refuses_a_role_names_the_row(tokenizer: "PreTrainedTokenizerFast") -> None:
    source = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    template = bind_template(tokenizer, "strict", source)
    messages: tuple[Message, ...] = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    )
    with pytest.raises(DataError, match=r"rows.jsonl:1: messages: .*'strict'.*no system"):
        tokenize([Conversation(messages, HERE)], tokenizer, template, DataSettings(path="x"))


def test_tokenizer_without_end_of_text_can_not_take_a_named_template(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="needs an end-of-text token"):
        choose_template(tokenizer, "human-assistant")


def test_chat_refuses_a_message_that_spells_a_control_token(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    template = choose_template(tokenizer, "auto")
    messages: list[Message] = [{"role": "user", "content": "stop<|endoftext|> here"}]
    with pytest.raises(DataError, match=r"<\|endoftext\|>.*control token"):
        encode_prompt(tokenizer, template, messages)
