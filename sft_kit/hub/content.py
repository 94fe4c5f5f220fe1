"""Files to push, as they are counted on the Hub: size, sha256, git's id."""

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Content = Path | bytes
"""What a file holds: the bytes, or a file of this machine with them."""

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    """What tells whether two files hold the same.

    Attributes:
        num_bytes: Size.
        sha256: As 64 hexadecimal digits; how the Hub knows large files.
        git_id: As 40 hexadecimal digits; how git knows small ones.
    """

    num_bytes: int
    sha256: str
    git_id: str


def digest_of(content: Content) -> Digest:
    """Read a file once and count it."""
    num_bytes = size_of(content)
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {num_bytes}\0".encode(), usedforsecurity=False)
    for block in _blocks(content):
        sha256.update(block)
        git.update(block)
    return Digest(num_bytes, sha256.hexdigest(), git.hexdigest())


def size_of(content: Content) -> int:
    """Count the bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@contextmanager
def opened(content: Content) -> Iterator[bytes | mmap.mmap]:
    """Look at all bytes, of a large file without reading it into memory."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        if not content.stat().st_size:  # an empty file can't be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield view


def _blocks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
