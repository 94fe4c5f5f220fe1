"""Templates that end or write an answer in another way once a turn follows."""

import json
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from sft_kit.data.rows import IGNORED, Conversation, Message, Where
from sft_kit.data.templates import (
    Template,
    bind_template,
    choose_template,
    encode_prompt,
    render_segments,
)
from sft_kit.data.tokenization import encode_conversation, tokenize
from sft_kit.errors import DataError, TemplateError
from sft_kit.settings import DataSettings

from .conftest import ROLES, ROUNDS

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from sft_kit.models.chatglm.tokenization import ChatGLMTokenizer

    GetTokenizer = Callable[[str], PreTrainedTokenizerFast]

HERE = Where("rows.jsonl", 1)
PIECES = ("hello", " world", "\n", "\n\n", "  ", "7", "你好", "，", "é", "🙂", "'", "\t", "问：")

# As Qwen3: an earlier answer loses its empty thinking.
THINKING = (
    "{%- for m in messages -%}{{- '[' + m['role'] + ']' -}}"
    "{%- if m['role'] == 'assistant' and loop.last -%}{{- '<think></think>' -}}{%- endif -%}"
    "{{- m['content'] -}}{%- if m['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '[assistant]' -}}{%- endif -%}"
)
# Drops thinking from an earlier answer that has any: no probe without thinking can know.
DROPS_THINKING = (
    "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
    "{{- m['content'] if loop.last else m['content'].split('</think>')[-1] -}}{{- eos_token -}}"
    "{%- else -%}{{- m['content'] + '\\n' -}}{%- endif -%}{%- endfor -%}"
)
# A line end stands before the stop token of the last answer only.
MOVED_STOP = (
    "{%- for m in messages -%}{{- m['content'] -}}{%- if m['role'] == 'assistant' -%}"
    "{%- if loop.last -%}{{- '\\n' -}}{%- endif -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}"
)
BY_NAME = {"roles": ROLES, "rounds": ROUNDS, "thinking": THINKING, "moved": MOVED_STOP}


def chat(*contents: str) -> list[Message]:
    return [
        {"role": "assistant" if index % 2 else "user", "content": content}
        for index, content in enumerate(contents)
    ]


def random_chat(rng: random.Random) -> list[Message]:
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 6))) + "好" for _ in range(6)]
    return chat(*texts[: rng.choice((2, 4, 6))])


def encode(
    tokenizer: "PreTrainedTokenizerFast", template: Template, messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
    return encode_conversation(tokenizer, template, Conversation(tuple(messages), HERE))


def whole_text(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


# --- what training sees is what chat sends -------------------------------------------------------


@pytest.mark.parametrize("kind", ["prepend", "metaspace-first", "metaspace-always", "gpt2"])
@pytest.mark.parametrize("name", [*BY_NAME, "human-assistant", "alpaca", "chatml", "plain"])
def test_training_ids_before_each_learnt_answer_equal_the_ids_chat_sends(
    name: str,
    kind: str,
    blank_tokenizer: "GetTokenizer",
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    tok = tokenizer if kind == "gpt2" else blank_tokenizer(kind)
    if kind == "gpt2":
        specials = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]
        tok.add_special_tokens({"extra_special_tokens": specials})
    template = (
        bind_template(tok, name, BY_NAME[name]) if name in BY_NAME else choose_template(tok, name)  # type: ignore[arg-type]
    )
    rng = random.Random(0)
    num_answers = num_prompts = 0
    for _ in range(60):
        messages = random_chat(rng)
        ids, labels = encode(tok, template, messages)
        assert len(ids) == len(labels)
        assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
        starts = {
            at for at in range(1, len(ids)) if labels[at] != IGNORED and labels[at - 1] == IGNORED
        }
        for index in range(1, len(messages), 2):
            num_answers += 1
            prompt = encode_prompt(tok, template, messages[:index])
            if len(prompt) in starts and ids[: len(prompt)] == prompt:
                starts.discard(len(prompt))
                num_prompts += 1
        assert not starts  # every learnt answer stands behind a prompt that chat would send
    assert num_prompts == (60 if template.learns_last_answer_only else num_answers)


# --- several stop tokens -------------------------------------------------------------------------


def test_the_token_that_ends_an_earlier_answer_is_found(blank_tokenizer: "GetTokenizer") -> None:
    tokenizer = blank_tokenizer("prepend")
    template = bind_template(tokenizer, "roles", ROLES)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert (template.stop_token, template.stop_token_id) == ("</s>", tokenizer.eos_token_id)
    assert (template.turn_stop_token, template.turn_stop_token_id) == ("<|user|>", user)
    assert template.stop_token_ids == (tokenizer.eos_token_id, user)
    assert not template.learns_last_answer_only
    described = template.describe()
    assert described["turn_stop_token"] == "<|user|>"
    assert described["turn_stop_token_id"] == user


def test_answers_are_learnt_up_to_and_including_the_token_that_follows(
    blank_tokenizer: "GetTokenizer",
) -> None:
    """The official rule, token by token over the whole text: learn from <|assistant|> on until the
    next special token, that token included.
    """
    tokenizer = blank_tokenizer("prepend")
    template = bind_template(tokenizer, "roles", ROLES)
    special = {
        tokenizer.convert_tokens_to_ids(token)
        for token in ("<|user|>", "<|assistant|>", "<|observation|>", "</s>")
    }
    rng = random.Random(2)
    for _ in range(100):
        messages = random_chat(rng)
        if len(messages) == 6:
            messages[2]["role"] = "observation"
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        expected_ids = whole_text(tokenizer, text)
        expected_labels, is_learnt = [], False
        for token in expected_ids:
            expected_labels.append(token if is_learnt else IGNORED)
            if token in special:
                is_learnt = tokenizer.convert_ids_to_tokens(token) == "<|assistant|>"
        assert encode(tokenizer, template, messages) == (expected_ids, expected_labels)


def test_a_stop_token_in_another_place_is_learnt_where_it_stands(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    template = bind_template(tokenizer, "moved", MOVED_STOP)
    assert template.turn_stop_token == template.stop_token
    assert template.stop_token_ids == (tokenizer.eos_token_id,)
    segments = render_segments(tokenizer, template, chat("q", "one", "r", "two"))
    assert [part.text for part in segments] == ["q", "one<|endoftext|>", "r", "two\n<|endoftext|>"]


def test_templates_that_close_every_answer_alike_have_one_stop_token(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    for name in ("human-assistant", "alpaca", "chatml", "plain"):
        template = choose_template(tokenizer, name)  # type: ignore[arg-type]
        assert template.turn_stop_token is template.turn_stop_token_id is None
        assert template.stop_token_ids == (tokenizer.eos_token_id,)
        assert not template.learns_last_answer_only


# --- answers that are written anew ---------------------------------------------------------------


@pytest.mark.parametrize("source", [ROUNDS, THINKING], ids=["rounds", "thinking"])
def test_only_the_last_answer_is_learnt_where_earlier_ones_are_written_anew(
    source: str, blank_tokenizer: "GetTokenizer"
) -> None:
    tokenizer = blank_tokenizer("prepend")
    template = bind_template(tokenizer, "anew", source)
    assert template.learns_last_answer_only
    assert template.stop_token_ids == (tokenizer.eos_token_id,)
    messages = chat("什么是水？", "yes", "no?", "Sesame!")
    prompt, answer = render_segments(tokenizer, template, messages)
    assert (prompt.is_completion, answer.is_completion) == (False, True)
    sent = tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    ids, labels = encode(tokenizer, template, messages)
    num_prompt = len(whole_text(tokenizer, sent))
    assert ids[:num_prompt] == whole_text(tokenizer, sent)
    assert labels == [IGNORED] * num_prompt + ids[num_prompt:]


def test_an_answer_behind_text_is_encoded_as_a_text_of_its_own(
    blank_tokenizer: "GetTokenizer",
) -> None:
    tokenizer = blank_tokenizer("prepend")
    template = bind_template(tokenizer, "rounds", ROUNDS)
    for answer in ("Sesame!", "水是一种液体。", " two  blanks", "\nline"):
        _, labels = encode(tokenizer, template, chat("hello", answer))
        learnt = [label for label in labels if label != IGNORED]
        assert learnt == [*whole_text(tokenizer, answer), tokenizer.eos_token_id]


def test_a_row_whose_earlier_answer_is_rewritten_learns_its_last_answer_only(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    template = bind_template(tokenizer, "drops", DROPS_THINKING)
    assert not template.learns_last_answer_only
    plain, thinking = chat("q", "one", "r", "two"), chat("q", "<think>x</think>one", "r", "two")
    assert sum(part.is_completion for part in render_segments(tokenizer, template, plain)) == 2
    prompt, answer = render_segments(tokenizer, template, thinking)
    assert (prompt.text, answer.text) == ("q\none<|endoftext|>r\n", "two<|endoftext|>")
    ids, labels = encode(tokenizer, template, thinking)
    sent = encode_prompt(tokenizer, template, thinking[:3])
    assert ids[: len(sent)] == sent
    assert [label for label in labels if label != IGNORED] == ids[len(sent) :]


def test_a_chat_that_waits_for_an_answer_is_one_prompt(blank_tokenizer: "GetTokenizer") -> None:
    tokenizer = blank_tokenizer("prepend")
    template = bind_template(tokenizer, "rounds", ROUNDS)
    messages = chat("a", "b", "c", "d", "e")
    (segment,) = render_segments(tokenizer, template, messages)
    assert not segment.is_completion
    assert segment.text.endswith("问：e\n\n答：")
    assert encode_prompt(tokenizer, template, messages) == whole_text(tokenizer, segment.text)


def test_answers_that_are_only_read_are_counted_unless_everything_is_learnt(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    template = bind_template(tokenizer, "drops", DROPS_THINKING)
    rows = [
        Conversation(tuple(chat("q", "one")), HERE),
        Conversation(tuple(chat("q", "<think>x</think>one", "r", "two", "s", "three")), HERE),
        Conversation(tuple(chat("q", "one", "r", "two")), HERE),
        Conversation((), HERE, text="plain"),
    ]
    for loss_on, counts in (("completion", [0, 2, 0, 0]), ("all", [0, 0, 0, 0])):
        settings = DataSettings(path="x", loss_on=loss_on)  # type: ignore[arg-type]
        examples = tokenize(rows, tokenizer, template, settings)
        assert [example.num_unlearnt_answers for example in examples] == counts


# --- what stays refused --------------------------------------------------------------------------


def test_a_prompt_that_changes_with_its_last_answer_is_refused_with_its_row(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    source = (
        "{%- if messages|length == 4 -%}{{- 'long ' -}}{%- endif -%}{%- for m in messages -%}"
        "{{- m['content'] -}}{%- if m['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
        "{%- endfor -%}"
    )
    template = bind_template(tokenizer, "counting", source)
    rows = [Conversation(tuple(chat("q", "a", "r", "b")), HERE)]
    with pytest.raises(DataError, match=r"rows.jsonl:1: messages: .*rewrites earlier text"):
        tokenize(rows, tokenizer, template, DataSettings(path="x"))


def test_a_template_for_single_turns_serves_them_and_names_the_rows_with_more(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    source = (
        "{%- if messages|length > 2 -%}{{- raise_exception('one turn only') -}}{%- endif -%}"
        "{%- for m in messages -%}{{- m['content'] + eos_token -}}{%- endfor -%}"
    )
    template = bind_template(tokenizer, "single", source)
    assert template.stop_token_ids == (tokenizer.eos_token_id,)
    assert encode(tokenizer, template, chat("q", "a"))[0]
    with pytest.raises(TemplateError, match="one turn only"):
        render_segments(tokenizer, template, chat("q", "a", "r"))


# --- tokens in front -----------------------------------------------------------------------------


def test_named_templates_and_texts_begin_with_the_tokenizers_leading_tokens(
    blank_tokenizer: "GetTokenizer",
) -> None:
    for kind in ("prepend", "metaspace-first", "metaspace-always"):
        tokenizer = blank_tokenizer(kind)
        front = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
        for name in ("human-assistant", "alpaca", "chatml", "plain"):
            template = choose_template(tokenizer, name)  # type: ignore[arg-type]
            ids, _ = encode(tokenizer, template, chat("q", "a", "r", "b"))
            assert ids[:2] == front
            assert sum(ids.count(token) for token in front) == 2
        row = Conversation((), HERE, text="hello  world")
        ids, labels = encode_conversation(tokenizer, template, row)
        assert ids == [*tokenizer("hello  world")["input_ids"], tokenizer.eos_token_id]
        assert labels == [IGNORED, IGNORED, *ids[2:]]


def test_a_leading_bos_token_keeps_the_spelling_that_saved_runs_have(
    llama_tokenizer: "PreTrainedTokenizerFast", put_tokens_in_front: "Callable[..., None]"
) -> None:
    without = choose_template(llama_tokenizer, "alpaca").source
    put_tokens_in_front(llama_tokenizer, "<s>")
    assert choose_template(llama_tokenizer, "alpaca").source == "{{- bos_token -}}\n" + without


# --- ChatGLM, against the original code ----------------------------------------------------------


@pytest.fixture
def chatglm(chatglm_fixtures: "Path") -> "Callable[[str], tuple[ChatGLMTokenizer, dict]]":  # type: ignore[type-arg]
    """Function from a folder to its tokenizer and what the original code made of texts."""
    from sft_kit.models.chatglm.tokenization import ChatGLMTokenizer

    def load(name: str) -> "tuple[ChatGLMTokenizer, dict]":  # type: ignore[type-arg]
        folder = chatglm_fixtures / name
        expected = json.loads((folder / "expected_tokenizer.json").read_text("utf-8"))
        return ChatGLMTokenizer.from_pretrained(folder), expected

    return load


def test_chatglm2_prompts_and_labels_are_those_of_the_official_fine_tuning(
    chatglm: "Callable[[str], tuple[ChatGLMTokenizer, dict]]",  # type: ignore[type-arg]
) -> None:
    tokenizer, expected = chatglm("chatglm2_tiny_int4")
    template = choose_template(tokenizer, "auto")
    assert template.learns_last_answer_only
    assert template.stop_token_ids == (2,)
    history = [text for pair in expected["history"] for text in pair]
    queries = ["你好", "请写一首诗", "请写一首诗"]
    num_checked = 0
    for number, query in enumerate(queries):
        messages = chat(*history[: 2 * number], query)
        prompt = encode_prompt(tokenizer, template, messages)
        assert prompt == expected["build_prompt_ids"][str(number)]
        for text, text_ids in zip(expected["texts"], expected["ids_no_special"], strict=True):
            if not text or any(token in text for token in tokenizer.all_special_tokens):
                continue
            ids, labels = encode(tokenizer, template, [*messages, *chat("", text)[1:]])
            assert ids == [*prompt, *text_ids, 2]
            assert labels == [IGNORED] * len(prompt) + [*text_ids, 2]
            num_checked += 1
    assert num_checked == 36


def test_chatglm3_prompts_and_labels_are_those_of_the_official_fine_tuning(
    chatglm: "Callable[[str], tuple[ChatGLMTokenizer, dict]]",  # type: ignore[type-arg]
) -> None:
    tokenizer, expected = chatglm("chatglm3_tiny_fp16")
    template = choose_template(tokenizer, "auto")
    user, assistant = (expected["specials"][f"<|{role}|>"] for role in ("user", "assistant"))
    assert template.stop_token_ids == (2, user)
    for key, query in (("0", "请写一首诗"), ("1", "请写一首诗"), ("sys", "请写一首诗")):
        history: list[Message] = [
            {"role": message["role"], "content": message["content"]}
            for message in expected["chat_histories"][key]
        ]
        messages: list[Message] = [*history, {"role": "user", "content": query}]
        prompt = encode_prompt(tokenizer, template, messages)
        assert prompt == expected["chat_ids"][key]
        # encode("{metadata}\n"), then encode(content), each with a blank of its own
        answer = [*expected["single_message"][1:], 2]
        labels, is_learnt = [], False
        for token in prompt:
            labels.append(token if is_learnt else IGNORED)
            if token in (user, assistant):
                is_learnt = token == assistant
        content = tokenizer.decode(expected["single_message"][3:])
        answered: list[Message] = [*messages, {"role": "assistant", "content": content}]
        assert encode(tokenizer, template, answered) == ([*prompt, *answer], [*labels, *answer])
