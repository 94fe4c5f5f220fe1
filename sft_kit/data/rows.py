"""The shapes of a row on its way from a file to the model."""

from dataclasses import dataclass, field
from typing import TypedDict

from sft_kit.errors import Problem

IGNORED = -100
"""Label of a token that is not learnt: the ignore index of torch's cross entropy."""


class Message(TypedDict):
    """One turn of a chat, as in Hugging Face: role is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Where:
    """Place of a row.

    Attributes:
        file: As the user named it.
        line: From 1; the number of the row where a file has no lines.
        row: Number of the row from 1, where several rows stand on one line.
    """

    file: str
    line: int
    row: int | None = None

    def __str__(self) -> str:
        row = "" if self.row is None else f" row {self.row}"
        return f"{self.file}:{self.line}{row}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read: field names and values exactly as in the file."""

    fields: dict[str, object]
    where: Where


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row understood: a chat, or plain text (then `messages` is empty)."""

    messages: tuple[Message, ...]
    where: Where
    text: str | None = None


@dataclass(slots=True)
class ReadReport:
    """What reading found: shown by `sft-kit inspect` and saved with the run.

    Attributes:
        format: Format used, named or detected.
        num_rows: Rows read, the bad ones included.
        bad_rows: Problems of rows that were skipped.
        num_bad_rows: Rows that were skipped (one row may have several problems).
        unknown_roles: Role name as in the file -> number of rows that use it.
        num_duplicates: Rows whose normalised text stands earlier in the same split.
        num_overlaps: Rows of `eval_path` whose normalised text stands in `path` too; the training
            rows are used without them.
        overlaps: Places of those held-out rows.
        fingerprint: sha256 over the bytes of `path` (of a Hub data set: its own fingerprint and
            the revision).
        eval_fingerprint: The same of `eval_path`.
    """

    format: str
    num_rows: int = 0
    bad_rows: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0
    unknown_roles: dict[str, int] = field(default_factory=dict)
    num_duplicates: int = 0
    num_overlaps: int = 0
    overlaps: list[Where] = field(default_factory=list)
    fingerprint: str = ""
    eval_fingerprint: str = ""

    def describe(self, num_train: int, num_eval: int) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run.

        Args:
            num_train: Rows to train on.
            num_eval: Rows held out.
        """
        return {
            "num_train_rows": num_train,
            "num_eval_rows": num_eval,
            "num_bad_rows": self.num_bad_rows,
            "num_duplicates": self.num_duplicates,
            "num_overlaps": self.num_overlaps,
            "fingerprint": self.fingerprint,
            "eval_fingerprint": self.eval_fingerprint,
        }

    def notes(self, num_train: int, num_eval: int) -> list[str]:
        """Say what was read, one sentence each: format, counts, and what was left out.

        Args:
            num_train: Rows to train on.
            num_eval: Rows held out.
        """
        notes = [
            f"data: format {self.format}, {self.num_rows:,} rows read, {num_train:,} to "
            f"train on, {num_eval:,} held out"
        ]
        if self.num_bad_rows:
            notes.append(f"data: {self.num_bad_rows:,} bad rows were skipped")
        if self.num_duplicates:
            notes.append(f"data: {self.num_duplicates:,} training rows repeat an earlier one")
        if self.num_overlaps:
            notes.append(
                f"data: {self.num_overlaps:,} held-out rows also stand in the training file and "
                "were left out of training"
            )
        return notes


@dataclass(slots=True)
class Splits:
    """Conversations for training and for evaluation (may be empty), and how they were read."""

    train: list[Conversation]
    eval: list[Conversation]
    report: ReadReport

    def notes(self) -> list[str]:
        """Say what was read, one sentence each: format, counts, and what was left out."""
        return self.report.notes(len(self.train), len(self.eval))

    def describe(self) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run."""
        counts = self.report.describe(len(self.train), len(self.eval))
        return {"format": self.report.format, **counts}


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized conversation.

    Attributes:
        input_ids: T token ids.
        labels: T labels; `IGNORED` where nothing is learnt; position 0 is always ignored.
        was_cut: The conversation had more than `max_length` tokens.
        where: The row it came from.
        num_unlearnt_answers: Earlier answers that are only read, because the chat template writes
            them in another way than a last answer.
    """

    input_ids: list[int]
    labels: list[int]
    was_cut: bool
    where: Where
    num_unlearnt_answers: int = 0
