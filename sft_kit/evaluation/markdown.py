"""Text of any kind in Markdown: it means itself, whatever it is."""

import html
import re
from collections.abc import Sequence

from sft_kit.data.token_text import readable

_MAX_TEXT_CHARACTERS = 240
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


def table(captions: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table and an empty one; cells are Markdown already."""
    rows = [captions, ["---"] * len(captions), *lines]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def escape(text: str) -> str:
    """Make text mean itself in a Markdown table: no column, link, picture, formula or HTML."""
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line(text), quote=False))


def one_line(text: str) -> str:
    """Put text on one line, with invisible characters spelled out."""
    return readable(" ".join(text.split())).replace("\n", "")


def shortened(text: str, *, keep_end: bool = False) -> str:
    """Cut a long text, at its beginning where `keep_end` says so."""
    if len(text) <= _MAX_TEXT_CHARACTERS:
        return text
    if keep_end:
        return f"…{text[1 - _MAX_TEXT_CHARACTERS :]}"
    return f"{text[: _MAX_TEXT_CHARACTERS - 1]}…"
