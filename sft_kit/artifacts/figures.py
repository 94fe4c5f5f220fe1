"""Curves as PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

History = Sequence[Mapping[str, float]]
Curve = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class _Panel:
    """Curves with one scale: their unit, and label -> key in the history."""

    unit: str
    keys: Mapping[str, str]


_TRAINING = {
    "loss.png": (
        _Panel("nats per supervised token", {"training": "loss", "held-out": "eval_loss"}),
    ),
    "learning_rate.png": (_Panel("learning rate", {"learning rate": "learning_rate"}),),
}
_PRETRAINING = {
    "accuracy.png": (
        _Panel(
            "share of labels that are the likeliest token",
            {
                "held-out": "eval_accuracy",
                "always the commonest token": "eval_unigram_accuracy",
                "held-out, next sentence": "eval_next_sentence_accuracy",
            },
        ),
    ),
    "perplexity.png": (_Panel("perplexity", {"held-out": "eval_perplexity"}),),
}
_PPO = {
    "score.png": (
        _Panel("score", {"training": "score_mean", "held-out": "eval_score_mean"}),
        _Panel("gold score", {"training": "gold_mean", "held-out": "eval_gold_mean"}),
    ),
    "kl.png": (
        _Panel("KL, nats per episode", {"kl": "kl"}),
        _Panel("KL coefficient", {"coefficient": "kl_coefficient"}),
    ),
    "length.png": (
        _Panel(
            "completion tokens",
            {
                "mean": "completion_length_mean",
                "10 % are shorter": "completion_length_p10",
                "10 % are longer": "completion_length_p90",
            },
        ),
        _Panel("share that stops", {"stopped": "stop_fraction"}),
    ),
}


def write_curves(folder: Path, history: History) -> list[str]:
    """Draw `loss.png` (training and held-out) and `learning_rate.png`.

    Args:
        folder: Where the files go.
        history: The Trainer's `log_history`: dicts with `step` and the figures of that moment.

    Returns:
        Names of the files written; none for figures that were never logged.
    """
    return _write(folder, history, _TRAINING, "step")


def write_pretraining_curves(folder: Path, history: History) -> list[str]:
    """Draw `accuracy.png`, `perplexity.png` and `loss_by_tokens.png`.

    Args:
        folder: Where the files go.
        history: The Trainer's `log_history`; it counts `num_input_tokens_seen` where
            `train.include_num_input_tokens_seen` says so.

    Returns:
        Names of the files written; none for figures that were never logged.
    """
    by_tokens = [
        {**entry, "step": entry["num_input_tokens_seen"]}
        for entry in history
        if "num_input_tokens_seen" in entry
    ]
    loss = {"loss_by_tokens.png": _TRAINING["loss.png"]}
    return [
        *_write(folder, history, _PRETRAINING, "step"),
        *_write(folder, by_tokens, loss, "tokens read"),
    ]


def write_ppo_curves(folder: Path, history: History) -> list[str]:
    """Draw `score.png` (with the gold score), `kl.png` (with its coefficient) and `length.png`.

    Args:
        folder: Where the files go.
        history: Dicts with `step`, which is the number of rollouts done, and the figures then.

    Returns:
        Names of the files written; none for figures that were never logged.
    """
    return _write(folder, history, _PPO, "rollout")


def _write(
    folder: Path, history: History, pictures: Mapping[str, Sequence[_Panel]], time: str
) -> list[str]:
    written = []
    for name, panels in pictures.items():
        curves = {panel.unit: _curves(history, panel.keys) for panel in panels}
        logged = {unit: lines for unit, lines in curves.items() if lines}
        if logged:
            _draw(folder / name, logged, time)
            written.append(name)
    return written


def _curves(history: History, keys: Mapping[str, str]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for label, key in keys.items():
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            curves[label] = ([step for step, _ in points], [value for _, value in points])
    return curves


def _draw(path: Path, panels: Mapping[str, Mapping[str, Curve]], time: str) -> None:
    """Draw panels below each other: unit -> label -> curve."""
    figure = Figure(figsize=(7, 4 + 2 * (len(panels) - 1)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, (unit, curves) in zip(columns[:, 0], panels.items(), strict=True):
        for label, (steps, values) in curves.items():
            marker = "o" if label.startswith("held-out") else None
            axes.plot(steps, values, label=label, marker=marker, markersize=4)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    columns[-1, 0].set_xlabel(time)
    figure.savefig(path)
