from itertools import chain, pairwise

import pytest
import torch

from sft_kit.training.ppo.atoms import atom_rows, deal, make_atom, minibatches

from .tiny import CPU, STOP, episode, uneven_episodes


def length(one: object) -> int:
    return len(one.prompt_ids) + len(one.completion_ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("size", [1, 4, 16, 64])
@pytest.mark.parametrize("num_minibatches", [1, 2, 3])
def test_atoms_hold_every_episode_once_and_minibatches_equally_many(
    count: int, size: int, num_minibatches: int
) -> None:
    episodes = uneven_episodes(count)
    rows = atom_rows(episodes, size, num_minibatches)
    assert sorted(chain.from_iterable(rows)) == list(range(count))
    assert all(0 < len(part) <= size for part in rows)
    if count >= num_minibatches * size or len(rows) >= num_minibatches:
        assert len(rows) % num_minibatches == 0 or len(rows) == count
    lengths = [[length(episodes[row]) for row in part] for part in rows]
    assert all(min(one) >= max(next_) for one, next_ in pairwise(lengths))
    # No more atoms than there must be.
    fewest = num_minibatches * -(-count // (num_minibatches * size))
    assert len(rows) == min(fewest, count)


def test_an_atom_puts_prompts_left_and_completions_right_of_one_column() -> None:
    episodes = [episode(0, [5, 6, 7], [8]), episode(1, [9], [10, 11, STOP]), episode(2, [3], [4])]
    atom = make_atom(episodes, [1, 0], CPU)
    assert atom.num_prompt_tokens == 3
    attention = atom.batch["attention_mask"]
    assert attention.tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    ids = atom.batch["input_ids"]
    assert ids[0][attention[0].bool()].tolist() == [9, 10, 11, STOP]
    assert ids[1][attention[1].bool()].tolist() == [5, 6, 7, 8]
    assert atom.batch["position_ids"][0, 2:].tolist() == [0, 1, 2, 3]
    assert atom.batch["position_ids"][1, :4].tolist() == [0, 1, 2, 3]
    assert atom.mask.tolist() == [[True] * 3, [True, False, False]]
    assert atom.tokens[atom.mask].tolist() == [10, 11, STOP, 8]
    assert (atom.scored_slice().start, atom.scored_slice().stop) == (2, 5)


def test_a_completion_of_the_padding_id_counts_in_full() -> None:
    atom = make_atom([episode(0, [0, 0], [0, 0, 0]), episode(1, [5], [6])], [0, 1], CPU)
    assert atom.mask.tolist() == [[True] * 3, [True, False, False]]
    assert atom.batch["attention_mask"][0].tolist() == [1] * 5


def test_padding_on_the_left_moves_everything_and_nothing_else() -> None:
    episodes = uneven_episodes()
    plain, padded = (make_atom(episodes, range(6), CPU, pads) for pads in (0, 4))
    assert padded.num_prompt_tokens == plain.num_prompt_tokens + 4
    assert torch.equal(padded.batch["input_ids"][:, 4:], plain.batch["input_ids"])
    assert torch.equal(padded.batch["position_ids"][:, 4:], plain.batch["position_ids"])
    assert not padded.batch["attention_mask"][:, :4].any()
    assert torch.equal(padded.mask, plain.mask)
    assert torch.equal(padded.tokens, plain.tokens)


@pytest.mark.parametrize(("count", "processes"), [(8, 1), (8, 2), (7, 2), (9, 4), (2, 4)])
def test_dealing_gives_each_atom_to_one_process_and_the_long_ones_to_all(
    count: int, processes: int
) -> None:
    hands = deal(count, processes)
    assert sorted(chain.from_iterable(hands)) == list(range(count))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    if count % (2 * processes) == 0:
        assert len({sum(hand) for hand in hands}) == 1


def test_minibatches_share_all_atoms_out_and_change_with_the_epoch() -> None:
    seen = set()
    for rollout in range(3):
        for epoch in range(3):
            parts = minibatches(8, 4, seed=1, rollout=rollout, epoch=epoch)
            assert sorted(chain.from_iterable(parts)) == list(range(8))
            assert [len(part) for part in parts] == [2] * 4
            assert all(part == sorted(part) for part in parts)
            assert parts == minibatches(8, 4, seed=1, rollout=rollout, epoch=epoch)
            seen.add(str(parts))
    assert len(seen) == 9
    assert minibatches(3, 4, seed=0, rollout=0, epoch=0) != [[]] * 4
    assert all(minibatches(3, 4, seed=0, rollout=0, epoch=0))
