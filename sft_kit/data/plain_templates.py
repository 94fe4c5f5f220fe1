"""Chats rendered without Jinja, where the template writes contents as they are.

Most templates put fixed texts around contents they don't look at. What such a template makes of a
chat depends on the roles alone: it is asked once for each order of roles, with marks in place of
the contents, and the contents of the rows are put where the marks are. Rendering takes a twentieth
of the time. A template that looks at a content (trims it, searches it) is asked for every row.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError

from sft_kit.data.rows import Message
from sft_kit.data.segments import Segment
from sft_kit.data.templates import Template, render_segments
from sft_kit.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RenderChat: TypeAlias = Callable[[Sequence[Message]], list[Segment]]

_Shape: TypeAlias = list[tuple[list[str], bool]]
"""Segments: fixed texts (even places) between numbers of messages, and whether it is an answer."""

_MARK = re.compile("\ue000([0-9]+)\ue001")
_CALM = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.If, nodes.For),
    *(nodes.Add, nodes.Concat, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Name, nodes.Getitem, nodes.Getattr),
)
"""Parts of a template that can't do anything to a content but write it."""


def chat_renderer(tokenizer: "PreTrainedTokenizerBase", template: Template) -> RenderChat:
    """Make a `render_segments` for many chats: the same segments, sooner.

    Args:
        tokenizer: Carries the template.
        template: From `choose_template`.
    """
    last_only = template.learns_last_answer_only or template.turn_stop_token is not None
    is_plain = not last_only and writes_contents_only(template.source)
    shapes: dict[tuple[str, ...], _Shape | None] = {}

    def render(messages: Sequence[Message]) -> list[Segment]:
        roles = tuple(message["role"] for message in messages)
        if is_plain and roles not in shapes:
            shapes[roles] = _shape(tokenizer, template, roles)
        shape = shapes.get(roles)
        if shape is None:
            return render_segments(tokenizer, template, messages)
        contents = [message["content"] for message in messages]
        return [Segment(_fill(texts, contents), is_completion) for texts, is_completion in shape]

    return render


def writes_contents_only(source: str) -> bool:
    """Whether a template writes contents and doesn't look at them.

    >>> writes_contents_only("{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}")
    True
    >>> writes_contents_only("{% for m in messages %}{{ m['content'] | trim }}{% endfor %}")
    False
    """
    try:
        tree = Environment().parse(source)
    except TemplateSyntaxError:
        return False  # blocks that only transformers knows
    loops = [loop for loop in tree.find_all(nodes.For) if _is_over_messages(loop)]
    names = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}
    return len(loops) == len(list(tree.find_all(nodes.For))) and _is_calm(tree, names, False)


def _is_over_messages(loop: nodes.For) -> bool:
    return (
        isinstance(loop.iter, nodes.Name)
        and loop.iter.name == "messages"
        and isinstance(loop.target, nodes.Name)
        and loop.target.name not in ("loop", "messages")
        and loop.test is None
        and not loop.recursive
    )


def _is_calm(node: nodes.Node, messages: set[str], writes: bool) -> bool:
    """Whether no content is used but in what is written.

    Args:
        node: Part of a template.
        messages: Names of the variables that hold a message.
        writes: The part's value is written as it is, or joined to what is written.
    """
    if not isinstance(node, _CALM):
        return False
    if isinstance(node, nodes.Getitem | nodes.Getattr) and isinstance(node.node, nodes.Name):
        key = node.attr if isinstance(node, nodes.Getattr) else _constant(node.arg)
        if node.node.name in messages:
            return key == "role" or (writes and key == "content")
        return node.node.name == "loop" and key in ("first", "last", "index", "index0")
    if isinstance(node, nodes.Name):
        return node.name not in {"messages", "loop", *messages}
    if isinstance(node, nodes.For):
        return all(_is_calm(part, messages, False) for part in [*node.body, *node.else_])
    writes = isinstance(node, nodes.Output) or (
        writes and isinstance(node, nodes.Add | nodes.Concat)
    )
    return all(_is_calm(part, messages, writes) for part in node.iter_child_nodes())


def _constant(node: nodes.Expr) -> object:
    return node.value if isinstance(node, nodes.Const) else None


def _shape(
    tokenizer: "PreTrainedTokenizerBase", template: Template, roles: tuple[str, ...]
) -> _Shape | None:
    """Render a chat of marks; None where the template refuses it or rewrites an earlier answer."""
    if _MARK.search(template.source):
        return None
    chat = [Message(role=role, content=f"\ue000{n}\ue001") for n, role in enumerate(roles)]
    try:
        segments = render_segments(tokenizer, template, chat)
    except TemplateError:
        return None  # asked with the row itself, it says why
    if sum(segment.is_completion for segment in segments) != roles.count("assistant"):
        return None
    return [(_MARK.split(segment.text), segment.is_completion) for segment in segments]


def _fill(texts: Sequence[str], contents: Sequence[str]) -> str:
    filled = list(texts)
    filled[1::2] = [contents[int(number)] for number in texts[1::2]]
    return "".join(filled)
