"""The same prompts answered before and after training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accelerate import PartialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Answer(Protocol):
    """What the table needs of a reply: its text, and whether the model ended it by itself."""

    @property
    def text(self) -> str: ...  # noqa: D102

    @property
    def stopped(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and its two answers."""

    prompt: str
    before: Answer
    after: Answer


def pair_samples(
    prompts: Sequence[str], before: Sequence[Answer], after: Sequence[Answer]
) -> list[Sample]:
    """Put the answers to the same prompts side by side."""
    return [Sample(*row) for row in zip(prompts, before, after, strict=True)]


def show_samples(samples: Sequence[Sample], before: str = "base model") -> None:
    """Print prompts with both answers side by side; ■ marks an answer that stopped by itself.

    Args:
        samples: To print.
        before: What gave the first answer.
    """
    if not samples or not PartialState().is_main_process:
        return
    table = Table(title="the same prompts before and after training", show_lines=True)
    for name in ("prompt", before, "trained model"):
        table.add_column(name, overflow="fold", ratio=1)
    for sample in samples:
        table.add_row(
            escape(sample.prompt),
            escape(_ending(sample.before)),
            escape(_ending(sample.after)),
        )
    Console().print(table)


def write_samples(path: Path, samples: Sequence[Sample], before: str = "Base model") -> None:
    """Write the answers as Markdown.

    Args:
        path: The file.
        samples: To write.
        before: What gave the first answer.
    """
    lines = ["# Samples before and after training", ""]
    for sample in samples:
        heading = sample.prompt.replace("\n", " ↵ ")
        lines += [f"## {heading}", ""]
        for title, answer in ((before, sample.before), ("Trained model", sample.after)):
            body = _ending(answer).replace("\n", "\n> ")
            lines += [f"**{title}**", "", f"> {body}", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _ending(answer: Answer) -> str:
    return f"{answer.text} ■" if answer.stopped else f"{answer.text} … (did not stop)"
