"""Commands about tokenizers: `sft-kit tokenizer train`."""

import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_kit.config.merging import COMMAND_LINE
from sft_kit.config.places import why_not_writable
from sft_kit.errors import ConfigError, DataError, FormatError, Problem
from sft_kit.models.tokenizer_options import Family, TokenizerOptions
from sft_kit.settings import TextDataSettings, TextUnit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILES = ("tokenizer*.json", "special_tokens_map.json", "vocab.*", "merges.txt", "*.jinja")
"""Names in the folder of a tokenizer; one with any other name may hold somebody's work."""
MAX_MEASURED = 1_000_000
"""Characters of the texts that the figures are taken of."""
MAX_SHOWN = 60

app = typer.Typer(no_args_is_help=True, help="Make a tokenizer for a model of your own.")


@app.command()
def train(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files, folders of files, or Hub ids with texts.",
            show_default=False,
        ),
    ],
    family: Annotated[
        Family,
        typer.Option(
            help="gpt2, bart: byte-level BPE; bert: WordPiece; t5: unigram pieces and sentinels; "
            "characters: each one a token.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder to write.", show_default=False)
    ],
    vocab_size: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in all; default: what the texts give, at most 32,000."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=4, help="Longest text in tokens; default: no limit.")
    ] = None,
    unit: Annotated[TextUnit, typer.Option(help="What is one text in a .txt file.")] = "document",
    text: Annotated[
        str, typer.Option(metavar="FIELD", help="Field of the text; auto finds it by its name.")
    ] = "auto",
    lowercase: Annotated[
        bool, typer.Option("--lowercase", help="Make capital letters small (bert, characters).")
    ] = False,
    min_count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Leave out pieces and characters that occur fewer times; default: pieces that "
            "occur once.",
        ),
    ] = None,
    max_token_length: Annotated[
        int | None,
        typer.Option(min=2, help="Longest token: bytes (gpt2, bart) or characters (t5)."),
    ] = None,
    num_sentinels: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Tokens <extra_id_0>, ... for span corruption (t5, characters); default: 100 "
            "for t5, else none.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier tokenizer in FOLDER.")
    ] = False,
) -> None:
    """Train a new tokenizer on texts, for a model that starts from random weights."""
    _check_output(output, overwrite=overwrite)
    wanted = TokenizerOptions(
        family=family,
        vocab_size=vocab_size,
        max_length=max_length,
        lowercase=lowercase,
        min_count=min_count,
        num_sentinels=num_sentinels,
        max_token_length=max_token_length,
    )
    texts = _read(paths, unit, text)
    num_characters = sum(len(one) for one in texts)
    typer.echo(f"texts: {len(texts):,} of {num_characters:,} characters")
    tokenizer = _train(texts, wanted)
    for note in _notes(tokenizer, texts):
        typer.echo(note, err=True)
    for line in _figures(tokenizer, texts):
        typer.echo(line)
    _write(tokenizer, output)
    typer.echo(f"tokenizer: {output}")


def _check_output(output: Path, *, overwrite: bool) -> None:
    """Never write over anything but an earlier tokenizer, and that only when asked to."""
    found, todo = "", "name another folder"
    names = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
    others = [name for name in names if not any(fnmatch(name, known) for known in FILES)]
    if output.exists() and not output.is_dir():
        found, todo = f"{output} is a file", "name a folder"
    elif others:
        found = f"{output} holds other files than a tokenizer's: {', '.join(others[:5])}"
    elif names and not overwrite:
        found, todo = f"{output} holds a tokenizer already", "add --overwrite to replace it"
    else:
        found = why_not_writable(output.resolve().parent)  # the folder is put there as a whole
    if found:
        problem = Problem(COMMAND_LINE, "--output", found, todo)
        raise ConfigError("the tokenizer can't be written", [problem])


def _read(paths: Sequence[str], unit: TextUnit, field: str) -> list[str]:
    """Read all texts, or say everything that is wrong with them."""
    from sft_kit.data.corpus.reading import open_texts
    from sft_kit.data.corpus.report import Text

    texts: list[str] = []
    problems: list[Problem] = []
    for path in paths:
        settings = TextDataSettings(path=path, text=field, unit=unit, eval_fraction=0)
        try:
            for found in open_texts(settings, path).rows:
                if isinstance(found, Text):
                    texts.append(found.text)
                else:
                    problems += found
        except FormatError as error:
            named = [
                replace(one, key=_as_option(one.key), todo=_as_option(one.todo))
                for one in error.problems
            ]
            raise FormatError(error.summary, named) from error
    if problems:
        raise FormatError(f"{', '.join(paths)}: rows that can't be used (repair them):", problems)
    return texts


def _as_option(todo: str) -> str:
    return todo.replace("data.text", "--text")


def _train(texts: Sequence[str], wanted: TokenizerOptions) -> "PreTrainedTokenizerFast":
    """Train, and name what is wrong as the options are named."""
    from sft_kit.models.new_tokenizer import train_tokenizer

    try:
        return train_tokenizer(texts, wanted)
    except ConfigError as error:
        problems = [
            replace(
                one,
                where=COMMAND_LINE,
                key=f"--{one.key.replace('_', '-')}",
                todo=one.todo.replace("min_count", "--min-count"),
            )
            for one in error.problems
        ]
        raise ConfigError(error.summary, problems) from error


def _notes(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[str]:
    """Tell which special tokens the texts spell out: these are read as such, not as text."""
    from sft_kit.data.inspection import counted

    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    found = Counter(token for text in texts for token in special.findall(text))
    return [
        f"note: the texts hold {token} {counted(count, 'time')}; it is read as the special token"
        for token, count in sorted(found.items())
    ]


def _figures(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[str]:
    """Say how long texts become, what of them is unknown, and show a line of them in tokens."""
    special = len(set(tokenizer.all_special_ids))
    sample = _sample(texts)
    backend = tokenizer.backend_tokenizer
    ids = [one.ids for one in backend.encode_batch_fast(sample, add_special_tokens=False)]
    num_tokens, num_characters = sum(map(len, ids)), sum(map(len, sample))
    unknown = tokenizer.unk_token_id
    # GPT-2's unknown token is its end of text: every byte is known.
    num_unknown = sum(one.count(unknown) for one in ids if unknown != tokenizer.eos_token_id)
    part = "" if num_characters < MAX_MEASURED else f" (of {num_characters:,} characters)"
    return [
        f"tokens: {len(tokenizer):,}, {special:,} of them special",
        f"tokens per character: {num_tokens / num_characters:.3f}{part}",
        f"unknown tokens: {num_unknown / max(1, num_tokens):.4%}{part}",
        f"example: {_example(tokenizer, texts)}",
    ]


def _sample(texts: Sequence[str]) -> list[str]:
    """Draw texts, the same ones each time, or take all where they are few."""
    sample: list[str] = []
    room = MAX_MEASURED
    for one in random.Random(0).sample(texts, len(texts)):
        sample.append(one[:room])
        room -= len(one)
        if room <= 0:
            break
    return sample


def _example(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> str:
    from sft_kit.data.rows import Example, Where
    from sft_kit.data.token_text import mark_tokens, readable

    lines = (line.strip() for text in texts for line in text.splitlines())
    line = next(line for line in lines if line)[:MAX_SHOWN]
    ids = tokenizer.backend_tokenizer.encode(line).ids
    marked = mark_tokens(Example(ids, list(ids), False, Where("", 0)), tokenizer)
    return readable("|".join(token.text for token in marked if token.text))


def _write(tokenizer: "PreTrainedTokenizerFast", output: Path) -> None:
    """Write the folder whole or not at all."""
    folder = output.resolve()
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        tokenizer.save_pretrained(part)
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
    except OSError as error:
        raise DataError(f"{output} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
