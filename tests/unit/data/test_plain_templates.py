"""Templates that write contents as they are, rendered without asking them for every row."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import pytest

from sft_kit.data import plain_templates
from sft_kit.data.plain_templates import chat_renderer, writes_contents_only
from sft_kit.data.rows import Message
from sft_kit.data.template_texts import write_template
from sft_kit.data.templates import choose_template, render_segments
from sft_kit.errors import TemplateError
from sft_kit.settings import TemplateName

from .conftest import ROLES, ROUNDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMED = [name for name in get_args(TemplateName) if name != "auto"]
PIECES = ("hello", " world ", "\n", "{{ 1 }}", "{% x %}", "\ue0000\ue001", "Human: ", "水", "&<")
LOOP = "{{% for m in messages %}}{}{{% endfor %}}"
LOOKS = {
    "trims": LOOP.format("{{ m['content'] | trim }}"),
    "strips": LOOP.format("{{ m.content.strip() }}"),
    "asks": LOOP.format("{% if m['content'] == 'a' %}b{% else %}{{ m['content'] }}{% endif %}"),
    "asks for a part": LOOP.format("{% if 'a' in m['content'] %}b{% endif %}"),
    "keeps": LOOP.format("{% set text = m['content'] %}{{ text }}"),
    "repeats": LOOP.format("{{ m['content'] * 2 }}"),
    "cuts": LOOP.format("{{ m['content'][:3] }}"),
    "chooses": LOOP.format("{{ m['content'] if m['content'] else 'nothing' }}"),
    "negates": LOOP.format("{{ not m['content'] }}"),
    "writes the message": LOOP.format("{{ m }}"),
    "counts": "{{ messages | length }}" + LOOP.format("{{ m['content'] }}"),
    "picks the first": "{{ messages[0]['content'] }}" + LOOP.format("{{ m['content'] }}"),
    "filters rows": "{% for m in messages if m['content'] %}{{ m['content'] }}{% endfor %}",
    "goes through characters": LOOP.format("{% for c in m['content'] %}{{ c }}-{% endfor %}"),
    "asks the next": LOOP.format("{% if loop.nextitem %}{{ m['content'] }}{% endif %}"),
    "tells the time": "{{ strftime_now('%H') }}" + LOOP.format("{{ m['content'] }}"),
    "filters a block": LOOP.format("{% filter upper %}{{ m['content'] }}{% endfilter %}"),
    "calls a macro": "{% macro f(x) %}{{ x[:1] }}{% endmacro %}"
    + LOOP.format("{{ f(m.content) }}"),
    "is broken": "{% for m in messages %}",
}


def random_chat(draw: random.Random, num_turns: int) -> list[Message]:
    roles = ["system"] * draw.randrange(2) + ["user", "assistant"] * num_turns
    return [
        {"role": role, "content": "".join(draw.choices(PIECES, k=draw.randrange(1, 5)))}
        for role in roles
    ]


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Message]]:
    asked: list[Sequence[Message]] = []

    def counted(tokenizer: object, template: object, messages: Sequence[Message]) -> object:
        asked.append(messages)
        return render_segments(tokenizer, template, messages)  # type: ignore[arg-type]

    monkeypatch.setattr(plain_templates, "render_segments", counted)
    return asked


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_are_asked_once_per_order_of_roles_and_give_the_same_segments(
    tokenizer: "PreTrainedTokenizerFast", name: TemplateName, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = choose_template(tokenizer, name)
    asked = count_calls(monkeypatch)
    render = chat_renderer(tokenizer, template)
    draw = random.Random(3)
    chats = [random_chat(draw, draw.randrange(1, 4)) for _ in range(60)]
    for chat in [*chats, *(chat[:-1] for chat in chats)]:
        assert render(chat) == render_segments(tokenizer, template, chat)
    orders = {tuple(message["role"] for message in chat) for chat in chats}
    assert len(asked) == 2 * len(orders)  # with the answer and without


@pytest.mark.parametrize("source", LOOKS.values(), ids=LOOKS)
def test_a_template_that_looks_at_contents_is_known_as_such(source: str) -> None:
    assert not writes_contents_only(source)


@pytest.mark.parametrize("source", [ROLES, ROUNDS], ids=["role tokens", "rounds"])
def test_templates_that_rewrite_earlier_answers_are_asked_for_every_row(
    tokenizer: "PreTrainedTokenizerFast", source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = source
    template = choose_template(tokenizer, "auto")
    asked = count_calls(monkeypatch)
    render = chat_renderer(tokenizer, template)
    draw = random.Random(4)
    chats = [random_chat(draw, 2) for _ in range(10)]
    for chat in chats:
        assert render(chat) == render_segments(tokenizer, template, chat)
    assert asked == chats


def test_a_chat_that_the_template_refuses_is_refused_in_the_same_words(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ 1 + m['content'] }}{% endif %}"
        "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    template = choose_template(tokenizer, "auto")
    chat: list[Message] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    told = []
    for render in (
        chat_renderer(tokenizer, template),
        lambda messages: render_segments(tokenizer, template, messages),
    ):
        with pytest.raises(TemplateError) as error:
            render(chat)
        told.append(str(error.value))
    assert told[0] == told[1]


def test_all_named_templates_are_plain(tokenizer: "PreTrainedTokenizerFast") -> None:
    assert len(NAMED) == 4
    assert all(writes_contents_only(write_template(tokenizer, name)) for name in NAMED)
