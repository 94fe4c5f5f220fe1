"""Where broken YAML has to be repaired, and what is wrong there in plain words.

A parser names the place where it can't go on. That is often a sound line below the broken one: a
quote ends where the next one begins, a line without its colon is text that goes on.
"""

import re
from collections.abc import Sequence

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_KEY = re.compile(r"([ \t]*)(?:- +)*[\"']?([\w.-]+)[\"']? *:(?= |$)")
_KEY_WITHOUT_BLANK = re.compile(r"([ \t]*)([\w.-]+):(?=[^ ])")
_IN_PLAIN_WORDS = {
    "mapping values are not allowed": "a colon where no key can stand",
    "expected <block end>": "an indent that differs from the lines around it",
    "could not find expected ':'": "a key without a colon and a blank behind it",
    "expected '<document start>'": "text outside of all sections",
}
_DEEP = 1_000


def is_noticed_late(reason: str, line: str) -> bool:
    """Whether a parser stumbles over something that was left open in a line above.

    Args:
        reason: The parser's words.
        line: Where it stumbles.
    """
    if reason.startswith("expected ',' or") and _KEY.match(line):
        return True  # an open bracket, and the next key below it
    return ("end" in reason and "stream" in reason) or reason.startswith("could not find")


def line_to_repair(lines: Sequence[str], column: int, long_quote: tuple[int, int]) -> int:
    """Name the line to repair, from 1.

    Args:
        lines: All lines up to the one where the parser stumbles.
        column: Where it stumbles in the last of them, from 0.
        long_quote: First and last line of the last text in quotes.
    """
    noticed = len(lines)
    opened, closed = long_quote
    if opened < noticed == closed:  # the quote that ends here was meant to end where it began
        return opened
    key = _KEY.match(lines[-1]) if lines else None
    if key is None or key.end() != column + 1:
        return noticed
    line = noticed
    while line > 1 and not _KEY.match(lines[line - 2]):  # a text over several lines
        line -= 1
    while line < noticed and not lines[line - 1].split("#")[0].strip():
        line += 1
    return line


def key_of_line(lines: Sequence[str]) -> tuple[str, ...]:
    """Name the key that the last line stands under, and its section, by indentation alone.

    Args:
        lines: All lines up to the one that is asked for.
    """
    names: list[str] = []
    indent = _DEEP
    for line in reversed(lines):
        key = _KEY.match(line) or (None if names else _KEY_WITHOUT_BLANK.match(line))
        if key and len(key[1]) < indent:
            indent = len(key[1])
            names.insert(0, key[2])
        elif line.strip() and not names:
            indent = min(indent, len(line) - len(line.lstrip()))
    return tuple(names)


def in_plain_words(reason: str, lines: Sequence[str], line: int) -> tuple[str, str]:
    """Say what is wrong, and what to do about it where that is likely.

    Args:
        reason: The parser's words.
        lines: All lines.
        line: The one to repair, from 1.
    """
    words = (text for start, text in _IN_PLAIN_WORDS.items() if reason.startswith(start))
    message = f"found broken YAML: {next(words, reason)}"
    if any("\t" in one for one in lines[max(0, line - 2) : line + 1]):
        return message, "indent with spaces, never with tabs"
    return message, "put a blank behind the colon" * bool(_KEY_WITHOUT_BLANK.match(lines[line - 1]))
