"""Chat templates: one renderer for training, evaluation and chat.

A chat is rendered as text by the tokenizer's Jinja template and then encoded *segment by segment*:
everything up to an answer is one segment, the answer with its stop token is the next. Byte-pair
merges never cross a segment's border, so the ids before an answer are the same whether the answer
is already there (training) or still to come (chat).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from jinja2.exceptions import TemplateError as JinjaError

from sft_kit.data.rows import Message
from sft_kit.errors import DataError, Problem, TemplateError
from sft_kit.settings import TemplateName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HUMAN_ASSISTANT = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n' }}
{%- elif message['role'] == 'user' -%}{{ 'Human: ' + message['content'] + '\\n' }}
{%- else -%}{{ 'Assistant: ' + message['content'] + eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"""

_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- else -%}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""

_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{ STOP }}{%- else -%}{{ '<|im_end|>' }}{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

_PLAIN = """\
{%- for message in messages -%}
{{- message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}"""


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template bound to a tokenizer.

    Attributes:
        name: A name of `TemplateName`, or "tokenizer" for the tokenizer's own.
        source: The Jinja text.
        stop_token: Token that ends every answer, as text.
        stop_token_id: Its id.
    """

    name: str
    source: str
    stop_token: str
    stop_token_id: int

    @property
    def sha256(self) -> str:
        """Fingerprint of the Jinja text, saved with a run and checked when the run is loaded."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        """Name, fingerprint and stop token, for the record of a run."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "stop_token": self.stop_token,
            "stop_token_id": self.stop_token_id,
        }


@dataclass(frozen=True, slots=True)
class Segment:
    """Rendered text that is encoded on its own; `is_completion` when it is an answer."""

    text: str
    is_completion: bool


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
    return bind_template(tokenizer, chosen, _NAMED[chosen](tokenizer))


def bind_template(tokenizer: "PreTrainedTokenizerBase", name: str, source: str) -> Template:
    """Put a Jinja template on the tokenizer and find its stop token by rendering a small chat.

    Raises:
        TemplateError: No special token follows an answer; the message shows the last five tokens.
    """
    tokenizer.chat_template = source
    question: Message = {"role": "user", "content": "sesame?"}
    answer: Message = {"role": "assistant", "content": "Sesame!"}
    before = _render(tokenizer, [question], name, add_generation_prompt=True)
    after = _render(tokenizer, [question, answer], name)
    _require_prefix(before, after, name)
    tail = after[after.rfind(answer["content"]) + len(answer["content"]) :]
    special_ids = set(tokenizer.all_special_ids)
    tail_ids = _encode(tokenizer, tail)
    for token_id in tail_ids:
        if token_id in special_ids:
            stop_token = cast("str", tokenizer.convert_ids_to_tokens(token_id))
            return Template(name, source, stop_token, token_id)
    last_tokens = tokenizer.convert_ids_to_tokens(_encode(tokenizer, after)[-5:])
    raise TemplateError(
        f"the chat template {name!r} ends an answer without a special token, so nothing would "
        f"teach the model to stop; the last tokens of a rendered answer are {last_tokens}. Write "
        "the tokenizer's eos_token after the answer, or choose data.template=human-assistant"
    )


def render_segments(
    tokenizer: "PreTrainedTokenizerBase", template: Template, messages: Sequence[Message]
) -> list[Segment]:
    """Render a chat as alternating prompt and completion segments.

    A chat that ends with an answer ends with its stop token (what a template writes after it is
    only rendered when another turn follows). A chat that ends with a question ends with the
    generation prompt.

    Raises:
        TemplateError: The template refuses the roles, or renders earlier turns differently once a
            turn is added.
    """
    segments: list[Segment] = []
    rendered = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], template.name, add_generation_prompt=True)
        after = _render(tokenizer, messages[: index + 1], template.name)
        _require_prefix(rendered, before, template.name)
        _require_prefix(before, after, template.name)
        end = after.rfind(template.stop_token) + len(template.stop_token)
        if end < len(before) + len(template.stop_token):
            raise TemplateError(
                f"the chat template {template.name!r} ended an answer without its stop token "
                f"{template.stop_token!r}"
            )
        segments.append(Segment(before[len(rendered) :], is_completion=False))
        segments.append(Segment(after[len(before) : end], is_completion=True))
        rendered = after[:end]
    if not messages or messages[-1]["role"] != "assistant":
        before = _render(tokenizer, messages, template.name, add_generation_prompt=True)
        _require_prefix(rendered, before, template.name)
        segments.append(Segment(before[len(rendered) :], is_completion=False))
    return segments


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
    segments = render_segments(tokenizer, template, messages)
    return [token_id for segment in segments for token_id in _encode(tokenizer, segment.text)]


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
        text = tokenizer.apply_chat_template(
            [{"role": message["role"], "content": message["content"]} for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (JinjaError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(
            f"the chat template {name!r} refuses a chat with the roles [{roles}]: {error}"
        ) from error
    return cast("str", text)


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _require_prefix(before: str, after: str, name: str) -> None:
    if not after.startswith(before):
        raise TemplateError(
            f"the chat template {name!r} rewrites earlier text when a turn is added: "
            f"{before[-60:]!r} became {after[: len(before)][-60:]!r}. Training and chat would see "
            "different prompts; choose another data.template, or train on single-turn rows"
        )


def begins_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether this tokenizer begins every text with its begin-of-text token, as Llama's does."""
    first = cast("list[int]", tokenizer("a")["input_ids"])[:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]


def _with_bos(source: str) -> Callable[["PreTrainedTokenizerBase"], str]:
    def build(tokenizer: "PreTrainedTokenizerBase") -> str:
        return "{{- bos_token -}}\n" + source if begins_with_bos(tokenizer) else source

    return build


def _chatml(tokenizer: "PreTrainedTokenizerBase") -> str:
    # A tokenizer without ChatML's tokens spells them in ordinary pieces; only its end-of-text
    # stops.
    knows_chatml = "<|im_end|>" in tokenizer.get_added_vocab()
    stop = "'<|im_end|>'" if knows_chatml else "eos_token"
    return _with_bos(_CHATML.replace("STOP", stop))(tokenizer)


_NAMED: dict[str, Callable[["PreTrainedTokenizerBase"], str]] = {
    "human-assistant": _with_bos(_HUMAN_ASSISTANT),
    "alpaca": _with_bos(_ALPACA),
    "chatml": _chatml,
    "plain": _with_bos(_PLAIN),
}
