"""Atoms: the fixed groups of episodes that one forward takes, in scoring and in training alike.

A rollout is cut into atoms once. Each is trimmed to its own longest prompt and completion and keeps
its shape, so that the first update sees bit by bit the logprobs that were scored (ratio 1), in any
precision. All processes hold the same list and work on their own share of it. Shapes: B episodes of
an atom, P prompt and C completion tokens, T = P + C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from sft_kit.training.ppo.rollout import Episode

ANY_TOKEN = 0
"""Padding: every place of it is masked, so any id will do."""


@dataclass(frozen=True, slots=True)
class Atom:
    """A group of episodes as one padded batch.

    Attributes:
        rows: Numbers of its episodes.
        batch: `input_ids`, `attention_mask` and `position_ids`, each (B, T); prompts end and
            completions begin in column P.
        num_prompt_tokens: P.
        tokens: (B, C) completion tokens.
        mask: (B, C) bool.
    """

    rows: tuple[int, ...]
    batch: dict[str, torch.Tensor]
    num_prompt_tokens: int
    tokens: torch.Tensor
    mask: torch.Tensor

    def scored_slice(self) -> slice:
        """The positions whose hidden states predict the completion's tokens, and value them."""
        first = self.num_prompt_tokens - 1
        return slice(first, first + self.tokens.shape[1])


def atom_rows(episodes: Sequence[Episode], size: int, num_minibatches: int) -> list[list[int]]:
    """Cut a rollout into groups of similar length, longest first.

    Args:
        episodes: By number.
        size: Episodes of an atom at most; fewer where minibatches would not get equally many atoms.
        num_minibatches: Updates per epoch.

    Returns:
        Numbers of the episodes of each atom.
    """
    num_atoms = num_minibatches * -(-len(episodes) // (num_minibatches * size))
    lengths = [len(episode.prompt_ids) + len(episode.completion_ids) for episode in episodes]
    order = sorted(range(len(episodes)), key=lambda row: (-lengths[row], row))
    return _cut(order, min(num_atoms, len(episodes)))


def _cut(items: list[int], num_parts: int) -> list[list[int]]:
    """Cut a list into parts that differ by one in length at most."""
    ends = [round(len(items) * part / num_parts) for part in range(num_parts + 1)]
    return [items[start:end] for start, end in pairwise(ends)]


def make_atom(
    episodes: Sequence[Episode], rows: Sequence[int], device: torch.device, num_pads: int = 0
) -> Atom:
    """Pad a group of episodes: prompts on the left, completions on the right.

    Args:
        episodes: Of the rollout, by number.
        rows: Numbers of those in the atom.
        device: Where its tensors go.
        num_pads: More columns of padding on the left, which must change nothing.
    """
    chosen = [episodes[row] for row in rows]
    num_prompt = max(len(episode.prompt_ids) for episode in chosen) + num_pads
    num_completion = max(len(episode.completion_ids) for episode in chosen)
    shape = (len(rows), num_prompt + num_completion)
    ids = torch.full(shape, ANY_TOKEN, dtype=torch.long)
    attention = torch.zeros(shape, dtype=torch.long)
    for row, episode in enumerate(chosen):
        both = (*episode.prompt_ids, *episode.completion_ids)
        start = num_prompt - len(episode.prompt_ids)
        ids[row, start : start + len(both)] = torch.tensor(both)
        attention[row, start : start + len(both)] = 1
    batch = {
        "input_ids": ids.to(device),
        "attention_mask": attention.to(device),
        "position_ids": (attention.cumsum(dim=1) - 1).clamp(min=0).to(device),
    }
    tokens, mask = ids[:, num_prompt:], attention[:, num_prompt:].bool()
    return Atom(tuple(rows), batch, num_prompt, tokens.to(device), mask.to(device))


def deal(num_atoms: int, num_processes: int) -> list[list[int]]:
    """Deal atoms, which stand longest first, so that no process gets the longest ones only.

    Returns:
        Indices of each process: there and back like a snake.
    """
    hands: list[list[int]] = [[] for _ in range(num_processes)]
    for index in range(num_atoms):
        turn, place = divmod(index, num_processes)
        hands[place if turn % 2 == 0 else num_processes - 1 - place].append(index)
    return hands


def minibatches(
    num_atoms: int, num_minibatches: int, *, seed: int, rollout: int, epoch: int
) -> list[list[int]]:
    """Shuffle the atoms of a rollout for one epoch and cut them into minibatches.

    Returns:
        Indices of atoms, equally many in each minibatch but for one; equal on all processes. Sorted
        within a minibatch, which is their order from long to short.
    """
    key = ((seed * 1_000_003 + rollout) * 1009 + epoch) % (1 << 62)
    order = torch.randperm(num_atoms, generator=torch.Generator().manual_seed(key)).tolist()
    return [sorted(part) for part in _cut(order, min(num_minibatches, num_atoms))]
