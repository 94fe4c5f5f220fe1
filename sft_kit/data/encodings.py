"""Bytes in any of Python's encodings -> UTF-8: what a user declared, or what the bytes look like.

Everything behind this file reads UTF-8 only. Bytes that an encoding doesn't know become 0xFF, which
is never part of UTF-8: they spoil their own row and no other.
"""

import codecs
import re
from collections.abc import Iterator
from encodings.aliases import aliases

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.errors import DataError

UTF8 = "utf-8"

_UTF8_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (  # the longer ones first: UTF-32 begins like UTF-16
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
# Encodings of domain names and of source code, and one that is there to fail.
_NOT_FOR_FILES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"}
_OFTEN_MEANT = (
    "such as gb18030 or big5 for Chinese, shift_jis or euc_jp for Japanese, euc_kr for Korean, "
    "cp1251 for Cyrillic, cp1250 for Central European text"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WESTERN_LETTERS = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýßœÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ"
_WESTERN_MARKS = "‘’“”„–—…•€£¥§°«»©®™´½¼¾¿¡·²³¦±×\xa0"
_MARK_IN_A_WORD = re.compile(r"(?<=[^\W\d_])[^\w’·´\x00-\x7f](?=[^\W\d_])|[²³¼½¾](?=[^\W\d_])")
_WORD_OF_ACCENTS = re.compile("[À-ÖØ-öø-ÿ]{3}")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_ASCII = re.compile(r"[\x00-\x7f]+")
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_CONTROLS_OF_LATIN1 = re.compile(rb"[\x80-\x9f]")
_SAMPLE_SIZE = 1 << 16
_PIECE_BYTES = 1 << 10
_MAX_DAMAGED = 0.2
"""Share of wrong bytes beyond ASCII up to which a file is UTF-8. Half of them are wrong in Japanese
text in EUC-JP read as UTF-8, two thirds in Chinese text in GBK, all in Western text in latin-1."""
_MAX_STRANGE = 0.02
"""Share of characters that may be out of place in Western text."""
_MIN_COMMON = 0.95
"""Share of common hanzi and punctuation that makes text Chinese."""
_MIN_LATE = 0.05
"""Share of hanzi late in the alphabet that makes text Chinese; about a third of Chinese text."""


def declared_encoding(name: str) -> str:
    """Return Python's own name of the encoding that `data.encoding` declares.

    Raises:
        DataError: Python knows no such encoding of text.
    """
    try:
        found = codecs.lookup(name).name
        "\n".encode(name)
    except (LookupError, ValueError):
        found = "undefined"
    if found in _NOT_FOR_FILES:
        close = nearest(name, {*aliases, *aliases.values()})
        hint = did_you_mean(close) or "utf-8, latin-1, cp1252, gb18030, utf-16, ..."
        raise DataError(
            f"data.encoding: found {name!r:.60}, accepts 'auto' or Python's name of an encoding of "
            f"text ({hint})"
        )
    return UTF8 if found == "utf-8-sig" else found


def detect_encoding(content: bytes, name: str) -> str:
    """Name the encoding of a file where its bytes leave no doubt: UTF-8, gb18030, latin-1, cp1252.

    A file in which nearly all bytes beyond ASCII are UTF-8 is UTF-8 with damaged lines. All other
    encodings are mistaken for each other too easily to be guessed.

    Args:
        content: All bytes of the file.
        name: The file as the user named it.

    Raises:
        DataError: The encoding must be declared, or the file is no text.
    """
    for mark, encoding in ((_UTF8_BOM, UTF8), *_WIDE_BOMS):
        if content.startswith(mark):
            return encoding
    num_wrong = len(_SURROGATE.findall(content.decode(UTF8, errors="surrogateescape")))
    if num_wrong <= _MAX_DAMAGED * sum(map(len, _HIGH_BYTES.findall(content))):
        return UTF8
    if len(_CONTROLS.findall(content)) * 100 <= len(content):
        if _looks_chinese(content):
            return "gb18030"
        if _looks_western(_sample(content)):
            return "cp1252" if _CONTROLS_OF_LATIN1.search(content) else "latin-1"
    likely = "such as data.encoding=utf-16-le" if b"\0" in content else _OFTEN_MEANT
    raise DataError(
        f"{name}: not UTF-8, and the encoding can't be told from its bytes (declare it with "
        f"data.encoding, {likely}, or convert the file to UTF-8)"
    )


def _looks_chinese(content: bytes) -> bool:
    """Tell simplified Chinese in GB 2312, GBK or GB 18030: common hanzi, some of them late ones.

    GB 2312 holds the 3,755 common hanzi in the order of pinyin, with the first bytes B0 to D7,
    and punctuation behind A1 and A3. Hangul of EUC-KR (B0 to C8) and common kanji of EUC-JP (B0 to
    CF) would be such hanzi too, but none that begins with x, y or z (D0 to D7).
    """
    try:
        text = _ASCII.sub("", content.decode("gb18030"))
    except UnicodeDecodeError:
        return False
    sample = text[:: len(text) // _SAMPLE_SIZE + 1]
    first_bytes = [char.encode("gb2312", errors="replace")[0] for char in sample]
    num_late = sum(0xD0 <= byte <= 0xD7 for byte in first_bytes)
    num_common = sum(0xB0 <= byte <= 0xD7 or byte in (0xA1, 0xA3) for byte in first_bytes)
    return num_common >= _MIN_COMMON * len(sample) and num_late >= _MIN_LATE * len(sample)


def _sample(content: bytes) -> bytes:
    """Take pieces from all over the lines that aren't ASCII."""
    text = b"\n".join(line for line in content.splitlines() if not line.isascii())
    step = _PIECE_BYTES * (len(text) // _SAMPLE_SIZE + 1)
    return b"".join(text[at : at + _PIECE_BYTES] for at in range(0, len(text), step))


def _looks_western(sample: bytes) -> bool:
    """Tell Western European text: a minority of accented letters, and no mark inside a word.

    Polish, Czech and Turkish letters read as cp1252 give other letters or marks inside words,
    Russian and Greek ones words of nothing but accented letters.
    """
    text = sample.decode("cp1252", errors="replace")
    beyond = [char for char in text if not char.isascii()]
    accented = sum(char.isalpha() for char in beyond)
    strange = sum(char not in _WESTERN_LETTERS + _WESTERN_MARKS for char in beyond)
    strange += len(_MARK_IN_A_WORD.findall(text)) + len(_WORD_OF_ACCENTS.findall(text))
    is_minority = accented * 3 <= sum(char.isalpha() for char in text)
    # Hungarian in cp1250 has õ for ő; where õ is meant, there is ã (Portuguese) or ä (Estonian).
    is_hungarian = "õ" in text and not {"ã", "ä"} & set(text)
    return is_minority and not is_hungarian and strange <= _MAX_STRANGE * len(beyond)


def lines_as_utf8(content: bytes, encoding: str) -> Iterator[tuple[int, bytes]]:
    r"""Yield byte offset and UTF-8 bytes of each line, `\n` included, byte order mark removed.

    Args:
        content: All bytes of the file.
        encoding: Python's name of their encoding.
    """
    encoding, start = _without_mark(content, encoding)
    newline = "\n".encode(encoding)
    first = start
    while start < len(content):
        end = content.find(newline, start)
        while end >= 0 and (end - first) % len(newline):  # halves of two other characters
            end = content.find(newline, end + 1)
        stop = len(content) if end < 0 else end + len(newline)
        line = _as_utf8(content[start:stop], encoding)
        yield start, line.removeprefix(_UTF8_BOM) if start == first else line
        start = stop


def _without_mark(content: bytes, encoding: str) -> tuple[str, int]:
    """Settle the byte order of UTF-16 and UTF-32; without a mark it is the little-endian one."""
    if encoding not in {"utf-16", "utf-32"}:
        return encoding, 0
    for mark, order in _WIDE_BOMS:
        if order.startswith(encoding) and content.startswith(mark):
            return order, len(mark)
    return f"{encoding}-le", 0


def _as_utf8(line: bytes, encoding: str) -> bytes:
    try:
        text = line.decode(encoding)
    except UnicodeError:
        text = _with_gaps(line, encoding)
    return _SURROGATE.sub("\udcff", text).encode(UTF8, errors="surrogateescape")


def _with_gaps(line: bytes, encoding: str) -> str:
    """Decode what can be decoded; every gap holds a surrogate."""
    try:
        return line.decode(encoding, errors="surrogateescape")
    except UnicodeError:  # that handler refuses bytes below 0x80, which UTF-16 has
        return line.decode(encoding, errors="replace").replace("\ufffd", "\udcff")
