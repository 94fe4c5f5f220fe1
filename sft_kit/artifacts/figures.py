"""Curves as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def write_curves(folder: Path, history: Sequence[Mapping[str, float]]) -> list[str]:
    """Draw `loss.png` (training and held-out) and `learning_rate.png`.

    Args:
        folder: Where the files go.
        history: The Trainer's `log_history`: dicts with `step` and the figures of that moment.

    Returns:
        Names of the files written; none for figures that were never logged.
    """
    losses = {"training": _curve(history, "loss"), "held-out": _curve(history, "eval_loss")}
    written = []
    if any(steps for steps, _ in losses.values()):
        _draw(folder / "loss.png", losses, "nats per supervised token")
        written.append("loss.png")
    rates = _curve(history, "learning_rate")
    if rates[0]:
        _draw(folder / "learning_rate.png", {"learning rate": rates}, "learning rate")
        written.append("learning_rate.png")
    return written


def _curve(history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def _draw(path: Path, curves: Mapping[str, tuple[list[float], list[float]]], label: str) -> None:
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (steps, values) in curves.items():
        if steps:
            marker = "o" if name == "held-out" else None
            axes.plot(steps, values, label=name, marker=marker, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if sum(bool(steps) for steps, _ in curves.values()) > 1:
        axes.legend()
    figure.savefig(path)
