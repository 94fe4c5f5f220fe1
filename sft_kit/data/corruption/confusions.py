"""Which characters are mistaken for which: by sound, by look, or as a file says.

V size of the vocabulary, C characters in it, G groups of confusables, K tokens that are asked for.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.corpus.rows import Flags, Ids
from sft_kit.data.corruption.look_alikes import LOOK_ALIKES
from sft_kit.errors import DataError, Problem

SOUND_SHARE, NEAR_SOUND_SHARE, LOOK_SHARE = 0.6, 0.2, 0.2
"""How often the same sound, a near sound and a like look are taken, where a character has all.

PLOME (Liu et al. 2021, section 3.1) takes 60 to 15 by sound and by look, four to one; errors of
near sounds (zh as z, n as l, ing as in) are those of speakers of southern dialects.
"""
_NEAR_BEGINNINGS = {"zh": "z", "ch": "c", "sh": "s", "n": "l"}
_NEAR_ENDINGS = {"ang": "an", "eng": "en", "ing": "in"}
_SIMPLIFIED = ("gb2312", 0xB0, 0xD7)
_TRADITIONAL = ("big5", 0xA4, 0xC6)
"""Encoding and rows of the first level of two national standards: 3,755 and 5,401 characters."""
_ACCEPTED = 'accepts an object of character -> characters, such as {"天": "夭大"}'
_HOW_TO_WRITE = 'write it as "天": "夭大" or as "天": ["夭", "大"]'

Groups = Mapping[str, Iterable[str]]
"""Character -> characters it is mistaken for."""


@dataclass(frozen=True, slots=True)
class Confusions:
    """Characters of a vocabulary, and what each is mistaken for, as arrays over token ids.

    Attributes:
        is_character: (V,) True at tokens that can be misspelt.
        characters: (C,) their ids, ascending.
        ranks: (V,) where an id stands in `characters`; only there it means something.
        starts: (V * G + 1,) where the confusables of token t and group g begin in `confusables`:
            at `starts[t * G + g]`; they end where the next begin.
        confusables: Ids, by token and group.
        thresholds: (V, G) cumulative probability of the groups; the last is 1, or all are 0 where
            a token is mistaken for none.
    """

    is_character: Flags
    characters: Ids
    ranks: Ids
    starts: Ids
    confusables: Ids
    thresholds: NDArray[np.float64]

    def pick_confusable(
        self, ids: Ids, group_draws: NDArray[np.float64], draws: NDArray[np.float64]
    ) -> Ids:
        """Pick a confusable character for each id.

        Args:
            ids: (K,) token ids.
            group_draws: (K,) random numbers in [0, 1) that pick the group.
            draws: (K,) random numbers in [0, 1) that pick the character within it, all alike.

        Returns:
            (K,) ids; -1 where a token is mistaken for none.
        """
        thresholds = self.thresholds[ids]
        group = np.sum(group_draws[:, None] >= thresholds, axis=1)
        num_groups = thresholds.shape[1]
        has_none = group == num_groups
        segment = ids * num_groups + np.minimum(group, num_groups - 1)
        start = self.starts[segment]
        place = start + (draws * (self.starts[segment + 1] - start)).astype(np.int64)
        # A token of no confusables at the end of the vocabulary points behind the last one.
        picked: Ids = self.confusables.take(place, mode="clip")
        picked[has_none] = -1
        return picked

    def pick_other(self, ids: Ids, draws: NDArray[np.float64]) -> Ids:
        """Pick another character than each of `ids`, which are characters, all others alike.

        Args:
            ids: (K,) token ids.
            draws: (K,) random numbers in [0, 1).
        """
        places = (draws * (len(self.characters) - 1)).astype(np.int64)
        return self.characters[places + (places >= self.ranks[ids])]


def load_confusions(tokens: Sequence[str], path: str | None = None) -> Confusions:
    """Gather what the characters of a vocabulary are mistaken for.

    Args:
        tokens: (V,) tokens of the vocabulary, by id.
        path: JSON file of character -> characters it is mistaken for; None takes characters that
            sound alike, or nearly, and a table of look-alikes.

    Raises:
        DataError: The file can't be read or says something else, or the vocabulary has no tokens
            that are such characters.
    """
    ids = {token: number for number, token in enumerate(tokens) if len(token) == 1}
    characters = [token for token in ids if is_chinese(token)]
    if path is None:
        groups = [*_sound_alikes(characters), _look_alikes()]
        shares = [SOUND_SHARE, NEAR_SOUND_SHARE, LOOK_SHARE]
    else:
        groups, shares = [_read_confusions(path)], [1.0]
    confusions = _tabulate(len(tokens), ids, characters, groups, shares)
    if len(characters) < 2 or not len(confusions.confusables):
        raise DataError(
            f"{path or 'spelling'}: the vocabulary has no characters that are mistaken for each "
            "other: each must be a token of its own (take a tokenizer such as bert-base-chinese, "
            "or train one by characters)"
        )
    return confusions


def is_chinese(character: str) -> bool:
    """Tell whether a character is a Chinese one (a CJK unified or compatibility ideograph)."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x323AF
    )


def _tabulate(
    num_tokens: int,
    ids: Mapping[str, int],
    characters: Sequence[str],
    groups: Sequence[Groups],
    shares: Sequence[float],
) -> Confusions:
    """Lay the groups out over token ids; what the vocabulary does not have is left out."""
    lists: list[list[int]] = [[] for _ in range(num_tokens * len(groups))]
    for character in characters:
        for number, group in enumerate(groups):
            others = {ids[other] for other in group.get(character, ()) if other in ids}
            lists[ids[character] * len(groups) + number] = sorted(others - {ids[character]})
    counts = np.array([len(found) for found in lists], dtype=np.int64)
    weights = np.where(counts.reshape(num_tokens, len(groups)) > 0, shares, 0.0)
    sums = np.cumsum(weights, axis=1)
    thresholds = np.divide(sums, sums[:, -1:], out=np.zeros_like(sums), where=sums[:, -1:] > 0)
    is_character = np.zeros(num_tokens, dtype=bool)
    is_character[[ids[character] for character in characters]] = True
    return Confusions(
        is_character=is_character,
        characters=np.flatnonzero(is_character),
        ranks=np.cumsum(is_character) - 1,
        starts=np.concatenate([[0], np.cumsum(counts)]),
        confusables=np.array([other for found in lists for other in found], dtype=np.int64),
        thresholds=thresholds,
    )


def _sound_alikes(characters: Sequence[str]) -> tuple[Groups, Groups]:
    """Find characters of the same sound, tones aside, and of a near sound only.

    A character in common use is mistaken for such ones alone.
    """
    sounds = {character: _sounds_of(character) for character in characters}
    nears = {character: {_near(sound) for sound in found} for character, found in sounds.items()}
    by_sound, by_near = _invert(sounds), _invert(nears)
    simplified = {character for character in characters if _is_common(character, *_SIMPLIFIED)}
    traditional = {character for character in characters if _is_common(character, *_TRADITIONAL)}
    same: dict[str, set[str]] = {}
    nearly: dict[str, set[str]] = {}
    for character in characters:
        alike = set[str]().union(*(by_sound[sound] for sound in sounds[character]))
        nearby = set[str]().union(*(by_near[near] for near in nears[character])) - alike
        for peers in (simplified, traditional):
            if character in peers:
                alike, nearby = alike & peers, nearby & peers
                break
        same[character], nearly[character] = alike, nearby
    return same, nearly


def _invert(sounds: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    inverted: dict[str, set[str]] = defaultdict(set)
    for character, found in sounds.items():
        for sound in found:
            inverted[sound].add(character)
    return inverted


def _sounds_of(character: str) -> set[str]:
    """Give all readings of a character without tones; none where it has no known one."""
    from pypinyin import Style, pinyin

    # "ignore" gives [] and not [[]] for a character that has no reading.
    readings = pinyin(character, style=Style.NORMAL, heteronym=True, errors="ignore")
    return {sound for reading in readings for sound in reading}


def _near(sound: str) -> str:
    for beginning, other in _NEAR_BEGINNINGS.items():
        if sound.startswith(beginning):
            sound = other + sound.removeprefix(beginning)
            break
    for ending, other in _NEAR_ENDINGS.items():
        if sound.endswith(ending):
            return sound.removesuffix(ending) + other
    return sound


def _is_common(character: str, encoding: str, first: int, last: int) -> bool:
    """Tell whether an encoding has a character in these rows, where it keeps its common ones."""
    try:
        row = character.encode(encoding)[0]
    except UnicodeEncodeError:
        return False
    return first <= row <= last


def _look_alikes() -> Groups:
    found: dict[str, set[str]] = defaultdict(set)
    for alike in LOOK_ALIKES.split():
        for character in alike:
            found[character].update(alike)
    return found


def _read_confusions(path: str) -> dict[str, set[str]]:
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: the file can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON in UTF-8: {error} ({_ACCEPTED})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: found a JSON {type(content).__name__}, {_ACCEPTED}")
    problems = [
        Problem(path, repr(key), found, _HOW_TO_WRITE)
        for key, value in content.items()
        if (found := _wrong_confusion(key, value))
    ]
    if problems:
        entries = "1 entry" if len(problems) == 1 else f"{len(problems):,} entries"
        raise DataError(f"{path}: {entries} can't be used", problems)
    return {key: set(value) for key, value in content.items()}


def _wrong_confusion(key: str, value: object) -> str:
    """Say what is wrong with an entry; nothing where it is right."""
    if len(key) != 1:
        return f"the key has {len(key)} characters, accepts one"
    if not is_chinese(key):
        return "the key is no Chinese character, and only such ones are misspelt"
    if not isinstance(value, str | list):
        return f"found {value!r}, accepts a string of characters or a list of them"
    wrong = [other for other in value if not isinstance(other, str) or len(other) != 1]
    if wrong:
        return f"found {wrong[0]!r} in the list, accepts single characters"
    if key in value:
        return "the character is among those it is mistaken for, accepts others only"
    foreign = [other for other in value if not is_chinese(other)]
    return f"found {foreign[0]!r}, accepts Chinese characters only" if foreign else ""
