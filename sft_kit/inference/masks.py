"""Mask tokens filled, and misspelt characters corrected, by an encoder that sees both sides."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sft_kit.data.corpus.rows import Vocabulary
from sft_kit.data.corruption.confusions import is_chinese
from sft_kit.errors import DataError, Problem
from sft_kit.inference.encoder import Choice, Encoder
from sft_kit.inference.generate import Reply
from sft_kit.inference.placing import Filling, PlacedIds, fill_in, place_ids
from sft_kit.settings import SampleSettings


def fill_masks(encoder: Encoder, prompts: Sequence[str], sampling: SampleSettings) -> list[Reply]:
    """Put a token in the place of every mask token, all of a text at once.

    Args:
        encoder: Trained on mask tokens.
        prompts: Texts with mask tokens.
        sampling: How to draw each token; never a special one.

    Returns:
        The texts as written with the mask tokens filled; `ids` are the new tokens.

    Raises:
        DataError: Texts without a mask token, or longer than the context.
    """
    texts = [place_ids(encoder.tokenizer, prompt) for prompt in prompts]
    refuse_unfit(encoder, texts)
    mask = encoder.vocabulary.mask
    return [
        _put_tokens(
            encoder,
            text,
            [place for place, token_id in enumerate(text.ids) if token_id == mask],
            Choice(sampling, encoder.vocabulary.ordinary, encoder.model.device),
        )
        for text in texts
    ]


def correct_characters(
    encoder: Encoder, prompts: Sequence[str], sampling: SampleSettings
) -> list[Reply]:
    """Replace every Chinese character, and every mask token, by the character it should be.

    Args:
        encoder: Trained to correct misspelt characters.
        prompts: Texts as they are.
        sampling: How to draw each character.

    Returns:
        The corrected texts; `ids` are the tokens of all characters, changed or not.

    Raises:
        DataError: Texts without a Chinese character, or longer than the context, or a tokenizer
            that has no characters.
    """
    texts = [place_ids(encoder.tokenizer, prompt) for prompt in prompts]
    characters = _characters(encoder)
    if not characters.size:
        raise DataError("the tokenizer has no Chinese characters that could be corrected")
    refuse_unfit(encoder, texts, {*characters.tolist(), encoder.vocabulary.mask}, "character")
    asked = {*characters.tolist(), encoder.vocabulary.mask}
    return [
        _put_tokens(
            encoder,
            text,
            [place for place, token_id in enumerate(text.ids) if token_id in asked],
            Choice(sampling, characters, encoder.model.device),
        )
        for text in texts
    ]


def refuse_unfit(
    encoder: Encoder,
    texts: Sequence[PlacedIds],
    asked: set[int] | None = None,
    what: str = "mask token",
) -> None:
    """Refuse texts that ask for nothing or don't fit into the context.

    Args:
        encoder: Whose context it is.
        texts: Without the special tokens around them, which count.
        asked: Token ids that ask for something; None is the mask token.
        what: Name of those.

    Raises:
        DataError: All of them at once.
    """
    token = encoder.tokenizer.mask_token
    asked = {encoder.vocabulary.mask} if asked is None else asked
    problems = []
    for number, text in enumerate(texts, start=1):
        length = len(text.ids) + 2
        if asked.isdisjoint(text.ids):
            todo = f"write {token} where something is missing"
            problems.append(Problem(f"prompt {number}", "", f"has no {what} to replace", todo))
        elif length > encoder.context:
            found = f"has {length:,} tokens, the model reads at most {encoder.context:,}"
            problems.append(Problem(f"prompt {number}", "", found, "shorten it"))
    if problems:
        raise DataError(f"{len(problems)} of {len(texts)} prompts can't be used", problems)


def token_before(ids: Sequence[int], place: int, vocabulary: Vocabulary) -> int | None:
    """Return the token before a place if it is an ordinary one, else None."""
    if place == 0:
        return None
    found = int(np.searchsorted(vocabulary.ordinary, ids[place - 1]))
    is_ordinary = found < vocabulary.ordinary.size and vocabulary.ordinary[found] == ids[place - 1]
    return ids[place - 1] if is_ordinary else None


def _put_tokens(encoder: Encoder, text: PlacedIds, places: list[int], choice: Choice) -> Reply:
    """Ask for the tokens at some places of one text, and put in those that are new."""
    vocabulary = encoder.vocabulary
    scores = encoder.scores([vocabulary.start, *text.ids, vocabulary.end])
    chosen = [choice.of(scores[place + 1]) for place in places]
    filled = list(text.ids)
    for place, token_id in zip(places, chosen, strict=True):
        filled[place] = token_id
    changed = [place for place in places if filled[place] != text.ids[place]]
    fillings = [
        Filling(
            span=(text.spans[run[0]][0], text.spans[run[-1]][1]),
            before=token_before(filled, run[0], vocabulary),
            ids=[filled[place] for place in run],
        )
        for run in _touching(changed, text.spans)
    ]
    return Reply(fill_in(encoder.tokenizer, text.text, fillings), chosen, stopped=True)


def _touching(places: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Group places without anything between them: only together may they spell a character."""
    groups: list[list[int]] = [[place] for place in places[:1]]
    for last, place in pairwise(places):
        if place == last + 1 and spans[place][0] == spans[last][1]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _characters(encoder: Encoder) -> np.ndarray:
    """Find the tokens that are one Chinese character."""
    ordinary = encoder.vocabulary.ordinary.tolist()
    tokens = encoder.tokenizer.convert_ids_to_tokens(ordinary)
    pairs = zip(ordinary, tokens, strict=True)
    return np.array(
        [token_id for token_id, token in pairs if len(token) == 1 and is_chinese(token)], np.int64
    )
