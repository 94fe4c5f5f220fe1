"""What reading preferences and prompts found: told at the start of a run and saved with it."""

from dataclasses import dataclass, field
from statistics import median

from sft_kit.data.inspection import counted, name_places
from sft_kit.data.preference.rows import Comparison, Prompt
from sft_kit.data.rows import Where
from sft_kit.errors import Problem


@dataclass(slots=True)
class PreferenceReport:
    """What reading compared answers found.

    Attributes:
        format: Format used, named or detected.
        num_rows: Rows read, the bad ones included.
        bad_rows: Problems of rows that were skipped.
        num_bad_rows: Rows that were skipped (one row may have several problems).
        unknown_roles: Role name as in the file -> number of rows that use it.
        num_ties: Answers left out because another one has the same rank or score.
        num_equal_answers: Answers left out because a better one has the same text.
        equal_rows: Rows left out because fewer than two different answers were left.
        num_duplicates: Comparisons that stand earlier too.
        contradictions: Places of two comparisons that put the same two answers in another order.
        num_overlaps: Training comparisons left out because their prompt stands in `eval_path`.
        num_train_prompts: Different prompts to train on.
        num_eval_prompts: Different prompts that are held out.
        has_margins: The rows say by how much the better answer is better.
        fingerprint: sha256 over the bytes of `path`.
        eval_fingerprint: The same of `eval_path`.
    """

    format: str
    num_rows: int = 0
    bad_rows: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0
    unknown_roles: dict[str, int] = field(default_factory=dict)
    num_ties: int = 0
    num_equal_answers: int = 0
    equal_rows: list[Where] = field(default_factory=list)
    num_duplicates: int = 0
    contradictions: list[tuple[Where, Where]] = field(default_factory=list)
    num_overlaps: int = 0
    num_train_prompts: int = 0
    num_eval_prompts: int = 0
    has_margins: bool = False
    fingerprint: str = ""
    eval_fingerprint: str = ""


@dataclass(slots=True)
class PreferenceSplits:
    """Comparisons for training and for evaluation (may be empty), and how they were read."""

    train: list[Comparison]
    eval: list[Comparison]
    report: PreferenceReport

    def notes(self) -> list[str]:
        """Say what was read, one sentence each: format, counts, margins, and what was left out."""
        report = self.report
        read = (
            f"data: format {report.format}, {report.num_rows:,} rows read, {len(self.train):,} to "
            f"train on ({counted(report.num_train_prompts, 'prompt')}), {len(self.eval):,} held "
            f"out ({counted(report.num_eval_prompts, 'prompt')})"
        )
        if margins := self.margins:
            lowest, middle, highest = margins
            read += f"; margins: {lowest:g} to {highest:g}, median {middle:g}"
        notes = [read, *self.losses()]
        if not self.eval:
            notes.append(
                "data: nothing is held out, so the report has no evaluation: raise "
                "data.eval_fraction, add prompts where there is only one, or give data.eval_path"
            )
        return notes

    @property
    def margins(self) -> tuple[float, float, float] | None:
        """The lowest, the median and the highest margin; None where no field says it."""
        if not self.report.has_margins:
            return None
        margins = [row.margin for row in (*self.train, *self.eval)]
        return min(margins), median(margins), max(margins)

    def losses(self) -> list[str]:
        """Say what was left out or looks wrong, one sentence each."""
        report = self.report
        notes = []
        if report.num_bad_rows:
            notes.append(f"data: {report.num_bad_rows:,} bad rows were skipped")
        if report.num_ties:
            notes.append(f"data: {report.num_ties:,} answers with another one's rank were left out")
        if report.num_equal_answers:
            left_out = f"; {len(report.equal_rows):,} rows had no two different answers"
            rows = f"{left_out} {name_places(report.equal_rows)}" if report.equal_rows else ""
            notes.append(
                f"data: {report.num_equal_answers:,} answers with the text of a better one were "
                f"left out{rows}"
            )
        if report.num_duplicates:
            notes.append(f"data: {report.num_duplicates:,} comparisons repeat an earlier one")
        if report.contradictions:
            later = [second for _, second in report.contradictions]
            notes.append(
                f"data: {len(later):,} comparisons contradict another one {name_places(later)}"
            )
        if report.num_overlaps:
            notes.append(
                f"data: {report.num_overlaps:,} comparisons whose prompt is held out were left out "
                "of training"
            )
        return notes

    def describe(self) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run."""
        report = self.report
        return {
            "format": report.format,
            "num_train_rows": len(self.train),
            "num_eval_rows": len(self.eval),
            "num_train_prompts": report.num_train_prompts,
            "num_eval_prompts": report.num_eval_prompts,
            "num_bad_rows": report.num_bad_rows,
            "num_ties": report.num_ties,
            "num_equal_answers": report.num_equal_answers,
            "num_equal_rows": len(report.equal_rows),
            "num_duplicates": report.num_duplicates,
            "num_contradictions": len(report.contradictions),
            "num_overlaps": report.num_overlaps,
            "fingerprint": report.fingerprint,
            "eval_fingerprint": report.eval_fingerprint,
        }


@dataclass(slots=True)
class PromptReport:
    """What reading prompts found.

    Attributes:
        format: Format used, named or detected.
        num_rows: Rows read, the bad ones included.
        bad_rows: Problems of rows that were skipped.
        num_bad_rows: Rows that were skipped.
        num_duplicates: Prompts left out because they stand earlier.
        num_overlaps: Training prompts left out because they stand in `eval_path`.
        limit: Tokens a prompt may have.
        lowered_from: `max_prompt_length` where the context leaves less room; else 0.
        long_rows: Rows whose prompt has more.
        was_cut: Those were cut, not dropped.
        fingerprint: sha256 over the bytes of `path`.
        eval_fingerprint: The same of `eval_path`.
    """

    format: str
    num_rows: int = 0
    bad_rows: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0
    num_duplicates: int = 0
    num_overlaps: int = 0
    limit: int = 0
    lowered_from: int = 0
    long_rows: list[Where] = field(default_factory=list)
    was_cut: bool = False
    fingerprint: str = ""
    eval_fingerprint: str = ""


@dataclass(slots=True)
class PromptSplits:
    """Prompts for training and for evaluation (may be empty), and how they were read."""

    train: list[Prompt]
    eval: list[Prompt]
    report: PromptReport

    def notes(self) -> list[str]:
        """Say what was read, one sentence each: format, counts, and what was left out."""
        report = self.report
        notes = [
            f"data: format {report.format}, {report.num_rows:,} rows read, {len(self.train):,} "
            f"prompts to train on, {len(self.eval):,} held out"
        ]
        if report.num_bad_rows:
            notes.append(f"data: {report.num_bad_rows:,} bad rows were skipped")
        if report.num_duplicates:
            notes.append(f"data: {report.num_duplicates:,} repeated prompts were left out")
        if report.num_overlaps:
            notes.append(
                f"data: {report.num_overlaps:,} held-out prompts also stand in the training file "
                "and were left out of training"
            )
        if report.lowered_from:
            notes.append(
                f"data: max_prompt_length={report.lowered_from} was lowered to {report.limit}: the "
                "context has no room for more before a completion"
            )
        if report.long_rows:
            done = "cut at the beginning" if report.was_cut else "left out"
            notes.append(
                f"data: {counted(len(report.long_rows), 'row')} with a prompt of more than "
                f"{report.limit} tokens {done} {name_places(report.long_rows)}"
            )
        return notes

    def describe(self) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run."""
        report = self.report
        return {
            "format": report.format,
            "num_train_prompts": len(self.train),
            "num_eval_prompts": len(self.eval),
            "num_bad_rows": report.num_bad_rows,
            "num_duplicates": report.num_duplicates,
            "num_overlaps": report.num_overlaps,
            "max_prompt_length": report.limit,
            "num_long": len(report.long_rows),
            "long_were_cut": report.was_cut,
            "fingerprint": report.fingerprint,
            "eval_fingerprint": report.eval_fingerprint,
        }
