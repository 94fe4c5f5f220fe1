from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate import PartialState

from sft_kit.artifacts.samples import Sample, pair_samples, show_samples, write_samples


@dataclass
class Reply:
    text: str
    stopped: bool


SAMPLES = [
    Sample("What is water?", Reply("water water [red]", False), Reply("A liquid.", True)),
    Sample("Two lines\nof prompt", Reply("one\ntwo", True), Reply("", True)),
]


def test_answers_are_paired_by_their_prompts():
    before = [Reply("a", True), Reply("b", False)]
    after = [Reply("c", True), Reply("d", True)]
    assert pair_samples(["x", "y"], before, after) == [
        Sample("x", before[0], after[0]),
        Sample("y", before[1], after[1]),
    ]


def test_an_answer_too_few_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        pair_samples(["x", "y"], [Reply("a", True)] * 2, [Reply("c", True)])


def test_samples_are_written_as_markdown(tmp_path: Path):
    write_samples(tmp_path / "samples.md", SAMPLES)
    assert (tmp_path / "samples.md").read_text(encoding="utf-8") == (
        "# Samples before and after training\n"
        "\n"
        "## What is water?\n"
        "\n"
        "**Base model**\n"
        "\n"
        "> water water [red] … (did not stop)\n"
        "\n"
        "**Trained model**\n"
        "\n"
        "> A liquid. ■\n"
        "\n"
        "## Two lines ↵ of prompt\n"
        "\n"
        "**Base model**\n"
        "\n"
        "> one\n"
        "> two ■\n"
        "\n"
        "**Trained model**\n"
        "\n"
        ">  ■\n"
    )


def test_samples_are_shown_side_by_side_as_they_are(capsys: pytest.CaptureFixture[str]):
    show_samples(SAMPLES)
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "What is water?" in line)
    assert row.index("What is water?") < row.index("water water [red]") < row.index("A liquid. ■")
    assert "(did not stop)" in " ".join(shown.split())


def test_other_processes_show_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PartialState, "is_main_process", False)
    show_samples(SAMPLES)
    assert capsys.readouterr().out == ""
