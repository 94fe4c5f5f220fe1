"""What counts as the same text: case, white space and Unicode composition make no difference."""

import hashlib
import re
import unicodedata

_BLOCK = 1 << 16
# Radicals, CJK punctuation, kana, bopomofo; hanzi; full-width and half-width forms. No hangul:
# Korean parts its words by blanks.
_CJK = (
    "\u2e80-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f"
    "\uffe0-\uffe6\U00020000-\U0003ffff"
)
_GAP_BESIDE_CJK = re.compile(f"(?<=[{_CJK}]) | (?=[{_CJK}])")


def feed_text(digest: "hashlib._Hash", text: str, *, gaps_beside_cjk: bool = True) -> None:
    """Feed a normalised text block by block: split at once it would cost several times its size.

    Args:
        digest: From `hashlib`.
        text: Of any length.
        gaps_beside_cjk: White space beside a Chinese or Japanese character counts as a blank, as it
            does elsewhere. There it parts no words, and often comes from how a page was copied.
    """
    text = unicodedata.normalize("NFC", text)
    last, in_gap = "", False
    for start in range(0, len(text), _BLOCK):
        block = text[start : start + _BLOCK]
        words = " ".join(block.casefold().split())
        if words:
            gap = " " if last and (in_gap or block[0].isspace()) else ""
            joined = f"{last}{gap}{words}"
            if not gaps_beside_cjk:
                joined = _GAP_BESIDE_CJK.sub("", joined)
            digest.update(joined[len(last) :].encode())
            last, in_gap = words[-1], block[-1].isspace()
        else:
            in_gap = True
