"""Data settings -> pairs for training and for evaluation that have no source in common."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft_kit.data.corpus.reading import refuse_checkpoint
from sft_kit.data.pairs.reading import ReadPairs, read_pairs
from sft_kit.data.pairs.rows import Pair, PairReport, PairSplits
from sft_kit.data.pairs.tokenization import spelled_pairs
from sft_kit.data.preference.reading import hold_out, refuse_bad_rows
from sft_kit.data.sources import open_source
from sft_kit.data.text_hash import feed_text
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import PairDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_pairs(
    settings: PairDataSettings, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> PairSplits:
    """Read pairs, report the bad rows all at once, and hold out sources.

    Sources that are equal but for case and white space stay on one side, whatever their targets.
    Both sides keep the order of the file.

    Args:
        settings: The `data` section.
        tokenizer: Rows that it would read a special token in are bad; None leaves them in, and
            `tokenize_pairs` refuses them.

    Raises:
        DataError: Nothing to read, not readable, or nothing that can be held out.
        FormatError: Source and target can't be told, no row is good, there are bad rows and
            `on_bad_row` is `stop`, or nothing is left to train on.
    """
    for path in filter(None, (settings.path, settings.eval_path)):
        refuse_checkpoint(path)
    source = open_source(settings.path, settings.split, settings.revision)
    report = PairReport(fingerprint=source.fingerprint)
    read = read_pairs(source, settings, settings.num_rows)
    every, held_out = [read], None
    if settings.eval_path:
        eval_source = open_source(settings.eval_path, settings.split, settings.revision)
        report.eval_fingerprint = eval_source.fingerprint
        every.append(read_pairs(eval_source, settings, None))
        held_out = every[1].pairs
    if tokenizer is not None:
        for one in every:
            _leave_out_spelled(one, tokenizer, settings)
    refuse_bad_rows(settings.path, [one.reading for one in every], settings.on_bad_row)
    _fill(report, every)
    return _split(read.pairs, held_out, settings, report)


def _leave_out_spelled(
    read: ReadPairs, tokenizer: "PreTrainedTokenizerBase", settings: PairDataSettings
) -> None:
    """Count pairs that spell a special token among the bad rows."""
    problems = spelled_pairs(read.pairs, tokenizer, settings)
    bad = {problem.where for problem in problems}
    read.pairs[:] = [pair for pair in read.pairs if str(pair.where) not in bad]
    read.reading.problems += problems
    read.reading.num_bad_rows += len(bad)
    read.reading.num_good_rows -= len(bad)


def _fill(report: PairReport, every: Sequence[ReadPairs]) -> None:
    report.format = every[0].reading.format
    for one in every:
        report.num_rows += one.reading.num_rows
        report.bad_rows += one.reading.problems
        report.num_bad_rows += one.reading.num_bad_rows


def _split(
    pairs: Sequence[Pair],
    held_out: list[Pair] | None,
    settings: PairDataSettings,
    report: PairReport,
) -> PairSplits:
    keys = [text_key(pair.source) for pair in pairs]
    if held_out is None:
        if settings.eval_fraction and len(set(keys)) < 2:
            raise DataError(
                f"{settings.path}: found one source only, which can't be held out and learnt too "
                "(add pairs with other sources, or set data.eval_path, or data.eval_fraction=0 and "
                "train.eval_strategy=no)"
            )
        eval_keys = hold_out(keys, settings.eval_fraction, settings.split_seed)
        held_out = [pair for pair, key in zip(pairs, keys, strict=True) if key in eval_keys]
    else:
        eval_keys = {text_key(pair.source) for pair in held_out}
        report.num_overlaps = sum(key in eval_keys for key in keys)
    train = [pair for pair, key in zip(pairs, keys, strict=True) if key not in eval_keys]
    if not train:
        raise FormatError(
            f"{settings.path}: nothing is left to train on: every source also stands in "
            f"{settings.eval_path} (use another data.eval_path)"
        )
    different = {(text_key(pair.source), text_key(pair.target)) for pair in train}
    report.num_duplicates = len(train) - len(different)
    return PairSplits(train, held_out, report)


def text_key(text: str) -> bytes:
    """Hash a text; case, runs of white space and Unicode composition don't count."""
    digest = hashlib.sha256()
    feed_text(digest, text)
    return digest.digest()
