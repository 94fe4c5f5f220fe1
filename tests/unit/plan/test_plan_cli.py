"""`sft-kit plan`: what it prints, what it writes, and what it refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sft_kit.cli import app, plan_command
from sft_kit.cli.plan_command import parse_size
from sft_kit.config.yaml_text import read_yaml
from sft_kit.errors import ConfigError
from sft_kit.plan.measurement import Measurement

from .builders import full, made_up

ROOT = Path(__file__).resolve().parents[3]
SFT = str(ROOT / "recipes" / "sft_gpt2_lora.yaml")
TINY = f"model.checkpoint={ROOT / 'data' / 'checkpoints' / 'tiny-gpt2'}"


def plan(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that a stand-in for the measured process was given."""
    lines: list[list[str]] = []

    def measure(recipe: Path, words: Sequence[str], *, to_the_end: bool) -> Measurement:
        lines.append([recipe.name, *words])
        size = next((int(w.split("=")[1]) for w in words if "per_device" in w), 8)
        found = made_up([full(size, 10 + index) for index in range(10)])
        found.run["micro_batch"] = size
        found.end_seconds = 5.0 if to_the_end else None
        found.free_device_bytes = 140_000_000_000  # of a GPU that the run does not use
        return found

    monkeypatch.setattr(plan_command, "measure", measure)
    return lines


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("7.5 GB", 7.5e9), ("900mb", 9e8), ("2GiB", 2 * 2**30), ("1TB", 1e12),
     ("512B", 512)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "-8GB", "8 gigs", "0GB", ""])
def test_what_is_no_size_is_refused_with_one(text: str) -> None:
    with pytest.raises(ConfigError, match="accepts a size such as 8GB"):
        parse_size(text)


def test_a_plan_says_tokens_memory_time_and_disk_with_their_errors(asked: list[list[str]]) -> None:
    result = plan(SFT, TINY, "train.seed=7")
    assert result.exit_code == 0, result.output
    lines = {line[:9].strip(): line[9:].strip() for line in result.output.splitlines()}
    assert lines["tokens"] == "1,160 in 80 rows (an epoch), 50% labelled"
    assert lines["steps"] == "100 (10 epochs) of 116 tokens with padding"
    assert lines["padding"] == "0% of what is computed; widest batch 8 x 19"
    assert lines["memory"] == "1.15 GB ± 57.6 MB at the peak (20 GB are free)"
    assert lines["time"].startswith("3.2 min ± ")
    assert "2 kB" not in lines["disk"]
    assert "fits into 18 GB" in result.output
    assert asked == [["sft_gpt2_lora.py", TINY, "train.seed=7", "train.report_to=none"]]


@pytest.mark.parametrize(("free", "is_too_little"), [(10**12, False), (1_000, True)])
def test_a_disk_that_will_be_full_is_told(
    asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int,
    is_too_little: bool,
) -> None:  # fmt: skip
    looked_at: list[Path] = []
    monkeypatch.setattr(plan_command, "free_bytes", lambda at: looked_at.append(at) or free)
    result = plan(SFT, TINY, f"train.output_dir={tmp_path / 'a' / 'b'}")
    assert result.exit_code == 0, result.output
    assert looked_at == [tmp_path]
    assert ("the disk will be full: train.output_dir" in result.output) is is_too_little
    assert asked


def test_the_recipe_that_fits_is_written_and_keeps_what_was_overridden(
    asked: list[list[str]], tmp_path: Path
) -> None:
    target = tmp_path / "fits.yaml"
    result = plan(SFT, TINY, "model.quantization=nf4", "--fit", "1.14GB", "--write", str(target))
    assert result.exit_code == 0, result.output
    assert "the cheapest first" in result.output
    written = read_yaml(target).root.plain()
    assert isinstance(written, dict)
    assert written["train"]["per_device_train_batch_size"] == 4
    assert written["train"]["gradient_accumulation_steps"] == 2
    assert written["model"]["checkpoint"] == TINY.partition("=")[2]
    assert target.read_text().startswith("# Written by `sft-kit plan")
    assert any("train.per_device_train_batch_size=4" in words for words in asked)


def test_where_nothing_helps_the_exit_code_is_1_and_nothing_is_written(
    asked: list[list[str]], tmp_path: Path
) -> None:
    target = tmp_path / "fits.yaml"
    result = plan(SFT, TINY, "--fit", "10MB", "--write", str(target))
    assert result.exit_code == 1
    assert "no change of" in result.output
    assert "one row at a time takes 1.02 GB ± 51 MB" in result.output
    tried = [line for line in asked if "train.per_device_train_batch_size=1" in line]
    assert len(tried) == len({tuple(line) for line in tried}), "measured once"
    assert asked
    assert not target.exists()


def test_a_yaml_of_its_own_is_passed_on_as_the_recipe_takes_it(
    asked: list[list[str]], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("train:\n  seed: 3\n", encoding="utf-8")
    recipe = str(ROOT / "recipes" / "sft_gpt2_lora.py")
    result = plan(str(mine), TINY, "--recipe", recipe)
    assert result.exit_code == 0, result.output
    assert asked[0][1:3] == ["--config", str(mine)]


def test_mistakes_are_told_before_anything_is_measured(
    asked: list[list[str]], tmp_path: Path
) -> None:
    for words, error in [
        (["train.sede=7"], "did you mean"),
        (["--fit", "much"], "accepts a size"),
        (["--write", str(tmp_path)], "is there already"),
    ]:
        result = plan(SFT, TINY, *words)
        assert isinstance(result.exception, ConfigError)
        assert error in str(result.exception)
    assert not asked


@pytest.mark.slow
def test_a_real_plan_of_the_tiny_checkpoint_is_close_to_its_run(tmp_path: Path) -> None:
    words = [TINY, "train.max_steps=20", "train.eval_steps=10", "train.save_steps=10"]
    words += ["sample.prompts=[]", "model.quantization=none"]
    command = [sys.executable, "-c", "from sft_kit.cli import main; main()", "plan", SFT, *words]
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    lines = {line[:9].strip(): line[9:].strip() for line in done.stdout.splitlines()}
    planned = float(lines["memory"].split()[0]) * {"MB": 1e6, "GB": 1e9}[lines["memory"].split()[1]]
    recipe = SFT.replace(".yaml", ".py")
    command = [sys.executable, recipe, *words, f"train.output_dir={tmp_path / 'run'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=500)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert planned == pytest.approx(metrics["peak_memory_bytes"], rel=0.15)
