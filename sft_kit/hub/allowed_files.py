"""The files of a run that may go to the Hub or come from it: known names, and what they hold."""

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping

from sft_kit.errors import HubError, Problem
from sft_kit.hub.content import Content, opened

RECIPE_FILE = "recipe.yaml"
SAMPLES_FILE = "samples.md"
WEIGHTS = re.compile(
    r"adapter_model\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
"""Names of files with weights, and of their index."""
TOKENIZER = re.compile(
    r"tokenizer\.json|vocab\.(json|txt)|merges\.txt|added_tokens\.json|(tokenizer|spiece|sentencepiece\.bpe)\.model"
)
"""Names of files with a vocabulary, in which any word may stand."""
_OTHERS = re.compile(
    r"README\.md|recipe\.yaml|metrics\.json|samples\.md|chat_template\.jinja|"
    r"(adapter_|generation_|tokenizer_)?config\.json|special_tokens_map\.json|"
    r"(loss|learning_rate|confusion|confusion_not_trained_on|margins|loss_by_tokens|accuracy|"
    r"perplexity|score|kl|length)\.png"
)
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
_MAX_UNPACKED_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100 << 20


def is_allowed(name: str) -> bool:
    """Whether a file of this name may be pushed or pulled; folders may not."""
    return any(names.fullmatch(name) for names in (WEIGHTS, TOKENIZER, _OTHERS))


def refuse_other_files(files: Mapping[str, Content], repo: str) -> None:
    """Refuse names that are not allowed, and files that are not what their names say.

    Raises:
        HubError: All of them.
    """
    problems = []
    for name, content in files.items():
        reason = "is none of the files that go to the Hub" if not is_allowed(name) else ""
        if reason := reason or why_not_its_kind(name, content):
            problems.append(Problem(name, "", reason, "bring it back as the run wrote it"))
    if problems:
        raise HubError(f"these files can't be pushed to {repo}; nothing was sent", problems)


def why_not_its_kind(name: str, content: Content) -> str:
    """Say why a file does not hold what its name says; nothing where it does."""
    suffix = name.rpartition(".")[2]
    with opened(content) as view:
        try:
            if suffix == "safetensors":
                safetensors_header(content)
            elif suffix == "png":
                for _ in _png_chunks(view[:]):
                    pass
            elif suffix == "json":
                json.loads(view[:].decode())
            elif suffix in ("md", "yaml", "jinja", "txt"):
                view[:].decode()
        except (ValueError, RecursionError) as error:
            return f"is not what its name says: {error}"
    return ""


def safetensors_header(content: Content) -> dict[str, object]:
    """Read the header of a safetensors file.

    Raises:
        ValueError: It is no such file, or bytes stand behind its tensors.
    """
    with opened(content) as view:
        num_bytes = int.from_bytes(view[:8], "little")
        if len(view) < 8 or num_bytes > min(len(view) - 8, _MAX_HEADER_BYTES):
            raise ValueError("it has no safetensors header")
        header = json.loads(view[8 : 8 + num_bytes].decode())
        if not isinstance(header, dict):
            raise ValueError("it has no safetensors header")
        ends = [
            entry["data_offsets"][1]
            for key, entry in header.items()
            if key != "__metadata__" and isinstance(entry, dict) and "data_offsets" in entry
        ]
        if 8 + num_bytes + max(ends, default=0) != len(view):
            raise ValueError("its size is not that of its tensors")
    return header


def png_texts(png: bytes) -> list[bytes]:
    """Read what a picture says in words: its text chunks, unpacked."""
    return [_unpacked(kind, body) for kind, body in _png_chunks(png) if kind in _TEXT_CHUNKS]


def _png_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not png.startswith(_PNG):
        raise ValueError("it is no PNG")
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        if at + 8 > len(png):
            raise ValueError("it is cut off")
        num_bytes, kind = struct.unpack(">I4s", png[at : at + 8])
        if at + 12 + num_bytes > len(png):
            raise ValueError("it is cut off")
        yield kind, png[at + 8 : at + 8 + num_bytes]
        at += 12 + num_bytes
    if at != len(png):
        raise ValueError("something stands behind the picture")


def _unpacked(kind: bytes, body: bytes) -> bytes:
    """Text of a chunk with what is compressed in it; where that fails, as it stands."""
    texts = [body]
    if kind in (b"zTXt", b"iTXt"):
        for at in range(len(body)):
            if body[at : at + 1] == b"\x78":  # how a zlib stream begins
                try:
                    texts.append(zlib.decompressobj().decompress(body[at:], _MAX_UNPACKED_BYTES))
                except zlib.error:
                    continue
    return b"\n".join(texts)
