"""A planned recipe is written with its comments, and says what was planned."""

from pathlib import Path
from typing import Any, cast

import pytest

from sft_kit.config.yaml_text import read_yaml
from sft_kit.errors import ConfigError
from sft_kit.plan.writing import check_same, check_target, write_changed

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
SFT = RECIPES / "sft_gpt2_lora.yaml"
WORDS = [
    "train.per_device_train_batch_size=4",
    "train.gradient_accumulation_steps=4",
    "train.learning_rate=3e-4",
    "adapter.target_modules=[c_attn]",
    "model.quantization=none",
]


def test_every_recipe_says_what_was_planned_when_it_is_written_and_read(tmp_path: Path) -> None:
    yamls = sorted(RECIPES.glob("*.yaml"))
    assert len(yamls) >= 13
    for yaml in yamls:
        target = tmp_path / yaml.name
        write_changed(yaml, ["train.seed=7", "model.config.n_layer=2"], target, "planned")
        meant = cast("dict[str, dict[str, Any]]", read_yaml(yaml).root.plain())
        meant["train"]["seed"] = 7
        meant["model"].setdefault("config", {})["n_layer"] = 2
        assert read_yaml(target).root.plain() == meant


def test_comments_order_and_untouched_lines_stay(tmp_path: Path) -> None:
    target = tmp_path / "planned.yaml"
    write_changed(SFT, WORDS, target, "planned")
    before, after = SFT.read_text().splitlines(), target.read_text().splitlines()
    assert after[0] == "# planned"
    changed = [line for line in before if line not in after]
    assert {line.split(":")[0].strip() for line in changed} == {
        "per_device_train_batch_size", "learning_rate", "target_modules", "quantization",
    }  # fmt: skip
    comments = [line.partition("#")[2] for line in after if "#" in line]
    assert comments[1:] == [line.partition("#")[2] for line in before if "#" in line]
    assert "  gradient_accumulation_steps: 4" in after
    check_same(SFT.with_suffix(".py"), [SFT], WORDS, [target])


def test_a_file_that_says_something_else_is_refused_and_taken_away(tmp_path: Path) -> None:
    target = tmp_path / "planned.yaml"
    write_changed(SFT, WORDS[:2], target, "planned")
    with pytest.raises(ConfigError, match="other settings"):
        check_same(SFT.with_suffix(".py"), [SFT], WORDS, [target])
    assert not target.exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").touch()
    with pytest.raises(ConfigError, match="is there already"):
        check_target(tmp_path / "there.yaml")
    with pytest.raises(ConfigError, match="no folder"):
        check_target(tmp_path / "none" / "new.yaml")
