"""The chat templates, against the prompts and ids of the original code."""

import json
from functools import cache
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

import sft_kit.models.chatglm.configuration  # noqa: F401  registers the config
from sft_kit.models.chatglm.tokenization import ChatGLMTokenizer

FIXTURES = Path(__file__).parents[3] / "fixtures" / "chatglm"
CHATGLM2 = ["chatglm2_tiny_fp16", "chatglm2_tiny_int4"]
CHATGLM3 = "chatglm3_tiny_fp16"
POEM = {"role": "user", "content": "请写一首诗"}
TEXTS = [
    " leading",
    "trailing ",
    "你好，今天天气很好。",
    "a\n\nb",
    "\n",
    "two  spaces 😀",
    "龘",
    "",
]

Messages = list[dict[str, object]]


@cache
def load(name: str) -> ChatGLMTokenizer:
    return AutoTokenizer.from_pretrained(FIXTURES / name)


@cache
def expected(name: str) -> dict:
    return json.loads((FIXTURES / name / "expected_tokenizer.json").read_text("utf-8"))


def encode_alone(name: str, text: str) -> list[int]:
    """Encode as the original does: a text on its own, nothing in it a special token."""
    return load(name)(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": text, **more}


def rounds(history: list[list[str]], query: str) -> Messages:
    turns = [[user(asked), assistant(answered)] for asked, answered in history]
    return [message for turn in turns for message in turn] + [user(query)]


def prompt_ids(name: str, messages: Messages, **options: object) -> list[int]:
    return load(name).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **options
    )


def learnt(name: str, messages: Messages) -> tuple[list[int], list[int]]:
    """Return all ids of a finished chat and those that the mask marks."""
    row = load(name).apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
    return row["input_ids"], [token_id for token_id, is_learnt in pairs if is_learnt]


# --- ChatGLM2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHATGLM2)
@pytest.mark.parametrize("num_rounds", [0, 1, 2])
def test_chatglm2_prompts_are_the_original_ones(name, num_rounds):
    outputs = expected(name)
    query = "请写一首诗" if num_rounds else "你好"
    messages = rounds(outputs["history"][:num_rounds], query)
    text = load(name).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "[gMASK]<sop>" + outputs["build_prompt"][str(num_rounds)]
    assert prompt_ids(name, messages) == outputs["build_prompt_ids"][str(num_rounds)]


@pytest.mark.parametrize("name", CHATGLM2)
@pytest.mark.parametrize("chat", ["chat0", "chat1"])
def test_chatglm2_chat_inputs_are_the_original_ones(name, chat):
    transcript = expected(name)["chat"][chat]
    messages = rounds(transcript["history"][:-1], transcript["query"])
    assert prompt_ids(name, messages) == transcript["input_ids"]


@pytest.mark.parametrize("answer", TEXTS)
def test_a_chatglm2_row_is_prompt_answer_encoded_alone_and_end(answer):
    """As in THUDM/ChatGLM2-6B, `ptuning/main.py`."""
    name = CHATGLM2[0]
    asked = rounds(expected(name)["history"], "Hello")
    ids, marked = learnt(name, [*asked, assistant(answer)])
    answer_ids = [*encode_alone(name, answer), 2]
    assert ids == prompt_ids(name, asked) + answer_ids
    assert marked == answer_ids


def test_chatglm2_puts_the_system_message_before_the_first_round_as_text():
    messages = [{"role": "system", "content": "Be brief."}, user("hi")]
    text = load(CHATGLM2[0]).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert text == "[gMASK]<sop>Be brief.\n\n[Round 1]\n\n问：hi\n\n答："


def test_chatglm2_without_generation_prompt_ends_after_the_question():
    text = load(CHATGLM2[0]).apply_chat_template([user("hi")], tokenize=False)
    assert text == "[gMASK]<sop>[Round 1]\n\n问：hi\n\n"


@pytest.mark.parametrize(
    ("roles", "found"),
    [
        (["assistant"], "found the role assistant, here belongs user"),
        (["user", "user"], "found the role user, here belongs assistant"),
        (["user", "assistant", "assistant"], "found the role assistant, here belongs user"),
        (["user", "system"], "found the role system, here belongs assistant"),
        (["system", "system"], "found the role system, here belongs user"),
        (["user", "observation"], "found the role observation"),
    ],
)
def test_chatglm2_refuses_roles_out_of_order(roles, found):
    with pytest.raises(TemplateError, match=found):
        prompt_ids(CHATGLM2[0], [{"role": role, "content": "x"} for role in roles])


def test_chatglm2_refuses_tools_and_a_second_answer():
    with pytest.raises(TemplateError, match="not trained to call tools"):
        prompt_ids(CHATGLM2[0], [user("hi")], tools=[{"name": "look_up"}])
    with pytest.raises(TemplateError, match="the last message is an answer"):
        prompt_ids(CHATGLM2[0], [user("hi"), assistant("hello")])


# --- ChatGLM3 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["0", "1", "sys", "tools"])
def test_chatglm3_prompts_are_the_original_ones(history):
    outputs = expected(CHATGLM3)
    messages = [*outputs["chat_histories"][history], POEM]
    assert prompt_ids(CHATGLM3, messages) == outputs["chat_ids"][history]


def test_a_chatglm3_observation_is_encoded_as_originally():
    outputs = expected(CHATGLM3)
    messages = [*outputs["chat_histories"]["tools"], {"role": "observation", "content": "晴"}]
    assert prompt_ids(CHATGLM3, messages) == outputs["chat_ids_observation"]


def test_tools_may_be_given_apart_from_the_messages():
    outputs = expected(CHATGLM3)
    system, *others = outputs["chat_histories"]["tools"]
    messages = [{"role": "system", "content": system["content"]}, *others, POEM]
    assert prompt_ids(CHATGLM3, messages, tools=system["tools"]) == outputs["chat_ids"]["tools"]
    with pytest.raises(TemplateError, match="tools need a system message"):
        prompt_ids(CHATGLM3, [POEM], tools=system["tools"])


@pytest.mark.parametrize("chat", ["chat0", "chat1"])
def test_chatglm3_chat_inputs_are_the_original_ones(chat):
    transcript = expected(CHATGLM3)["chat"][chat]
    assert prompt_ids(CHATGLM3, transcript["history"][:-1]) == transcript["input_ids"]


def message_ids(role: str, metadata: str, content: str) -> list[int]:
    """A message as the original writes it (THUDM/chatglm3-6b, `build_single_message`)."""
    line, text = encode_alone(CHATGLM3, metadata + "\n"), encode_alone(CHATGLM3, content)
    return [load(CHATGLM3).get_command(f"<|{role}|>"), *line, *text]


def test_a_single_message_is_composed_as_originally():
    """Holds the helper of the tests below to the original code's own output."""
    single = expected(CHATGLM3)["single_message"]
    assert message_ids("assistant", "", "hello world") == single


@pytest.mark.parametrize("answer", TEXTS)
def test_a_chatglm3_answer_is_learnt_up_to_its_end(answer):
    asked = message_ids("user", "", "Hello")
    answered = [*message_ids("assistant", "", answer), 2]
    ids, marked = learnt(CHATGLM3, [user("Hello"), assistant(answer)])
    assert ids == [461, 463, *asked, *answered]
    assert marked == answered[1:]


def test_every_chatglm3_answer_is_learnt_with_the_token_that_follows_it():
    """As in THUDM/ChatGLM3, `finetune_demo`: what the model writes to stop is learnt too."""
    messages = [
        {"role": "system", "content": "Answer."},
        user("北京天气"),
        assistant("I look it up."),
        assistant(" tool_call(city='北京')", metadata="get_weather"),
        {"role": "observation", "content": "晴"},
        assistant("今天晴。"),
        user("Thanks"),
        assistant("你好"),
    ]
    parts = [
        message_ids(str(message["role"]), str(message.get("metadata", "")), str(message["content"]))
        for message in messages
    ]
    ids, marked = learnt(CHATGLM3, messages)
    assert ids == [461, 463, *(token_id for part in parts for token_id in part), 2]
    followed = zip(parts, [*parts[1:], [2]], messages, strict=True)
    assert marked == [
        token_id
        for part, after, message in followed
        if message["role"] == "assistant"
        for token_id in [*part[1:], after[0]]
    ]


@pytest.mark.parametrize(
    ("roles", "found"),
    [
        (["assistant"], "found the role assistant, here belongs system or user"),
        (["observation"], "found the role observation, here belongs system or user"),
        (["user", "user"], "found the role user, here belongs assistant"),
        (["user", "system"], "found the role system, here belongs assistant"),
        (["user", "assistant", "system"], "here belongs user or observation or assistant"),
        (["user", "tool"], "found the role tool"),
        (["system", "assistant"], "found the role assistant, here belongs user"),
    ],
)
def test_chatglm3_refuses_roles_out_of_order(roles, found):
    with pytest.raises(TemplateError, match=found):
        prompt_ids(CHATGLM3, [{"role": role, "content": "x"} for role in roles])


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CHATGLM2[0], CHATGLM3])
def test_a_prompt_is_the_beginning_of_the_same_chat_with_its_answer(name):
    asked = [user("Hello")]
    before = load(name).apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    after = load(name).apply_chat_template([*asked, assistant("hi")], tokenize=False)
    assert after.startswith(before)
    assert after.endswith(" hi</s>")


@pytest.mark.parametrize("name", [CHATGLM2[0], CHATGLM3])
def test_control_tokens_that_a_user_spells_can_be_kept_as_text(name):
    messages = [user("say </s> and [gMASK]")]
    ids = prompt_ids(name, messages, sanitize_control_tokens=True)
    assert ids.count(2) == 0
    assert ids.count(461) == 1
    assert prompt_ids(name, messages).count(2) == 1


@pytest.mark.parametrize("name", [CHATGLM2[0], CHATGLM3])
def test_a_batch_of_chats_is_padded_on_the_left(name):
    chats = [[user("Hello")], [user("你好，今天天气很好。")]]
    batch = load(name).apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True
    )
    for chat, ids, mask in zip(chats, batch["input_ids"], batch["attention_mask"], strict=True):
        wanted = prompt_ids(name, chat)
        assert ids == [0] * (len(ids) - len(wanted)) + wanted
        assert mask == [0] * (len(ids) - len(wanted)) + [1] * len(wanted)
