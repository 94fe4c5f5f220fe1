"""Figures about pretraining rows: what they hold, what is hidden of them, and what is learnt."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Flags, Ids, Row, Vocabulary
from sft_kit.data.corpus.windows import special_flags
from sft_kit.data.rows import IGNORED
from sft_kit.settings import TextDataSettings

MAX_MEASURED = 5_000
"""Rows that are looked at; of more rows, as many evenly spread ones."""
_UNKNOWN_FRACTION = 0.01
_FEW_PAIRS = 0.5
_MOSTLY_UNKNOWN = 0.5


@dataclass(slots=True)
class RowFigures:
    """What is known about the rows of one split.

    Attributes:
        num_rows: Rows of the split.
        lengths: Tokens of each measured row, special tokens included, before anything is hidden.
        num_ordinary: Of those, tokens that are not special.
        num_unknown: Tokens that stand for what the tokenizer does not know; they count as special.
        num_words: Words, where words are hidden as a whole; else 0.
        num_hidden: Tokens that were hidden, changed or left as they are to be learnt; or deleted.
        num_masked: Learnt tokens in whose place the mask token stands.
        num_changed: Learnt tokens in whose place another token stands.
        num_left: Learnt tokens that were left as they are.
        num_read: Tokens the model reads.
        num_learnt: Labels.
        span_lengths: Tokens of each hidden span, where spans can be told apart.
        num_following: Rows whose second part follows the first.
        num_elsewhere: Rows whose second part is from elsewhere.
        num_unasked: Rows of one part only, where others have two.
        num_spelled: Texts that spell a special token which the tokenizer can't read as plain text.
        label_counts: (V,) how often each token is a label.
    """

    num_rows: int
    label_counts: Ids
    lengths: list[int] = field(default_factory=list)
    num_ordinary: int = 0
    num_unknown: int = 0
    num_words: int = 0
    num_hidden: int = 0
    num_masked: int = 0
    num_changed: int = 0
    num_left: int = 0
    num_read: int = 0
    num_learnt: int = 0
    span_lengths: list[int] = field(default_factory=list)
    num_following: int = 0
    num_elsewhere: int = 0
    num_unasked: int = 0
    num_spelled: int = 0

    @property
    def num_measured(self) -> int:
        """Rows that were looked at."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, special tokens included; estimated where not all were measured."""
        if not self.lengths:
            return 0
        return round(sum(self.lengths) * self.num_rows / self.num_measured)

    @property
    def num_text_tokens(self) -> int:
        """The same without special tokens, but with those of unknown text."""
        if not self.lengths:
            return 0
        return round((self.num_ordinary + self.num_unknown) * self.num_rows / self.num_measured)

    @property
    def unknown_fraction(self) -> float:
        """Share of the tokens of texts that are unknown, in [0, 1]."""
        return self.num_unknown / max(1, self.num_ordinary + self.num_unknown)

    def share_of(self, id_: int) -> float:
        """Share of the labels that are this token, in [0, 1]: the accuracy of always saying it."""
        return int(self.label_counts[id_]) / max(1, self.num_learnt)

    def commonest_labels(self, count: int) -> list[tuple[int, float]]:
        """Most frequent labels first: token id, share of all labels in [0, 1]."""
        ids = np.argsort(-self.label_counts, kind="stable")[:count]
        return [(int(id_), self.share_of(int(id_))) for id_ in ids]


def chosen_rows(num_rows: int, count: int = MAX_MEASURED) -> list[int]:
    """Choose rows that are spread evenly.

    >>> chosen_rows(10, 4)
    [0, 2, 5, 7]
    """
    measured = min(num_rows, count)
    return [index * num_rows // measured for index in range(measured)]


def measure_rows(
    rows: Iterable[tuple[Row, Corrupted]],
    num_rows: int,
    vocabulary: Vocabulary,
    unknown_id: int | None,
    *,
    words: bool = False,
    left_to_right: bool = False,
) -> RowFigures:
    """Count what is in rows and what was done to them.

    Args:
        rows: Each before and after it was corrupted.
        num_rows: Rows of the split, of which `rows` may be a part.
        vocabulary: Of the tokenizer.
        unknown_id: Id of its unknown token, if it has one.
        words: Whether the rows know their words.
        left_to_right: Labels are the tokens themselves, and nothing is hidden.
    """
    figures = RowFigures(num_rows, np.zeros(vocabulary.size, dtype=np.int64))
    is_special = special_flags(vocabulary)
    for row, corrupted in rows:
        figures.lengths.append(len(row.input_ids))
        ordinary = ~row.is_special
        figures.num_ordinary += int(ordinary.sum())
        if unknown_id is not None:
            figures.num_unknown += int((row.input_ids == unknown_id).sum())
        if words:
            figures.num_words += len(np.unique(row.words[ordinary]))
        _count_labels(figures, corrupted)
        if not left_to_right:
            _count_corruption(figures, ordinary, corrupted, is_special, vocabulary)
        _count_pair(figures, corrupted)
    return figures


def _count_labels(figures: RowFigures, corrupted: Corrupted) -> None:
    """Count what is learnt, and what is read: the text of blanks is written."""
    learnt = corrupted["labels"][corrupted["labels"] != IGNORED]
    figures.num_learnt += len(learnt)
    figures.label_counts += np.bincount(learnt, minlength=len(figures.label_counts))
    prefix = corrupted.get("prefix_length")
    has_blanks = prefix is not None and "token_type_ids" in corrupted
    figures.num_read += prefix if prefix and has_blanks else len(corrupted["input_ids"])


def _count_corruption(
    figures: RowFigures,
    ordinary: Flags,
    corrupted: Corrupted,
    is_special: Flags,
    vocabulary: Vocabulary,
) -> None:
    ids, labels = corrupted["input_ids"], corrupted["labels"]
    prefix = corrupted.get("prefix_length")
    if prefix is None and int(labels[0]) != IGNORED:  # a decoder's own text
        figures.num_hidden += int(ordinary.sum()) - int((~is_special[ids]).sum())
        figures.span_lengths += _sentinel_spans(labels, vocabulary)
    elif prefix is not None and "token_type_ids" in corrupted:
        lengths = _blank_lengths(corrupted["token_type_ids"][prefix:])
        figures.num_hidden += sum(lengths)
        figures.span_lengths += lengths
    else:
        first = len(ids) if prefix is None else max(prefix - 1, 0)
        _count_in_place(figures, ids[:first], labels[:first], vocabulary)


def _count_in_place(figures: RowFigures, ids: Ids, labels: Ids, vocabulary: Vocabulary) -> None:
    """Count tokens that are learnt where they stand."""
    is_learnt = labels != IGNORED
    is_left = is_learnt & (ids == labels)
    is_masked = is_learnt & (ids == vocabulary.mask)
    figures.num_hidden += int(is_learnt.sum())
    figures.num_left += int(is_left.sum())
    figures.num_masked += int(is_masked.sum())
    figures.num_changed += int((is_learnt & ~is_left & ~is_masked).sum())
    figures.span_lengths += _runs(is_learnt)


def _count_pair(figures: RowFigures, corrupted: Corrupted) -> None:
    if "next_sentence_label" in corrupted:
        label = corrupted["next_sentence_label"]
        figures.num_following += label == 0
        figures.num_elsewhere += label == 1
        figures.num_unasked += label not in (0, 1)


def _runs(flags: Flags) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [int(length) for length in edges[1::2] - edges[::2]]


def _sentinel_spans(labels: Ids, vocabulary: Vocabulary) -> list[int]:
    """Tokens behind each sentinel; without sentinels, spans can't be told apart."""
    if not vocabulary.sentinels:
        return []
    places = np.flatnonzero(np.isin(labels, vocabulary.sentinels))
    ends = np.append(places[1:], len(labels) - 1)
    return [int(length) for length in ends - places - 1 if length > 0]


def _blank_lengths(second_positions: Ids) -> list[int]:
    """Tokens of each blank: its start token, which has the second position 1, does not count."""
    starts = np.flatnonzero(second_positions == 1)
    ends = np.append(starts[1:], len(second_positions))
    return [int(length) for length in ends - starts - 1]


def has_labels(corrupted: Corrupted) -> bool:
    """Tell whether any token of a row is learnt."""
    return bool((corrupted["labels"] != IGNORED).any())


def nothing_learnt(objective: str, unknown_fraction: float = 0.0) -> str:
    """Say that no row has a label, whose loss would look like a perfect one, and why it may be.

    Args:
        objective: Its name.
        unknown_fraction: Share of the tokens that are unknown to the tokenizer, in [0, 1].
    """
    if unknown_fraction > _MOSTLY_UNKNOWN:
        todo = (
            f"{unknown_fraction:.0%} of the tokens are unknown to the tokenizer, and unknown ones "
            "are never learnt: choose or train another tokenizer"
        )
    elif objective == "spell":
        todo = (
            "spell learns Chinese characters only, each a token of its own: give Chinese text, or "
            "set pretrain.objective to mlm"
        )
    else:
        todo = (
            "there is too little text, the tokenizer doesn't know it, or pretrain.mask_fraction is "
            "too small: add text, choose another tokenizer, or raise it"
        )
    return f"no row has a label, so nothing is learnt or measured ({todo})"


def doubtful_rows(figures: RowFigures, settings: TextDataSettings, *, held_out: bool) -> list[str]:
    """Say what works but was probably not meant, each a sentence.

    Args:
        figures: Of the training rows.
        settings: The section `data`.
        held_out: Whether there are held-out texts.
    """
    notes = []
    if figures.unknown_fraction > _UNKNOWN_FRACTION:
        notes.append(
            f"{figures.unknown_fraction:.1%} of the tokens are unknown to the "
            "tokenizer: what they stood for can't be learnt. Choose or train another tokenizer."
        )
    if figures.num_spelled:
        counted = "text spells" if figures.num_spelled == 1 else "texts spell"
        notes.append(
            f"{figures.num_spelled:,} {counted} a special token (such as <extra_id_0> or </s>), "
            "which this tokenizer can't read as plain text: the model sees the token itself, and "
            "never learns it. Remove it from the texts, or choose another tokenizer."
        )
    if settings.pack and figures.num_rows == 1 and figures.lengths[0] < settings.max_length:
        notes.append(
            f"all training text is shorter than one window of data.max_length="
            f"{settings.max_length}: {figures.lengths[0]:,} tokens. Add text, or lower it."
        )
    asked = figures.num_following + figures.num_elsewhere
    if figures.num_unasked > _FEW_PAIRS * (asked + figures.num_unasked):
        notes.append(
            f"{figures.num_unasked:,} of {figures.num_measured:,} examples have one part only, so "
            "they don't ask for the next sentence: texts of several sentences are needed."
        )
    if figures.num_words and figures.num_words == figures.num_ordinary:
        notes.append("every word is one token: hiding whole words is hiding tokens.")
    if not held_out:
        notes.append("nothing is held out: training will not say how it does on other text.")
    return notes
