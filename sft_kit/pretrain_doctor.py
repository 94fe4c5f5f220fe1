"""The pretraining doctor: what plain texts and pairs of texts teach, judged as training would.

It needs the data and the tokenizer, but no weights.
"""

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.text import Text as Styled

from sft_kit.config import Resolved
from sft_kit.config.schema import read_sections
from sft_kit.data.corpus.corrupted import CorruptedRows
from sft_kit.data.corpus.datasets import Datasets, make_datasets, measure_split
from sft_kit.data.corpus.inspection import doubtful_rows
from sft_kit.data.corpus.marking import (
    describe_corrupted,
    mark_corrupted,
    token_text,
    written_tokens,
)
from sft_kit.data.corpus.page import write_corpus_view
from sft_kit.data.corpus.reading import open_texts
from sft_kit.data.corpus.report import Text, TextSplits
from sft_kit.data.corpus.rows import Corrupted, Vocabulary
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.corpus.view import CorpusView, ShownExample, show_corpus_view
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.choose import (
    Objective,
    ObjectiveSettings,
    corruption_of,
    objective_of,
)
from sft_kit.data.corruption.in_words import describe_objective
from sft_kit.data.inspection import choose_examples, inspect_labels
from sft_kit.data.label_page import write_page
from sft_kit.data.label_view import show_report
from sft_kit.data.pairs.rows import PairSplits
from sft_kit.data.pairs.splits import load_pairs
from sft_kit.data.pairs.tokenization import check_pairs, end_token_id, tokenize_pairs
from sft_kit.data.rows import ReadReport
from sft_kit.data.token_text import mark_tokens
from sft_kit.errors import DataError, FormatError
from sft_kit.models.pretraining import load_pretraining_tokenizer
from sft_kit.settings import (
    CausalSettings,
    DenoiseSettings,
    MaskedSettings,
    PairDataSettings,
    PrefixSettings,
    PretrainModelSettings,
    SpanSettings,
    TextDataSettings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_STREAMED = 1_000
"""Texts of a stream that are looked at."""
_COMMONEST = 10
_OBJECTIVES = (CausalSettings, MaskedSettings, PrefixSettings, SpanSettings, DenoiseSettings)


def show_pretraining(
    console: Console, resolved: Resolved, num_examples: int, html: Path | None = None
) -> None:
    """Show the report, in the terminal and as a page, then raise what training would raise.

    Args:
        console: Where to print.
        resolved: Settings of the recipe; `model`, `data`, `pretrain` and `train.seed` are used.
        num_examples: Training examples to show.
        html: File for the page.

    Raises:
        DataError: Training would refuse this data or this tokenizer.
        CheckpointError: No tokenizer.
    """
    settings = resolved.own("data", TextDataSettings)
    tokenizer = load_pretraining_tokenizer(resolved.own("model", PretrainModelSettings))
    pretrain = _objective_settings(resolved)
    objective = objective_of(pretrain, settings.max_length)
    vocabulary = vocabulary_of(tokenizer, objective.needs)
    texts, refusal = _read_texts(settings)
    corrupt = corruption_of(pretrain, vocabulary, tokenizer)
    seed = int(str((resolved.sections["train"] or {})["seed"]))
    at_once = replace(settings, streaming=False)
    rows = make_datasets(texts, tokenizer, vocabulary, at_once, objective, corrupt, seed)
    view = _look(texts, rows, objective, vocabulary, tokenizer, settings, num_examples)
    show_corpus_view(console, view)
    if html:
        write_corpus_view(html, view)
        console.print(Styled(f"written: {html}"), soft_wrap=True)
    if refusal:
        raise refusal


def _objective_settings(resolved: Resolved) -> ObjectiveSettings:
    """Build the section `pretrain` with the class that the recipe gives it."""
    name = read_sections(resolved.recipe)["pretrain"].class_name
    (cls,) = [one for one in _OBJECTIVES if one.__name__ == name]
    return cast("ObjectiveSettings", resolved.own("pretrain", cls))


def _read_texts(settings: TextDataSettings) -> tuple[TextSplits, DataError | None]:
    """Read the texts; where bad ones would stop training, read the others and return the error.

    Of a stream only the first texts are read.
    """
    refusal: DataError | None = None
    try:
        texts = load_texts(settings)
    except FormatError as error:
        refusal = error
        texts = load_texts(replace(settings, on_bad_row="skip"))
    if not settings.streaming:
        return texts, refusal
    source = open_texts(settings, settings.path, streaming=True)
    first = list(islice(source.rows, min(settings.num_rows or MAX_STREAMED, MAX_STREAMED)))
    texts.train = [found for found in first if isinstance(found, Text)]
    texts.report.num_rows += len(first)
    texts.report.format = ", ".join(source.fields)
    for problems in (found for found in first if not isinstance(found, Text)):
        texts.report.bad_rows += problems
        texts.report.num_bad_rows += 1
    if texts.report.bad_rows and settings.on_bad_row == "stop":
        message = f"{settings.path}: a stream stops at its first row that can't be used:"
        refusal = refusal or FormatError(message, texts.report.bad_rows)
    return texts, refusal


def _look(
    texts: TextSplits,
    rows: Datasets,
    objective: Objective,
    vocabulary: Vocabulary,
    tokenizer: "PreTrainedTokenizerBase",
    settings: TextDataSettings,
    num_examples: int,
) -> CorpusView:
    """Gather what is shown."""
    assert isinstance(rows.train, CorruptedRows)
    splits = [rows.train, rows.eval] if len(rows.eval) else [rows.train]
    figures = [measure_split(split, objective, vocabulary, tokenizer) for split in splits]
    commonest = [
        (token_text(id_, tokenizer), share)
        for id_, share in figures[0].commonest_labels(_COMMONEST)
        if share
    ]
    notes = doubtful_rows(figures[0], settings, held_out=len(splits) > 1)
    if settings.streaming:
        notes.append(f"a stream: these figures are of its first {len(texts.train):,} texts.")
    told = describe_objective(objective.name, next_sentence=objective.kind == "pairs")
    chosen = _choose(len(rows.train), num_examples, settings.split_seed)
    examples = [_example(rows.train[index], tokenizer) for index in chosen]
    return CorpusView(told, texts, figures, commonest, examples, notes)


def _choose(num_rows: int, count: int, seed: int) -> list[int]:
    """Choose the first row and some at random, in order."""
    drawn = random.Random(seed).sample(range(1, num_rows), max(0, min(count, num_rows) - 1))
    return sorted([0, *drawn])[:count]


def _example(corrupted: Corrupted, tokenizer: "PreTrainedTokenizerBase") -> ShownExample:
    caption = " · ".join(describe_corrupted(corrupted))
    written = written_tokens(corrupted, tokenizer)
    return ShownExample(caption, mark_corrupted(corrupted, tokenizer), written)


def show_pairs(
    console: Console, resolved: Resolved, num_examples: int, html: Path | None = None
) -> None:
    """Show pairs of texts, in the terminal and as a page, then raise what training would raise.

    Args:
        console: Where to print.
        resolved: Settings of the recipe; its sections `model` and `data` are used.
        num_examples: Training pairs to show token by token.
        html: File for the page.

    Raises:
        DataError: Training would refuse this data.
        CheckpointError: No tokenizer.
    """
    settings = resolved.own("data", PairDataSettings)
    tokenizer = load_pretraining_tokenizer(resolved.own("model", PretrainModelSettings))
    refusal: DataError | None = None
    try:
        splits = load_pairs(settings, tokenizer)
    except FormatError as error:
        refusal = error
        splits = load_pairs(replace(settings, on_bad_row="skip"), tokenizer)
    train = tokenize_pairs(splits.train, tokenizer, settings)
    held_out = tokenize_pairs(splits.eval, tokenizer, settings)
    notes: list[str] = []
    try:
        notes = check_pairs([*train, *held_out], tokenizer, settings)
    except DataError as error:
        refusal = refusal or error
    stops = (end_token_id(tokenizer),)
    rows, held_out_rows = ([one.in_one_row() for one in split] for split in (train, held_out))
    report = inspect_labels(rows, stops)
    held_out_report = inspect_labels(held_out_rows, stops) if held_out_rows else None
    shown = [rows[at] for at in choose_examples(rows, stops, num_examples, settings.split_seed)]
    marked = [mark_tokens(one, tokenizer) for one in shown]
    read = _as_read(splits)
    show_report(console, read, report, held_out_report, marked, notes, sources=shown)
    if html:
        write_page(str(html), read, report, held_out_report, marked, notes, sources=shown)
        console.print(Styled(f"written: {html}"), soft_wrap=True)
    if refusal:
        raise refusal


def _as_read(splits: PairSplits) -> ReadReport:
    """Say what was found of pairs as of any rows."""
    report = splits.report
    return ReadReport(
        format=report.format,
        num_rows=report.num_rows,
        bad_rows=report.bad_rows,
        num_bad_rows=report.num_bad_rows,
        num_duplicates=report.num_duplicates,
        num_overlaps=report.num_overlaps,
        fingerprint=report.fingerprint,
        eval_fingerprint=report.eval_fingerprint,
    )
