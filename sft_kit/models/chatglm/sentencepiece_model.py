"""A `tokenizer.model` of SentencePiece, read without sentencepiece and protobuf.

Only the kind that ChatGLM2 and ChatGLM3 ship is accepted: byte-pair encoding, byte fallback, no
normalisation but a space put before the text. Any other would load and encode wrongly.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sft_kit.errors import CheckpointError, Problem

SPACE = "\u2581"
"""What a space is inside a piece."""

_NUM_BYTES = 256
_FIRST_BYTE_ID = 3
_FIRST_NORMAL_ID = _FIRST_BYTE_ID + _NUM_BYTES
_MAX_VARINT_BYTES = 10
_LFS_POINTER = b"version https://git-lfs"
_BPE = 2
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}


class PieceKind(IntEnum):
    """What a piece is for; the numbers are those of the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its position in the file."""

    text: str
    score: float
    kind: PieceKind


class _DamagedError(ValueError):
    """The bytes are no message of the kind expected."""


class _UnsuitableError(ValueError):
    """A readable model that would encode otherwise than ChatGLM's."""


def read_pieces(path: Path) -> list[Piece]:
    """Read the vocabulary of a `tokenizer.model` in the order of its ids.

    Args:
        path: The file.

    Returns:
        `<unk>`, `<s>`, `</s>`, the 256 bytes, then the learnt pieces.

    Raises:
        CheckpointError: No such file, not a SentencePiece model, cut short or damaged, or of
            another kind than ChatGLM2's and ChatGLM3's.

    Source:
        google/sentencepiece, `sentencepiece_model.proto`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"can't be read: {error.strerror or error}"
        raise _error(path, message, "copy it from the original checkpoint") from error
    return parse_pieces(data, path)


def parse_pieces(data: bytes, path: Path) -> list[Piece]:
    """Read the vocabulary out of the bytes of a `tokenizer.model`.

    Args:
        data: The whole file.
        path: Named in messages.

    Raises:
        CheckpointError: As for `read_pieces`.
    """
    again = "copy it from the original checkpoint again"
    if data.startswith(_LFS_POINTER):
        message = "is a pointer of Git LFS, not the file itself"
        raise _error(path, message, "run `git lfs pull`, or download the file")
    try:
        pieces, trainer, normalizers = _read_model(data)
        _check_algorithm(trainer)
        for normalizer in normalizers:
            _check_normalizer(normalizer)
        _check_pieces(pieces)
    except _DamagedError as error:
        message = f"is no SentencePiece model, or is damaged: {error}"
        raise _error(path, message, again) from error
    except _UnsuitableError as error:
        todo = "take tokenizer.model from the original ChatGLM2 or ChatGLM3 checkpoint"
        raise _error(path, f"is not ChatGLM's: {error}", todo) from error
    return pieces


def count_pieces(path: Path) -> int:
    """Count the pieces of a `tokenizer.model`; the special tokens get the ids that follow.

    Raises:
        CheckpointError: As for `read_pieces`.
    """
    return len(read_pieces(path))


def bpe_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """List the pairs that may be merged, in the order in which they are.

    SentencePiece merges any two neighbours that together are a piece, the best score first. So each
    way to cut a piece into two pieces is a merge, and equal results stand in the order of the ids.

    Args:
        pieces: From `read_pieces`.

    Returns:
        Pairs of piece texts, the first to merge first.
    """
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.kind is PieceKind.NORMAL}
    merges: list[tuple[str, str]] = []
    for text in sorted(ids, key=lambda text: -pieces[ids[text]].score):
        cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [(left, right) for left, right in cuts if left in ids and right in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def byte_text(byte: int) -> str:
    """Name the piece of a byte.

    >>> byte_text(10)
    '<0x0A>'
    """
    return f"<0x{byte:02X}>"


# --- the wire format -----------------------------------------------------------------------------

_KINDS: Mapping[object, PieceKind] = MappingProxyType({int(kind): kind for kind in PieceKind})
_Value = int | float | bytes
_Fields = list[tuple[int, _Value]]


def _read_model(data: bytes) -> tuple[list[Piece], _Fields, list[_Fields]]:
    """Split the file into pieces, trainer settings, and normaliser and denormaliser settings."""
    pieces: list[Piece] = []
    trainer: _Fields | None = None
    normalizer: _Fields | None = None
    denormalizer: _Fields = []
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_read_piece(_message(value)))
        elif number == 2:
            trainer = list(_fields(_message(value)))
        elif number == 3:
            normalizer = list(_fields(_message(value)))
        elif number == 5:
            denormalizer = list(_fields(_message(value)))
    if not pieces or trainer is None or normalizer is None:
        absent = {"pieces": pieces, "training settings": trainer, "normaliser": normalizer}
        names = [name for name, part in absent.items() if not part]
        raise _DamagedError(f"it has no {' and no '.join(names)}")
    return pieces, trainer, [normalizer, denormalizer]


def _read_piece(data: bytes) -> Piece:
    text, score, kind = b"", 0.0, PieceKind.NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _message(value)
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and value in _KINDS:
            kind = _KINDS[value]
        elif number in (2, 3):
            raise _DamagedError(f"a piece has {value!r} in field {number}")
    try:
        return Piece(text.decode("utf-8"), score, kind)
    except UnicodeDecodeError as error:
        raise _DamagedError(f"the text of a piece is not UTF-8: {text[:40]!r}") from error


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Walk through a message; yields field numbers and values."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise _DamagedError(f"unknown wire type {wire_type} before byte {position}")
        end = position + size
        if end > len(data):
            raise _DamagedError(f"{end - len(data)} bytes are missing at its end")
        raw = data[position:end]
        yield number, struct.unpack("<f", raw)[0] if wire_type == 5 else raw
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise _DamagedError("it ends inside a number")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _DamagedError(f"no number ends after byte {position}")


def _message(value: _Value) -> bytes:
    if not isinstance(value, bytes):
        raise _DamagedError(f"found the number {value!r} where a text belongs")
    return value


# --- what ChatGLM needs --------------------------------------------------------------------------


def _check_algorithm(trainer: _Fields) -> None:
    settings = dict(trainer)
    kind = settings.get(3, 1)
    if kind != _BPE:
        found = _MODEL_TYPES.get(kind, repr(kind)) if isinstance(kind, int) else repr(kind)
        raise _UnsuitableError(f"its algorithm is {found}, accepted is BPE")
    if not settings.get(35, False):
        raise _UnsuitableError("it has no byte fallback")
    if settings.get(24, False):
        raise _UnsuitableError("it writes spaces behind words, accepted is before")


def _check_normalizer(fields: _Fields) -> None:
    """Refuse settings that change text; a denormaliser has no fields, or the same neutral ones."""
    if not fields:
        return
    settings = dict(fields)
    name = settings.get(1, b"")
    if settings.get(2, b"") or settings.get(6, b"") or name not in (b"", b"identity"):
        raise _UnsuitableError(f"it normalises text with {name!r}, accepted is 'identity'")
    wanted = {3: (True, "a space before the text"), 4: (False, "removal of extra spaces"),
              5: (True, "spaces written as \u2581")}  # fmt: skip
    for number, (value, what) in wanted.items():
        if bool(settings.get(number, True)) != value:
            raise _UnsuitableError(f"it has {what} switched {'off' if value else 'on'}")


def _check_pieces(pieces: Sequence[Piece]) -> None:
    first = [(piece.text, piece.kind) for piece in pieces[:_FIRST_NORMAL_ID]]
    wanted = [
        ("<unk>", PieceKind.UNKNOWN),
        ("<s>", PieceKind.CONTROL),
        ("</s>", PieceKind.CONTROL),
        *((byte_text(byte), PieceKind.BYTE) for byte in range(_NUM_BYTES)),
    ]
    for index, (found, accepted) in enumerate(zip(first, wanted, strict=False)):
        if found != accepted:
            raise _UnsuitableError(f"piece {index} is {found[0]!r}, accepted is {accepted[0]!r}")
    if len(first) < len(wanted):
        raise _UnsuitableError(f"it has {len(first)} pieces, accepted are more than {len(wanted)}")
    _check_learnt_pieces(pieces[_FIRST_NORMAL_ID:])
    texts = {piece.text for piece in pieces}
    if len(texts) != len(pieces):
        raise _UnsuitableError(f"{len(pieces) - len(texts)} of its pieces are there twice")


def _check_learnt_pieces(pieces: Sequence[Piece]) -> None:
    characters = {piece.text for piece in pieces if len(piece.text) == 1}
    scores: set[float] = set()
    for index, piece in enumerate(pieces, start=_FIRST_NORMAL_ID):
        if piece.kind is not PieceKind.NORMAL:
            kind = piece.kind.name.lower().replace("_", "-")
            raise _UnsuitableError(
                f"piece {index} ({piece.text!r}) is {kind}, accepted are learnt ones"
            )
        if not piece.text or not characters.issuperset(piece.text):
            raise _UnsuitableError(
                f"piece {index} ({piece.text!r}) has characters that are no pieces"
            )
        # With equal scores SentencePiece takes the leftmost pair, whichever piece it makes.
        if piece.score in scores or not math.isfinite(piece.score):
            found = f"piece {index} ({piece.text!r}) has the score {piece.score}"
            raise _UnsuitableError(f"{found}: scores have to be different")
        scores.add(piece.score)


def _error(path: Path, message: str, todo: str) -> CheckpointError:
    problem = Problem(str(path), "", message, todo)
    return CheckpointError("the tokenizer can't be loaded", [problem])
