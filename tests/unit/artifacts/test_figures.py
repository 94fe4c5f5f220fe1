import struct
from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from sft_kit.artifacts.figures import (
    write_curves,
    write_ppo_curves,
    write_pretraining_curves,
)
from sft_kit.artifacts.folder import _WRITTEN

HISTORY: list[dict[str, float]] = [
    {"step": 1, "loss": 4.0, "learning_rate": 1e-4},
    {"step": 2, "eval_loss": 3.5, "eval_perplexity": 33.1},
    {"step": 3, "loss": 3.0, "learning_rate": 5e-5},
    {"step": 4, "loss": 2.5, "learning_rate": 0.0},
    {"step": 4, "eval_loss": 2.75},
    {"step": 4, "train_loss": 3.2, "train_runtime": 1.0},
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures by file name, as they were when they were saved."""
    figures: dict[str, Figure] = {}
    save = Figure.savefig

    def keep(self: Figure, path: Path, **options: object) -> None:
        figures[path.name] = self
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def curves(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    (axes,) = figure.axes
    return {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in axes.lines}


def test_every_logged_figure_is_a_point_of_its_curve(tmp_path: Path, drawn: dict[str, Figure]):
    assert write_curves(tmp_path, HISTORY) == ["loss.png", "learning_rate.png"]
    assert curves(drawn["loss.png"]) == {
        "training": [(1, 4.0), (3, 3.0), (4, 2.5)],
        "held-out": [(2, 3.5), (4, 2.75)],
    }
    assert curves(drawn["learning_rate.png"]) == {"learning rate": [(1, 1e-4), (3, 5e-5), (4, 0.0)]}


def test_axes_and_curves_are_labelled(tmp_path: Path, drawn: dict[str, Figure]):
    write_curves(tmp_path, HISTORY)
    axes = drawn["loss.png"].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "nats per supervised token")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "held-out"]
    assert drawn["learning_rate.png"].axes[0].get_legend() is None


def test_the_files_are_png_pictures_with_something_on_them(tmp_path: Path):
    for name in write_curves(tmp_path, HISTORY):
        data = (tmp_path / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (840, 480)
        picture = matplotlib.image.imread(tmp_path / name)[..., :3]
        coloured = (picture.max(axis=-1) - picture.min(axis=-1)) > 0.3
        assert coloured.sum() > 300


def test_figures_that_were_never_logged_are_not_drawn(tmp_path: Path):
    assert write_curves(tmp_path, [{"step": 1, "train_runtime": 1.0}]) == []
    assert write_curves(tmp_path, []) == []
    assert list(tmp_path.iterdir()) == []
    assert write_curves(tmp_path, [{"step": 1, "eval_loss": 2.0}]) == ["loss.png"]


def test_a_loss_that_is_no_number_is_no_error(tmp_path: Path):
    history = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}]
    assert write_curves(tmp_path, history) == ["loss.png"]


# --- pretraining ---------------------------------------------------------------------------------

PRETRAINING_HISTORY: list[dict[str, float]] = [
    {"step": 1, "loss": 4.0, "num_input_tokens_seen": 100},
    {
        "step": 2, "eval_loss": 3.5, "eval_accuracy": 0.25, "eval_perplexity": 33.0,
        "num_input_tokens_seen": 230,
    },
    {"step": 3, "loss": 3.0, "num_input_tokens_seen": 300},
    {
        "step": 4, "eval_loss": 2.5, "eval_accuracy": 0.5, "eval_perplexity": 12.0,
        "eval_next_sentence_accuracy": 0.75, "eval_unigram_accuracy": 0.125,
        "num_input_tokens_seen": 450,
    },
]  # fmt: skip


def test_the_loss_of_a_pretraining_is_drawn_against_tokens(
    tmp_path: Path, drawn: dict[str, Figure]
):
    names = write_pretraining_curves(tmp_path, PRETRAINING_HISTORY)
    assert names == ["accuracy.png", "perplexity.png", "loss_by_tokens.png"]
    assert all(_WRITTEN.fullmatch(name) for name in names)
    assert curves(drawn["loss_by_tokens.png"]) == {
        "training": [(100, 4.0), (300, 3.0)],
        "held-out": [(230, 3.5), (450, 2.5)],
    }
    assert drawn["loss_by_tokens.png"].axes[0].get_xlabel() == "tokens read"
    assert curves(drawn["perplexity.png"]) == {"held-out": [(2, 33.0), (4, 12.0)]}
    assert curves(drawn["accuracy.png"]) == {
        "held-out": [(2, 0.25), (4, 0.5)],
        "always the commonest token": [(4, 0.125)],
        "held-out, next sentence": [(4, 0.75)],
    }


def test_without_a_count_of_tokens_there_is_no_curve_of_them(tmp_path: Path):
    assert write_pretraining_curves(tmp_path, HISTORY) == ["perplexity.png"]
    assert write_pretraining_curves(tmp_path, []) == []


# --- PPO -----------------------------------------------------------------------------------------

PPO_HISTORY: list[dict[str, float]] = [
    {
        "step": step, "score_mean": step / 10, "gold_mean": -step / 10, "kl": step / 2,
        "kl_coefficient": 0.05, "completion_length_mean": 20.0, "completion_length_p10": 5.0,
        "completion_length_p90": 40.0, "stop_fraction": 0.5,
    }
    for step in (1, 2, 3)
] + [{"step": 2, "eval_score_mean": 0.4}]  # fmt: skip


def panels(figure: Figure) -> dict[str, dict[str, list[tuple[float, float]]]]:
    return {
        axes.get_ylabel(): {
            line.get_label(): [tuple(point) for point in line.get_xydata()] for line in axes.lines
        }
        for axes in figure.axes
    }


def test_scores_kl_and_lengths_of_ppo_are_drawn(tmp_path: Path, drawn: dict[str, Figure]):
    assert write_ppo_curves(tmp_path, PPO_HISTORY) == ["score.png", "kl.png", "length.png"]
    assert panels(drawn["score.png"]) == {
        "score": {"training": [(1, 0.1), (2, 0.2), (3, 0.3)], "held-out": [(2, 0.4)]},
        "gold score": {"training": [(1, -0.1), (2, -0.2), (3, -0.3)]},
    }
    assert panels(drawn["kl.png"]) == {
        "KL, nats per episode": {"kl": [(1, 0.5), (2, 1.0), (3, 1.5)]},
        "KL coefficient": {"coefficient": [(1, 0.05), (2, 0.05), (3, 0.05)]},
    }
    lengths, stops = panels(drawn["length.png"]).values()
    assert [points[0][1] for points in lengths.values()] == [20.0, 5.0, 40.0]
    assert stops == {"stopped": [(1, 0.5), (2, 0.5), (3, 0.5)]}
    assert [axes.get_xlabel() for axes in drawn["kl.png"].axes] == ["", "rollout"]


def test_a_panel_without_figures_is_left_out(tmp_path: Path, drawn: dict[str, Figure]):
    assert write_ppo_curves(tmp_path, [{"step": 1, "score_mean": 1.0}]) == ["score.png"]
    assert list(panels(drawn["score.png"])) == ["score"]
    assert write_ppo_curves(tmp_path, HISTORY) == []
    assert write_curves(tmp_path, PPO_HISTORY) == []
