"""The shapes of a pair of texts on its way from a file to the model."""

from dataclasses import dataclass, field

from sft_kit.data.rows import IGNORED, Example, Where
from sft_kit.errors import Problem


@dataclass(frozen=True, slots=True)
class Pair:
    """A text that is read and the text that is written for it.

    Attributes:
        source: As it stands in the row, without `data.prefix`.
        target: As it stands in the row.
        where: The row it came from.
    """

    source: str
    target: str
    where: Where


@dataclass(frozen=True, slots=True)
class PairExample:
    """One tokenized pair.

    Attributes:
        input_ids: Token ids of the source, as its tokenizer begins and ends a text.
        labels: Token ids of the target; the last one ends the text, unless the target was cut.
        was_source_cut: The source had more than `max_source_length` tokens.
        was_target_cut: The target had more than `max_target_length` tokens.
        where: The row it came from.
    """

    input_ids: list[int]
    labels: list[int]
    was_source_cut: bool
    was_target_cut: bool
    where: Where

    def in_one_row(self) -> Example:
        """Put the source and the target behind each other, to count and to show their tokens."""
        source = self.input_ids
        return Example(
            input_ids=[*source, *self.labels],
            labels=[*[IGNORED] * len(source), *self.labels],
            was_cut=self.was_source_cut or self.was_target_cut,
            where=self.where,
        )


@dataclass(slots=True)
class PairReport:
    """What reading found.

    Attributes:
        format: What is read from where.
        num_rows: Rows read, the bad ones included.
        bad_rows: Problems of rows that were skipped.
        num_bad_rows: Rows that were skipped (one row may have several problems).
        num_duplicates: Training pairs that stand earlier; case and white space don't count.
        num_overlaps: Rows of `path` whose source stands in `eval_path` too; they are left out.
        fingerprint: sha256 over the bytes of `path` (of a Hub data set: its own fingerprint and
            the revision).
        eval_fingerprint: The same of `eval_path`.
    """

    format: str = ""
    num_rows: int = 0
    bad_rows: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0
    num_duplicates: int = 0
    num_overlaps: int = 0
    fingerprint: str = ""
    eval_fingerprint: str = ""


@dataclass(slots=True)
class PairSplits:
    """Pairs for training and for evaluation (may be empty), and how they were read."""

    train: list[Pair]
    eval: list[Pair]
    report: PairReport

    def notes(self) -> list[str]:
        """Say what was read, one sentence each: fields, counts, and what was left out."""
        report = self.report
        notes = [
            f"data: {report.format}",
            f"data: {report.num_rows:,} rows read, {len(self.train):,} pairs to train on, "
            f"{len(self.eval):,} held out",
        ]
        if report.num_bad_rows:
            notes.append(f"data: {report.num_bad_rows:,} bad rows were skipped")
        if report.num_duplicates:
            notes.append(f"data: {report.num_duplicates:,} training pairs repeat an earlier one")
        if report.num_overlaps:
            notes.append(
                f"data: {report.num_overlaps:,} training rows have a source that is held out and "
                "were left out"
            )
        if not self.eval:
            notes.append(
                "data: nothing is held out: training will not say how it does on other pairs "
                "(raise data.eval_fraction, or give data.eval_path)"
            )
        return notes

    def describe(self) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run."""
        report = self.report
        return {
            "format": report.format,
            "num_train_rows": len(self.train),
            "num_eval_rows": len(self.eval),
            "num_bad_rows": report.num_bad_rows,
            "num_duplicates": report.num_duplicates,
            "num_overlaps": report.num_overlaps,
            "fingerprint": report.fingerprint,
            "eval_fingerprint": report.eval_fingerprint,
        }
