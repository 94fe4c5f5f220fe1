"""Plain texts as read, and what reading and splitting them found."""

from dataclasses import dataclass

from sft_kit.data.inspection import counted
from sft_kit.data.rows import ReadReport, Where


@dataclass(frozen=True, slots=True)
class Text:
    """One plain text.

    Attributes:
        text: Its characters, sentences included.
        where: The row it came from.
        sentences: First character of each sentence, where the file says it; None where
            `sft_kit.data.corpus.sentences` finds it out.
    """

    text: str
    where: Where
    sentences: tuple[int, ...] | None = None


@dataclass(slots=True)
class TextSplits:
    """Texts for training and for evaluation (may be empty), and how they were read.

    Attributes:
        train: In the order of the file; empty while streaming.
        eval: In the order of the file.
        report: Counts; its format is the field that texts are read from.
        is_streamed: The training texts are read while training.
    """

    train: list[Text]
    eval: list[Text]
    report: ReadReport
    is_streamed: bool = False

    def notes(self) -> list[str]:
        """Say what was read, one sentence each: the field, counts, and what was left out."""
        report = self.report
        read = f"data: {counted(report.num_rows, 'text')} read (field {report.format})"
        held_out = f"{len(self.train):,} to train on, {len(self.eval):,} held out"
        notes = [f"{read}, {held_out}"]
        if self.is_streamed:
            held_out = f"{counted(len(self.eval), 'text')} held out"
            notes = [f"data: the training texts are read while training; {held_out}"]
        if report.num_bad_rows:
            notes.append(f"data: {counted(report.num_bad_rows, 'bad row')} skipped")
        if report.num_duplicates:
            repeats = counted(report.num_duplicates, "training text")
            notes.append(f"data: {repeats} equal to an earlier one")
        if report.num_overlaps:
            overlaps = counted(report.num_overlaps, "held-out text")
            notes.append(f"data: {overlaps} found in training too and left out there")
        return notes

    def describe(self) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run."""
        return self.report.describe(len(self.train), len(self.eval))
