import random

import numpy as np
import pytest
import torch

from sft_kit.training.randomness import (
    capture_random_state,
    isolated_randomness,
    restore_random_state,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_restored_state_gives_the_same_numbers_again():
    state = capture_random_state()
    expected = [draw() for _ in range(3)]
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_a_captured_state_is_a_copy():
    state = capture_random_state()
    expected = draw()
    for _ in range(700):  # more than the 624 words of a Mersenne twister
        draw()
    restore_random_state(state)
    assert draw() == expected


def test_each_generator_is_restored_on_its_own():
    state = capture_random_state()
    expected = draw()
    for generator in (random.random, np.random.rand, lambda: torch.rand(())):
        restore_random_state(state)
        generator()
        restore_random_state(state)
        assert draw() == expected


def test_nothing_in_the_block_is_felt_outside():
    state = capture_random_state()
    expected = draw()
    restore_random_state(state)
    with isolated_randomness():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
    assert draw() == expected


def test_the_state_is_put_back_after_an_error():
    state = capture_random_state()
    expected = draw()
    restore_random_state(state)

    def fail() -> None:
        with isolated_randomness():
            draw()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert draw() == expected


def test_the_generators_of_gpus_are_kept_too(monkeypatch: pytest.MonkeyPatch):
    states = [torch.tensor([1]), torch.tensor([2])]
    given: list[list[torch.Tensor]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.append)
    restore_random_state(capture_random_state())
    assert given == [states]
