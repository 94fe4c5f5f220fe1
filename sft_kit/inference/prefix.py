"""Texts that an encoder writes from left to right: the rest of a prefix, or what fills blanks.

Every token is computed from the whole text so far, with the attention mask of training: an encoder
keeps no states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from sft_kit.errors import CheckpointError, DataError, Problem
from sft_kit.inference.encoder import Choice, Encoder
from sft_kit.inference.generate import Reply, reply_rooms
from sft_kit.inference.masks import refuse_unfit, token_before
from sft_kit.inference.placing import Filling, PlacedIds, encode, fill_in, place_ids, spell_out
from sft_kit.inference.text_pieces import until_stop
from sft_kit.models.attention_masks import attention_mask_of
from sft_kit.settings import SampleSettings


@dataclass(frozen=True, slots=True)
class _Layout:
    """What an encoder is told about T token ids; see `Corrupted`."""

    prefix_length: int
    position_ids: list[int] | None = None
    token_type_ids: list[int] | None = None


def continue_texts(
    encoder: Encoder, prompts: Sequence[str], sampling: SampleSettings, *, two_way: bool
) -> list[Reply]:
    """Continue texts as `left_to_right` and `prefix_lm` rows go on.

    Args:
        encoder: Trained left to right, or behind a prefix.
        prompts: What is there.
        sampling: How to draw; a text also ends where the model's context ends.
        two_way: The prompt is a prefix, which an end token closes and which sees itself both ways.

    Raises:
        DataError: Prompts that leave no room.
    """
    vocabulary = encoder.vocabulary
    behind = [vocabulary.end] if two_way else []
    starts = [[vocabulary.start, *encode(encoder.tokenizer, prompt), *behind] for prompt in prompts]
    rooms = reply_rooms(encoder.model, [len(ids) for ids in starts], sampling.max_new_tokens)
    replies = []
    for ids, room in zip(starts, rooms, strict=True):
        layout = _Layout(len(ids) if two_way else 0)
        written = _write(encoder, ids, layout, room, _choice(encoder, sampling))
        kept = until_stop(written, [vocabulary.end])
        text = spell_out(encoder.tokenizer, kept)
        replies.append(Reply(text, kept, stopped=len(kept) < len(written)))
    return replies


def fill_blanks(encoder: Encoder, prompts: Sequence[str], sampling: SampleSettings) -> list[Reply]:
    """Write what is missing at every mask token, from left to right, as `infill` rows go on.

    A blank is filled knowing the text around all blanks, and what fills those before it.

    Args:
        encoder: Trained to fill blanks.
        prompts: Texts with mask tokens.
        sampling: How to draw; `max_new_tokens` is for each blank.

    Returns:
        The texts as written with the blanks filled; `ids` are the new tokens of all blanks.

    Raises:
        DataError: Texts without a mask token, or too long for their blanks to be filled.
        CheckpointError: The model has no second positions.
    """
    longest = _longest_filling(encoder)
    texts = [place_ids(encoder.tokenizer, prompt) for prompt in prompts]
    refuse_unfit(encoder, texts)
    _refuse_without_room(encoder, texts)
    most = min(sampling.max_new_tokens, longest)
    return [_fill_blanks(encoder, text, most, _choice(encoder, sampling)) for text in texts]


def _fill_blanks(encoder: Encoder, text: PlacedIds, most: int, choice: Choice) -> Reply:
    vocabulary = encoder.vocabulary
    ids = [vocabulary.start, *text.ids, vocabulary.end]
    prefix_length = len(ids)
    positions, seconds = list(range(prefix_length)), [0] * prefix_length
    places = [place for place, token_id in enumerate(ids) if token_id == vocabulary.mask]
    fillings, all_stopped = [], True
    for number, place in enumerate(places):
        later = len(places) - number - 1
        room = min(most, encoder.context - len(ids) - 1 - 2 * later)
        ids, positions, seconds = [*ids, vocabulary.start], [*positions, place], [*seconds, 1]
        written = _write(encoder, ids, _Layout(prefix_length, positions, seconds), room, choice)
        kept = until_stop(written, [vocabulary.end])
        all_stopped = all_stopped and len(kept) < len(written)
        ids = [*ids, *kept]
        positions += [place] * len(kept)
        seconds += range(2, len(kept) + 2)
        before = token_before(text.ids, place - 1, vocabulary)
        fillings.append(Filling(text.spans[place - 1], before, kept))
    new = [token_id for filling in fillings for token_id in filling.ids]
    return Reply(fill_in(encoder.tokenizer, text.text, fillings), new, stopped=all_stopped)


def _write(
    encoder: Encoder, ids: Sequence[int], layout: _Layout, num_tokens: int, choice: Choice
) -> list[int]:
    """Write at most `num_tokens` behind T token ids; an end token that ended them is the last.

    In a blank, a new token has the position of the one before it, and the next second position.
    """
    written: list[int] = []
    while len(written) < num_tokens and encoder.vocabulary.end not in written[-1:]:
        given = [*ids, *written]
        inputs = {"attention_mask": _mask(encoder, len(given), layout.prefix_length)}
        if layout.position_ids is not None and layout.token_type_ids is not None:
            same = [layout.position_ids[-1]] * len(written)
            more = range(layout.token_type_ids[-1] + 1, layout.token_type_ids[-1] + 1 + len(same))
            inputs["position_ids"] = torch.tensor([[*layout.position_ids, *same]])
            inputs["token_type_ids"] = torch.tensor([[*layout.token_type_ids, *more]])
        written.append(choice.of(encoder.scores(given, **inputs)[-1]))
    return written


def _mask(encoder: Encoder, num_tokens: int, prefix_length: int) -> torch.Tensor:
    """Make what is added to the scores of attention: eager attention would add True as 1."""
    visible = attention_mask_of(
        torch.ones((1, num_tokens), dtype=torch.long), torch.tensor([prefix_length])
    )
    dtype = cast("torch.dtype", encoder.model.dtype)
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def _choice(encoder: Encoder, sampling: SampleSettings) -> Choice:
    allowed = [*encoder.vocabulary.ordinary.tolist(), encoder.vocabulary.end]
    return Choice(sampling, allowed, encoder.model.device)


def _longest_filling(encoder: Encoder) -> int:
    """Tokens of a blank that the model tells apart, besides 0 for the text and 1 for the start."""
    num_positions = int(getattr(cast("Any", encoder.model.config), "type_vocab_size", 0) or 0)
    if num_positions < 3:
        raise CheckpointError(
            "the model has no second positions for the tokens of a blank (its config's "
            f"type_vocab_size is {num_positions}): it was not trained with objective infill"
        )
    return num_positions - 2


def _refuse_without_room(encoder: Encoder, texts: Sequence[PlacedIds]) -> None:
    """A blank takes its start and one token at least."""
    problems = []
    for number, text in enumerate(texts, start=1):
        num_blanks = text.ids.count(encoder.vocabulary.mask)
        length = len(text.ids) + 2
        if length + 2 * num_blanks > encoder.context:
            found = (
                f"has {length:,} tokens and {num_blanks:,} blanks, the model reads at most "
                f"{encoder.context:,} with what fills them"
            )
            problems.append(Problem(f"prompt {number}", "", found, "shorten it"))
    if problems:
        raise DataError(f"{len(problems)} of {len(texts)} prompts can't be used", problems)
