"""Where the sentences of a text begin, in English and Chinese."""

import re
from bisect import bisect_left
from collections.abc import Sequence

_CLOSERS = "\"'”’」』）》】)\\]"
_END = re.compile(rf"(?:[。！？…]+|[.!?]+(?=[{_CLOSERS}]*(?:\s|$)))[{_CLOSERS}]*\s*|\s*\n\s*")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Col|Lt|Capt|Rev|Hon|No|Nos|Fig|Vol|vs|cf|"
    r"e\.g|i\.e|(?:[A-Z]\.)*[A-Z])$"
)
_LONGEST_ABBREVIATION = 16


def sentence_starts(text: str) -> tuple[int, ...]:
    """Find the first character of every sentence.

    A sentence ends at 。！？…, at a line end, and at . ! ? before a blank or the end of the text;
    closing quotes and brackets stay with it. A full stop doesn't end it behind a title or an
    initial (Mr., J. K. Rowling) or before a small letter (etc. and so on); the one in 3.14 has no
    blank behind it.

    Returns:
        Places of the beginnings, ascending; the first is 0. Empty for an empty text.
    """
    if not text:
        return ()
    starts = [0]
    for match in _END.finditer(text):
        end = match.end()
        if end < len(text) and not (match.group()[0] == "." and _goes_on(text, match.start(), end)):
            starts.append(end)
    return tuple(starts)


def _goes_on(text: str, stop: int, following: int) -> bool:
    if "\n" in text[stop:following]:
        return False
    before = text[max(0, stop - _LONGEST_ABBREVIATION) : stop]
    return text[following].islower() or _ABBREVIATION.search(before) is not None


def starts_between(starts: Sequence[int], first: int, last: int) -> tuple[int, ...]:
    """Move the starts of sentences to a part of their text, which begins a sentence itself.

    Args:
        starts: Places in the whole text, ascending.
        first: First character of the part.
        last: The character behind it.
    """
    inside = starts[bisect_left(starts, first + 1) : bisect_left(starts, last)]
    return (0, *(start - first for start in inside))
