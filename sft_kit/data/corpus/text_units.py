"""Plain text files as texts: lines, paragraphs, documents with their lines, or whole files."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sft_kit.data.encodings import UTF8
from sft_kit.data.rows import RawRow, Where
from sft_kit.data.sources import Layout
from sft_kit.data.text_files import byte_lines, read_text_file, text_problem
from sft_kit.errors import Problem
from sft_kit.settings import TextUnit


def layout_of(unit: TextUnit) -> Layout:
    """Say how .txt files become rows for `sft_kit.data.sources.open_source`.

    Args:
        unit: What is one text.

    Returns:
        A layout whose rows have one field `text`: a text, or the list of a document's lines.
    """
    if unit == "line":
        return Layout(read_text=read_text_file)
    if unit == "file":
        return Layout(read_text=_read_file)
    return Layout(read_text=partial(_read_blocks, lines_are_sentences=unit == "document"))


def _read_blocks(
    path: Path, name: str, encoding: str = UTF8, *, lines_are_sentences: bool
) -> Iterator[RawRow | Problem]:
    """Yield what stands between blank lines, at the place of its first line."""
    block: list[str] = []
    begin = 0
    problem: Problem | None = None
    for number, offset, line in byte_lines(path, encoding):
        if not line.strip():
            if block or problem:
                yield problem or _block(block, Where(name, begin), lines_are_sentences)
            block, problem = [], None
            continue
        if not block and not problem:
            begin = number
        problem = problem or text_problem(Where(name, number), line, offset, encoding)
        if not problem:
            block.append(line.decode(UTF8).rstrip("\r\n"))
    if block or problem:
        yield problem or _block(block, Where(name, begin), lines_are_sentences)


def _block(lines: list[str], where: Where, are_sentences: bool) -> RawRow:
    return RawRow({"text": lines if are_sentences else "\n".join(lines)}, where)


def _read_file(path: Path, name: str, encoding: str = UTF8) -> Iterator[RawRow | Problem]:
    r"""Yield the whole file as one row; every line ends in one `\n`."""
    lines: list[str] = []
    for number, offset, line in byte_lines(path, encoding):
        if problem := text_problem(Where(name, number), line, offset, encoding):
            yield problem
            return
        text = line.decode(UTF8)
        lines.append(f"{text[:-2]}\n" if text.endswith("\r\n") else text)
    text = "".join(lines)
    if text.strip():
        yield RawRow({"text": text}, Where(name, 1))
