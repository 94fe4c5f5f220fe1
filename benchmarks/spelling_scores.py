"""How well misspelt characters are found and corrected: by characters and by sentences."""

from collections.abc import Sequence

Pair = tuple[str, str]
"""A sentence as it was read, and as it is right; both of the same length."""
Scores = dict[str, float]


def corrected(sentence: str, proposed: Sequence[tuple[str, float]], threshold: float = 0.0) -> str:
    """Write the proposed characters where they are likelier by more than a threshold in nats."""
    pairs = zip(sentence, proposed, strict=True)
    return "".join(other if gap > threshold else own for own, (other, gap) in pairs)


def cases(pairs: Sequence[Pair]) -> list[Pair]:
    """Each wrong sentence with its right one, and each right one with itself."""
    return [
        *(pair for pair in pairs if pair[0] != pair[1]),
        *((right, right) for _, right in pairs),
    ]


def scores(asked: Sequence[Pair], written: Sequence[str]) -> Scores:
    """Compare what was written with what is right, by characters and by sentences.

    Args:
        asked: Sentences as they were read, and as they are right.
        written: What the model made of the first.
    """
    triples = [
        (own, truth, new)
        for (wrong, right), text in zip(asked, written, strict=True)
        for own, truth, new in zip(wrong, right, text, strict=True)
    ]
    flagged = sum(own != new for own, _, new in triples)
    faulty = sum(own != truth for own, truth, _ in triples)
    found = sum(own not in (truth, new) for own, truth, new in triples)
    fixed = sum(own != truth == new for own, truth, new in triples)
    flawed = [(pair, text) for pair, text in zip(asked, written, strict=True) if pair[0] != pair[1]]
    num_alarms = sum(
        wrong == right != text for (wrong, right), text in zip(asked, written, strict=True)
    )
    num_found = sum(
        all((a != b) == (a != c) for a, b, c in zip(*pair, text, strict=True))
        for pair, text in flawed
    )
    num_fixed = sum(right == text for (_, right), text in flawed)
    num_right = len(asked) - len(flawed)
    return {
        **_rates("character_detection", found, flagged, faulty),
        **_rates("character_correction", fixed, flagged, faulty),
        **_rates("sentence_detection", num_found, num_found + num_alarms, len(flawed)),
        **_rates("sentence_correction", num_fixed, num_fixed + num_alarms, len(flawed)),
        "false_alarm_rate": round(num_alarms / num_right, 4) if num_right else 0.0,
    }


def _rates(name: str, hits: int, num_claimed: int, num_true: int) -> Scores:
    precision = hits / num_claimed if num_claimed else 0.0
    recall = hits / num_true if num_true else 0.0
    f1 = 2 * hits / (num_claimed + num_true) if num_claimed + num_true else 0.0
    rates = {"precision": precision, "recall": recall, "f1": f1}
    return {f"{name}_{rate}": round(value, 4) for rate, value in rates.items()}
