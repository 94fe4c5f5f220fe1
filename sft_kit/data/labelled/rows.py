"""The shapes of a labelled text on its way from a file to the model."""

from dataclasses import dataclass

from sft_kit.data.rows import Where


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row understood.

    Attributes:
        texts: One text, or the two of a pair.
        labels: Names of its classes: one, or any number where the data is multi-label. Empty where
            labels are not asked for.
        where: Place of the row.
        group: Value of the group column; rows with an equal one stay on one side of a split.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    where: Where
    group: str | None = None


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """One tokenized text or pair.

    Attributes:
        input_ids: T token ids.
        token_type_ids: T segment numbers, 0 for the first text and 1 for the second; empty where
            the model knows none.
        label: Class id; with several labels a text, K numbers that are 0.0 or 1.0.
        was_cut: The text had more than `max_length` tokens.
        where: The row it came from.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    label: int | list[float]
    was_cut: bool
    where: Where
