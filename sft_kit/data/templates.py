"""Chat templates: one renderer for training, evaluation and chat.

A chat is rendered as text by the tokenizer's Jinja template and then encoded *segment by segment*:
everything up to an answer is one segment, the answer with its stop token is the next. Byte-pair
merges never cross a segment's border, so the ids before an answer are the same whether the answer
is already there (training) or still to come (chat).

A template may end an answer with another token once a turn follows (ChatGLM3 with the next turn's
role); the answer is then learnt up to and including that token. It may also write an earlier answer
in another way (ChatGLM2 without stop token, Qwen3 without its thinking); then everything before the
last answer is one segment, as chat sends it, and only the last answer is learnt.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, cast

from jinja2.exceptions import TemplateError as JinjaError

from sft_kit.data.rows import Message
from sft_kit.data.segments import (
    Segment,
    encode_segments,
    find_special_token,
)
from sft_kit.data.template_texts import write_template
from sft_kit.data.time_limit import time_limit
from sft_kit.errors import DataError, Problem, TemplateError
from sft_kit.settings import TemplateName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_SECONDS = 10.0
"""To render one chat; published templates take a thousandth of one."""

_REFUSALS = (
    *(JinjaError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError),
    *(TimeoutError, TypeError, ValueError),
)
"""What a template that does not fit raises: it is a program of somebody else's."""

_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "sesame?"},
    {"role": "assistant", "content": "Sesame!"},
    {"role": "user", "content": "barley?"},
)


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template bound to a tokenizer.

    Attributes:
        name: A name of `TemplateName`, or "tokenizer" for the tokenizer's own.
        source: The Jinja text.
        stop_token: Token that ends the last answer, as text.
        stop_token_id: Its id.
        turn_stop_token: Token that ends an answer when another turn follows, where that is another
            one than `stop_token` (as in ChatGLM3, where the next turn's role token ends it), or
            stands elsewhere.
        turn_stop_token_id: Its id.
        learns_last_answer_only: An earlier answer is rendered in another way than a last one, so
            that it can only be read, never learnt.
    """

    name: str
    source: str
    stop_token: str
    stop_token_id: int
    turn_stop_token: str | None = None
    turn_stop_token_id: int | None = None
    learns_last_answer_only: bool = False

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids of all tokens that end an answer, that of `stop_token` first."""
        ids = (self.stop_token_id, self.turn_stop_token_id)
        return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))

    @property
    def sha256(self) -> str:
        """Fingerprint of the Jinja text, saved with a run and checked when the run is loaded."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        """Name, fingerprint, stop tokens and what is learnt, for the record of a run."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "stop_token": self.stop_token,
            "stop_token_id": self.stop_token_id,
            "turn_stop_token": self.turn_stop_token,
            "turn_stop_token_id": self.turn_stop_token_id,
            "learns_last_answer_only": self.learns_last_answer_only,
        }


def choose_template(tokenizer: "PreTrainedTokenizerBase", name: TemplateName) -> Template:
    """Settle the chat template and put it on the tokenizer, so that it is saved with it.

    Args:
        tokenizer: Gets `chat_template` set.
        name: "auto" takes the tokenizer's own template, else `human-assistant`.

    Raises:
        TemplateError: No stop token ends an answer, or the tokenizer lacks an end-of-text token.
    """
    if name == "auto" and isinstance(tokenizer.chat_template, str):
        return bind_template(tokenizer, "tokenizer", tokenizer.chat_template)
    chosen = "human-assistant" if name == "auto" else name
    if tokenizer.eos_token is None:
        problem = Problem(
            "data.template", chosen, "the tokenizer has no end-of-text token to stop with"
        )
        raise TemplateError(f"the template {chosen!r} needs an end-of-text token", [problem])
    return bind_template(tokenizer, chosen, write_template(tokenizer, chosen))


def bind_template(tokenizer: "PreTrainedTokenizerBase", name: str, source: str) -> Template:
    """Put a Jinja template on the tokenizer and find its stop tokens by rendering two small chats.

    Raises:
        TemplateError: No special token follows an answer; the message shows the last five tokens.
    """
    tokenizer.chat_template = source
    before = _render(tokenizer, _PROBE[:1], name, add_generation_prompt=True)
    after = _render(tokenizer, _PROBE[:2], name)
    _require_prefix(before, after, name)
    answer = _PROBE[1]["content"]
    answer_end = after.rfind(answer) + len(answer)
    found = find_special_token(tokenizer, after, answer_end)
    if found is None:
        last_tokens = tokenizer.convert_ids_to_tokens(_encode(tokenizer, after)[-5:])
        raise TemplateError(
            f"the chat template {name!r} ends an answer without a special token, so nothing would "
            f"teach the model to stop; the last tokens of a rendered answer are {last_tokens}. "
            "Write the tokenizer's eos_token after the answer, or choose "
            "data.template=human-assistant"
        )
    place, stop_token = found
    turn_stop_token, learns_last_answer_only = _probe_next_turn(
        tokenizer, name, after[: place + len(stop_token)], answer_end
    )
    return Template(
        name,
        source,
        stop_token,
        _id_of(tokenizer, stop_token),
        turn_stop_token,
        None if turn_stop_token is None else _id_of(tokenizer, turn_stop_token),
        learns_last_answer_only,
    )


def _probe_next_turn(
    tokenizer: "PreTrainedTokenizerBase", name: str, answered: str, answer_end: int
) -> tuple[str | None, bool]:
    """Look at how a template writes an answer once a turn follows.

    Args:
        tokenizer: Carries the template.
        name: The template's name.
        answered: The chat up to and including the stop token, as rendered without another turn.
        answer_end: Where the answer's content ends in it.

    Returns:
        The token that ends such an answer where it isn't the usual one in its usual place, and
        whether only last answers can be learnt.
    """
    try:
        both = _render(tokenizer, _PROBE, name, add_generation_prompt=True)
    except TemplateError:
        return None, False  # It accepts a single turn only, and says so for each row with more.
    if both.startswith(answered):
        return None, False
    if both.startswith(answered[:answer_end]):
        found = find_special_token(tokenizer, both, answer_end)
        if found and found[0] < both.find(_PROBE[2]["content"], answer_end):
            return found[1], False
    return None, True


def render_segments(
    tokenizer: "PreTrainedTokenizerBase", template: Template, messages: Sequence[Message]
) -> list[Segment]:
    """Render a chat as alternating prompt and completion segments.

    A chat that ends with an answer ends with its stop token (what a template writes after it is
    only rendered when another turn follows). A chat that ends with a question ends with the
    generation prompt. Where the template writes an earlier answer in another way once a turn
    follows, all before the last answer is one prompt.

    Raises:
        TemplateError: The template refuses the roles, or writes the prompt before the last answer
            differently once that answer is added.
    """
    if not template.learns_last_answer_only:
        segments = _render_every_answer(tokenizer, template, messages)
        if segments is not None:
            return segments
    if not messages or messages[-1]["role"] != "assistant":
        prompt = _render(tokenizer, messages, template.name, add_generation_prompt=True)
        return [Segment(prompt, is_completion=False)]
    prompt = _render(tokenizer, messages[:-1], template.name, add_generation_prompt=True)
    answered = _render_answered(tokenizer, template, messages, prompt)
    return [
        Segment(prompt, is_completion=False),
        Segment(answered[len(prompt) :], is_completion=True),
    ]


def _render_every_answer(
    tokenizer: "PreTrainedTokenizerBase", template: Template, messages: Sequence[Message]
) -> list[Segment] | None:
    """Render a chat with every answer as a completion; None where later turns rewrite one."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    ends_open = len(messages) - 1 not in answers
    prompts = [
        _render(tokenizer, messages[:index], template.name, add_generation_prompt=True)
        for index in [*answers, *([len(messages)] if ends_open else [])]
    ]
    segments: list[Segment] = []
    rendered = ""
    for position, prompt in enumerate(prompts):
        if not prompt.startswith(rendered):
            return None
        segments.append(Segment(prompt[len(rendered) :], is_completion=False))
        if position == len(answers):
            break
        index = answers[position]
        if template.turn_stop_token is None or index == len(messages) - 1:
            rendered = _render_answered(tokenizer, template, messages[: index + 1], prompt)
        else:
            content = messages[index]["content"]
            end = _find_turn_end(tokenizer, prompts[position + 1], prompt, content)
            if end is None:
                return None
            rendered = prompts[position + 1][:end]
        segments.append(Segment(rendered[len(prompt) :], is_completion=True))
    return segments


def _find_turn_end(
    tokenizer: "PreTrainedTokenizerBase", next_prompt: str, prompt: str, content: str
) -> int | None:
    """Find where an earlier answer ends: behind the first special token that follows it."""
    if not next_prompt.startswith(prompt):
        return None
    place = next_prompt.find(content.strip(), len(prompt))
    start = len(prompt) if place < 0 else place + len(content.strip())
    found = find_special_token(tokenizer, next_prompt, start)
    return None if found is None else found[0] + len(found[1])


def _render_answered(
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    messages: Sequence[Message],
    prompt: str,
) -> str:
    """Render a chat up to and including the stop token of the answer it ends with."""
    after = _render(tokenizer, messages, template.name)
    _require_prefix(prompt, after, template.name)
    end = after.rfind(template.stop_token) + len(template.stop_token)
    if end < len(prompt) + len(template.stop_token):
        raise TemplateError(
            f"the chat template {template.name!r} ended an answer without its stop token "
            f"{template.stop_token!r}"
        )
    return after[:end]


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", template: Template, messages: Sequence[Message]
) -> list[int]:
    """Encode what chat sends: all turns so far and the beginning of the answer to come.

    Args:
        tokenizer: The run's tokenizer.
        template: The run's template.
        messages: Turns so far; the last is not an answer.

    Returns:
        P prompt token ids.

    Raises:
        DataError: A message spells a special token, which would be read as a control token.
        TemplateError: The template refuses the roles.
    """
    texts = [message["content"] for message in messages]
    if spelled := spelled_special_tokens(tokenizer, texts):
        raise DataError(
            f"the message spells {', '.join(map(repr, spelled))}, which the model would read as a "
            "control token: write it in another way"
        )
    (ids,) = encode_segments(tokenizer, [render_segments(tokenizer, template, messages)])
    return list(chain.from_iterable(ids))


def spelled_special_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[str]:
    """List the special tokens that stand in texts as ordinary characters."""
    tokens = [token for token in tokenizer.all_special_tokens if token]
    return [token for token in tokens if any(token in text for text in texts)]


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    name: str,
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        with time_limit(_MAX_SECONDS):
            text = tokenizer.apply_chat_template(
                [{"role": message["role"], "content": message["content"]} for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
    except _REFUSALS as error:
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(
            f"the chat template {name!r} refuses a chat with the roles [{roles}]: {error}"
        ) from error
    return cast("str", text)


def _id_of(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    return cast("int", tokenizer.convert_tokens_to_ids(token))


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _require_prefix(before: str, after: str, name: str) -> None:
    if not after.startswith(before):
        raise TemplateError(
            f"the chat template {name!r} rewrites earlier text when a turn is added: "
            f"{before[-60:]!r} became {after[: len(before)][-60:]!r}. Training and chat would see "
            "different prompts; choose another data.template, or train on single-turn rows"
        )
