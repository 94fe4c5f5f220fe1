"""Data settings -> comparisons for training and for evaluation that have no prompt in common."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sft_kit.data.preference.comparing import (
    Compared,
    compared_pairs,
    prompt_hash,
    understand_preference,
)
from sft_kit.data.preference.formats import detect_preference_format
from sft_kit.data.preference.reading import Reading, hold_out, read_source, refuse_bad_rows
from sft_kit.data.preference.report import PreferenceReport, PreferenceSplits
from sft_kit.data.preference.rows import Comparison
from sft_kit.data.preference.tokenization import comparison_problems
from sft_kit.data.rows import RawRow, Where
from sft_kit.data.sources import Source, open_source
from sft_kit.data.templates import Template
from sft_kit.errors import FormatError, Problem
from sft_kit.settings import PreferenceDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Judge = Callable[[Comparison], list[Problem]]
"""Says what is wrong with a comparison that its format's reader has understood."""


def load_preferences(
    settings: PreferenceDataSettings,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    template: Template | None = None,
) -> PreferenceSplits:
    """Read compared answers, report the bad rows all at once, and hold out prompts.

    Prompts that are equal but for case and white space stay on one side. Both sides keep the order
    of the file.

    Args:
        settings: The `data` section.
        tokenizer: With `template`: rows that spell one of its special tokens are bad. Without,
            they stay in, and `tokenize_preferences` refuses them.
        template: Its stop token may end a plain text.

    Raises:
        DataError: Nothing to read, or not readable.
        FormatError: The format can't be told, no row compares two answers, or there are bad rows
            and `on_bad_row` is `stop`.
    """
    source = open_source(settings.path, settings.split, settings.revision)
    report = PreferenceReport("", fingerprint=source.fingerprint)
    report.has_margins = settings.margin is not None
    judge = _judge_of(tokenizer, template)
    reading, rows = _read(source, settings, settings.num_rows, report, judge)
    readings, held_out = [reading], None
    if settings.eval_path:
        eval_source = open_source(settings.eval_path, settings.split, settings.revision)
        report.eval_fingerprint = eval_source.fingerprint
        eval_reading, held_out = _read(eval_source, settings, None, report, judge)
        readings.append(eval_reading)
    refuse_bad_rows(settings.path, readings, settings.on_bad_row)
    _fill(report, readings)
    if not rows:
        raise FormatError(
            f"{settings.path}: none of the {reading.num_rows:,} rows has two different answers "
            "(check data.format and the fields)"
        )
    return _split(rows, held_out, settings, report)


def _judge_of(tokenizer: "PreTrainedTokenizerBase | None", template: Template | None) -> Judge:
    if tokenizer is None or template is None:
        return lambda _: []
    return partial(comparison_problems, tokenizer=tokenizer, template=template)


def _read(
    source: Source,
    settings: PreferenceDataSettings,
    num_rows: int | None,
    report: PreferenceReport,
    judge: Judge,
) -> tuple[Reading, list[Comparison]]:
    comparisons: list[Comparison] = []

    def take(row: RawRow, format_name: str) -> tuple[Sequence[Problem], frozenset[str]]:
        compared = understand_preference(row, format_name, settings.margin)
        problems = [] if compared.comparison is None else judge(compared.comparison)
        if problems:
            return problems, compared.unknown_roles
        if compared.comparison is not None:
            comparisons.append(compared.comparison)
        _count(compared, row.where, report)
        return compared.problems, compared.unknown_roles

    reading = read_source(source, settings.format, num_rows, detect_preference_format, take)
    return reading, comparisons


def _count(compared: Compared, where: Where, report: PreferenceReport) -> None:
    report.num_ties += compared.num_ties
    report.num_equal_answers += compared.num_equal
    if compared.comparison is None and not compared.problems:
        report.equal_rows.append(where)


def _fill(report: PreferenceReport, readings: Sequence[Reading]) -> None:
    report.format = readings[0].format
    for reading in readings:
        report.num_rows += reading.num_rows
        report.bad_rows += reading.problems
        report.num_bad_rows += reading.num_bad_rows
        for role, count in reading.unknown_roles.items():
            report.unknown_roles[role] = report.unknown_roles.get(role, 0) + count


def _split(
    rows: list[Comparison],
    held_out: list[Comparison] | None,
    settings: PreferenceDataSettings,
    report: PreferenceReport,
) -> PreferenceSplits:
    keys = [prompt_hash(row) for row in rows]
    if held_out is None:
        eval_keys = hold_out(keys, settings.eval_fraction, settings.split_seed)
        held_out = [row for row, key in zip(rows, keys, strict=True) if key in eval_keys]
    else:
        eval_keys = {prompt_hash(row) for row in held_out}
        report.num_overlaps = sum(key in eval_keys for key in keys)
    train = [row for row, key in zip(rows, keys, strict=True) if key not in eval_keys]
    if not train:
        raise FormatError(
            f"{settings.path}: nothing is left to train on: every prompt also stands in "
            f"{settings.eval_path} (use another data.eval_path)"
        )
    report.num_train_prompts = len(set(keys) - eval_keys)
    report.num_eval_prompts = len(eval_keys)
    _find_repeats(train, report)
    _find_repeats(held_out, report)
    return PreferenceSplits(train, held_out, report)


def _find_repeats(rows: Sequence[Comparison], report: PreferenceReport) -> None:
    """Count comparisons that stand earlier, and find those that put two answers the other way."""
    known: dict[tuple[bytes, tuple[bytes, bytes]], Where] = {}
    seen: set[tuple[bytes, tuple[tuple[bytes, bytes], ...]]] = set()
    for row in rows:
        prompt, pairs = prompt_hash(row), compared_pairs(row)
        whole = (prompt, tuple(pairs))
        report.num_duplicates += whole in seen
        seen.add(whole)
        turned = ((prompt, (worse, better)) for better, worse in pairs)
        earlier = next((known[pair] for pair in turned if pair in known), None)
        if earlier is not None:
            report.contradictions.append((earlier, row.where))
        for pair in pairs:
            known.setdefault((prompt, pair), row.where)
