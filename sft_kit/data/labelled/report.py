"""What reading and splitting labelled data found: counts, places, and the sentences about them."""

from dataclasses import dataclass, field

from sft_kit.data.inspection import counted
from sft_kit.data.labelled.doubts import class_doubts
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.errors import Problem


@dataclass(slots=True)
class LabelledReport:
    """What reading and splitting found: shown by `sft-kit inspect` and saved with the run.

    Equal texts are equal but for case, Unicode composition and the length of white space, which
    beside Chinese and Japanese characters doesn't count at all; of a pair, both.

    Attributes:
        num_rows: Rows read from all files, the bad ones included.
        num_bad_rows: Rows that were skipped (one row may have several problems).
        bad_rows: Their problems.
        num_eval_path_rows: Rows of `eval_path` that can be used.
        num_duplicates: Rows of `path` whose text stands earlier in it.
        num_eval_duplicates: Rows of `eval_path` whose text stands earlier in it.
        conflicts: Rows with equal texts in one file whose labels differ, text by text.
        overlaps: Places of rows of `eval_path` whose text stands in `path` too.
        num_overlap_texts: Different texts of these rows.
        num_overlap_conflicts: Those of these rows whose labels are not the ones in `path`.
        was_deduplicated: `deduplicate` was on.
        num_dropped_duplicates: Rows left out by `deduplicate` as equal to one that was kept.
        num_dropped_conflicts: Rows left out by `deduplicate` because their labels contradict.
        num_dropped_train: Training rows left out by `on_overlap`.
        num_dropped_eval: Held-out rows left out by `on_overlap`.
        num_shared_groups: Values of `group` that stand in both files.
        fingerprint: sha256 over the bytes of `path` (of a Hub data set: its own fingerprint and
            the revision).
        eval_fingerprint: The same of `eval_path`.
        reading_notes: What was detected about the files, a sentence each.
        doubts: What was read but probably not meant, a sentence each.
    """

    num_rows: int = 0
    num_bad_rows: int = 0
    bad_rows: list[Problem] = field(default_factory=list)
    num_eval_path_rows: int = 0
    num_duplicates: int = 0
    num_eval_duplicates: int = 0
    conflicts: list[tuple[LabelledText, ...]] = field(default_factory=list)
    overlaps: list[Where] = field(default_factory=list)
    num_overlap_texts: int = 0
    num_overlap_conflicts: int = 0
    was_deduplicated: bool = False
    num_dropped_duplicates: int = 0
    num_dropped_conflicts: int = 0
    num_dropped_train: int = 0
    num_dropped_eval: int = 0
    num_shared_groups: int = 0
    fingerprint: str = ""
    eval_fingerprint: str = ""
    reading_notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def num_conflicts(self) -> int:
        """Number of texts whose labels differ within one file."""
        return len(self.conflicts)

    @property
    def num_overlaps(self) -> int:
        """Rows of `eval_path` whose text stands in `path` too."""
        return len(self.overlaps)


@dataclass(slots=True)
class LabelledSplits:
    """Texts for training and for evaluation (may be empty), and how they were read.

    Attributes:
        train: In the order of the file.
        eval: In the order of the file.
        label_names: Class id -> name.
        report: What was found on the way.
    """

    train: list[LabelledText]
    eval: list[LabelledText]
    label_names: tuple[str, ...]
    report: LabelledReport

    def notes(self) -> list[str]:
        """Say what was read, one sentence each: files, counts, and what was left out."""
        report = self.report
        left_out = [
            (report.num_bad_rows, "bad row", "skipped"),
            (report.num_dropped_duplicates, "row", "left out: an earlier one has the text"),
            (report.num_dropped_conflicts, "row", "left out: labels contradict each other"),
            (report.num_dropped_train, "training row", "left out: text or group is held out too"),
            (report.num_dropped_eval, "held-out row", "left out: text or group is trained on"),
        ]
        return [
            *report.reading_notes,
            f"data: {counted(report.num_rows, 'row')} read, {len(self.train):,} to train on, "
            f"{len(self.eval):,} held out, {len(self.label_names):,} classes",
            *(f"data: {counted(count, noun)} {why}" for count, noun, why in left_out if count),
            *(f"data: {warning}" for warning in self.warnings()),
        ]

    def warnings(self) -> list[str]:
        """Say what works but was probably not meant, one sentence each."""
        report = self.report
        warnings = [*report.doubts, *class_doubts(self.train, self.eval, self.label_names)]
        num_repeats = report.num_duplicates + report.num_eval_duplicates
        if num_repeats and not report.was_deduplicated:
            found = (
                f"{counted(num_repeats, 'row')} repeat{'s' * (num_repeats == 1)} an earlier text"
            )
            if report.conflicts:
                num_texts = counted(report.num_conflicts, "text")
                found += f", and the labels of {num_texts} contradict each other"
            warnings.append(f"{found} (data.deduplicate=true leaves them out)")
        were_dropped = report.num_dropped_train or report.num_dropped_eval
        if report.num_overlaps and not were_dropped:
            warnings.append(
                f"{counted(report.num_overlaps, 'held-out row')} also trained on: figures come out "
                "too high (data.on_overlap=drop-train leaves them out of training)"
            )
        if report.num_shared_groups and not were_dropped:
            warnings.append(
                f"{counted(report.num_shared_groups, 'value')} of data.group in data.path and in "
                "data.eval_path (data.on_overlap=drop-train leaves them out of training)"
            )
        trained = {name for row in self.train for name in row.labels}
        if missing := [name for name in self.label_names if name not in trained]:
            warnings.append(f"no training row has the label {', '.join(map(repr, missing))}")
        return warnings

    def describe(self) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run."""
        report = self.report
        return {
            "num_train_rows": len(self.train),
            "num_eval_rows": len(self.eval),
            "num_texts": max((len(row.texts) for row in self.train), default=1),
            "num_bad_rows": report.num_bad_rows,
            "num_duplicates": report.num_duplicates + report.num_eval_duplicates,
            "num_conflicts": report.num_conflicts,
            "num_overlaps": report.num_overlaps,
            "num_dropped_rows": report.num_dropped_duplicates
            + report.num_dropped_conflicts
            + report.num_dropped_train
            + report.num_dropped_eval,
            "fingerprint": report.fingerprint,
            "eval_fingerprint": report.eval_fingerprint,
        }
