import json
from collections.abc import Callable
from pathlib import Path

from transformers import Trainer

from sft_kit.training.callbacks import LogFile, append_log, cut_log

MakeTrainer = Callable[..., Trainer]


# --- LogFile -------------------------------------------------------------------------------------


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_has_every_figure_the_trainer_logged(make_trainer: MakeTrainer):
    settings = {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    trainer = make_trainer(callbacks=(LogFile(),), **settings)
    trainer.train()
    lines = read_log(Path(trainer.args.output_dir))
    times = [line.pop("time") for line in lines]
    assert lines == trainer.state.log_history
    assert times == sorted(times)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]


def test_a_resumed_run_has_one_log_without_steps_told_twice(make_trainer: MakeTrainer):
    settings = {"logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    straight = make_trainer(callbacks=(LogFile(),), max_steps=5, **settings)
    straight.train()
    folder = Path(straight.args.output_dir)
    expected = [line["step"] for line in read_log(folder)]
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"time": 1, "st')  # as after a crash
    resumed = make_trainer(callbacks=(LogFile(),), max_steps=5, **settings)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert [line["step"] for line in read_log(folder)] == expected


def test_cutting_a_log_keeps_whole_lines_up_to_the_step(tmp_path: Path):
    for step in (1, 2, 2, 3, 4):
        append_log(tmp_path, {"step": step, "loss": 0.5})
    whole = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    cut_log(tmp_path, 3)
    assert (tmp_path / "log.jsonl").read_text() == "".join(whole[:4])
    (tmp_path / "log.jsonl").write_text("".join(whole[:2]) + whole[2][:-9])
    cut_log(tmp_path, 3)
    assert (tmp_path / "log.jsonl").read_text() == "".join(whole[:2])


def test_cutting_a_log_that_does_not_exist_does_nothing(tmp_path: Path):
    cut_log(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_cutting_a_log_drops_lines_of_the_last_step_that_the_checkpoint_does_not_know(
    tmp_path: Path,
):
    for line in ({"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}, {"step": 2, "eval_loss": 0.3}):
        append_log(tmp_path, line)
    whole = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    for num_last in (2, 1, 0):
        cut_log(tmp_path, 2, num_last)
        assert (tmp_path / "log.jsonl").read_text() == "".join(whole[: 1 + num_last])


def test_cutting_a_log_keeps_one_evaluation_of_the_base_however_often_a_run_was_resumed(
    tmp_path: Path,
):
    for line in ({"step": 0, "base_loss": 2.0}, {"step": 0, "base_loss": 2.0}):
        append_log(tmp_path, line)
    first = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)[0]
    append_log(tmp_path, {"step": 0, "eval_loss": 2.0})
    last = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)[-1]
    cut_log(tmp_path, 1)
    assert (tmp_path / "log.jsonl").read_text() == first + last
