"""Which changes are proposed, in which order, and that they keep what they promise."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sft_kit.errors import ConfigError
from sft_kit.plan.changes import find_options
from sft_kit.plan.measurement import Measurement

from .builders import BYTES_PER_TOKEN, FIXED_BYTES, full, made_up

SECTIONS: dict[str, dict[str, object] | None] = {
    "model": {"quantization": "none"},
    "adapter": {"r": 8},
    "data": {"max_length": 512},
    "train": {"activation_checkpointing": False},
}
WHOLE = 8 * 19 * BYTES_PER_TOKEN
SLACK = 1.05


class Machine:
    """Measures by formula; notes what it was asked for."""

    def __init__(self, refused: str = "") -> None:
        self.asked: list[tuple[str, ...]] = []
        self.refused = refused

    def __call__(self, words: Sequence[str]) -> Measurement:
        self.asked.append(tuple(words))
        if self.refused and any(self.refused in word for word in words):
            raise ConfigError("refused")
        factor = 0.5 if "train.activation_checkpointing=true" in words else 1.0
        size = next((int(w.split("=")[1]) for w in words if "per_device" in w), 8)
        longest = next((int(w.split("=")[1]) for w in words if "max_length" in w), 512)
        shapes = [full(size, min(10 + index, longest)) for index in range(10)]
        found = made_up(shapes, factor=factor)
        found.run["micro_batch"] = size
        if "model.quantization=nf4" in words:
            found.host_peaks = {}
            for index, one in enumerate(found.micro_steps):
                found.micro_steps[index] = type(one)(
                    one.shape, one.seconds, one.host_bytes - FIXED_BYTES // 2, 0,
                    is_rising=one.is_rising,
                )  # fmt: skip
        return found


def overrides(words: Sequence[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)  # type: ignore[misc]


def test_the_largest_micro_batch_that_fits_comes_first_and_keeps_the_global_batch() -> None:
    machine = Machine()
    limit = (FIXED_BYTES + WHOLE / 2 + 3_000_000) * SLACK
    options = find_options(made_up(), SECTIONS, limit, machine)
    first = overrides(options[0].words)
    assert first == {
        "train.per_device_train_batch_size": "4",
        "train.gradient_accumulation_steps": "2",
    }
    assert options[0].words in machine.asked
    assert options[0].is_measured
    assert [option.rank for option in options] == [0, 1, 2]
    assert all(option.forecast.memory.upper <= limit for option in options)


def test_evaluations_are_made_smaller_with_the_micro_batches_that_are_smaller_than_theirs() -> None:
    found = made_up()
    found.run["eval_batch"] = 16
    limit = (FIXED_BYTES + WHOLE / 2 + 3_000_000) * SLACK
    options = find_options(found, SECTIONS, limit, Machine())
    assert overrides(options[0].words)["train.per_device_eval_batch_size"] == "4"


def test_rows_are_cut_only_where_nothing_else_helps() -> None:
    sections = SECTIONS | {"adapter": None}
    limit = (FIXED_BYTES + 8 * BYTES_PER_TOKEN) * SLACK
    options = find_options(made_up(), sections, limit, Machine())
    assert options
    for option in options:
        assert "data.max_length" in overrides(option.words)
        assert "rows are cut" in option.price
        assert overrides(option.words)["train.per_device_train_batch_size"] == "1"


def test_quantization_is_proposed_where_only_it_brings_the_fixed_part_down() -> None:
    options = find_options(made_up(), SECTIONS, 0.7 * FIXED_BYTES, Machine())
    assert [option.words for option in options] == [("model.quantization=nf4",)]
    assert "rounded" in options[0].price


def test_what_the_recipe_refuses_is_not_proposed() -> None:
    machine = Machine(refused="quantization")
    assert find_options(made_up(), SECTIONS, 0.7 * FIXED_BYTES, machine) == []
    assert ("model.quantization=nf4",) in machine.asked


@pytest.mark.parametrize(
    ("section", "value"),
    [("model", {"quantization": "nf4"}), ("model", {}), ("adapter", None)],
)
def test_quantization_needs_an_adapter_and_weights_that_are_not_quantized(
    section: str, value: dict[str, object] | None
) -> None:
    machine = Machine()
    find_options(made_up(), SECTIONS | {section: value}, 0.7 * FIXED_BYTES, machine)
    assert not [words for words in machine.asked if "model.quantization=nf4" in words]


def test_an_option_that_turns_out_too_large_is_dropped_for_the_next_one() -> None:
    class Surprise(Machine):
        def __call__(self, words: Sequence[str]) -> Measurement:
            found = super().__call__(words)
            if any("per_device" in word for word in words):
                found.host_peaks["evaluation"] = 10 * FIXED_BYTES
            return found

    limit = (FIXED_BYTES + WHOLE / 2 + 3_000_000) * SLACK
    options = find_options(made_up(), SECTIONS, limit, Surprise())
    assert options[0].words == ("train.activation_checkpointing=true",)
    assert options[0].is_measured


def test_where_nothing_fits_for_sure_single_rows_are_tried() -> None:
    class Smaller(Machine):
        def __call__(self, words: Sequence[str]) -> Measurement:
            found = super().__call__(words)
            if "train.per_device_train_batch_size=1" in words:
                found.host_peaks = {"started": FIXED_BYTES // 2}
                found.micro_steps = [
                    replace(one, host_bytes=FIXED_BYTES // 2) for one in found.micro_steps
                ]
            return found

    machine = Smaller()
    options = find_options(made_up(), SECTIONS | {"adapter": None}, FIXED_BYTES, machine)
    assert overrides(options[0].words) == {
        "train.per_device_train_batch_size": "1",
        "train.gradient_accumulation_steps": "8",
        "train.per_device_eval_batch_size": "1",
    }
    assert [option.is_measured for option in options] == [True] * len(options)
    assert options[0].forecast.memory.value == FIXED_BYTES / 2
    assert find_options(made_up(), SECTIONS | {"adapter": None}, FIXED_BYTES, Machine()) == []
