"""No run is overwritten, none looks finished that is not, an interrupted one goes on exactly."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TIMES = ("time", "runtime", "per_second")
"""Parts of the names of logged figures that no two runs share."""


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_record(folder: Path) -> dict:
    return yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))


def timeless_log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not any(part in key for part in TIMES)}
        for line in lines
    ]


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def copied_run(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


# --- an earlier run is never lost by accident ----------------------------------------------------


def test_a_finished_run_is_neither_overwritten_nor_resumed(run_recipe, small_lora, copied_run):
    from sft_kit import CheckpointError

    before = snapshot(copied_run)
    settings = small_lora | {"train.output_dir": copied_run}
    with pytest.raises(CheckpointError, match="holds a finished run: add --overwrite"):
        run_recipe("sft_gpt2_lora", settings)
    with pytest.raises(CheckpointError, match="has finished; there is nothing to resume"):
        run_recipe("sft_gpt2_lora", settings, "--resume")
    assert snapshot(copied_run) == before


def test_overwrite_replaces_a_run_and_leaves_nothing_of_it(run_recipe, small, copied_run):
    settings = small | {"train.max_steps": 2, "train.output_dir": copied_run}
    run_recipe("sft_gpt2_loop", settings, "--overwrite")
    assert read_record(copied_run)["recipe"] == "sft_gpt2_loop.py"
    left = {path.name for path in copied_run.iterdir()}
    assert not left & {"samples.md", "checkpoint-2", "checkpoint-6"}


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
def test_a_foreign_folder_is_never_touched(run_recipe, small_lora, tmp_path, flags):
    from sft_kit import CheckpointError

    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match=r"not written by a run|has no run\.yaml"):
        run_recipe("sft_gpt2_lora", small_lora | {"train.output_dir": folder}, *flags)
    assert snapshot(folder) == before


BAD_INPUT = {
    "unknown key": ({"train.learning_rat": 1}, "did you mean 'learning_rate'"),
    "no such file": ({"data.path": "missing.jsonl"}, "there is no such file"),
    "unknown layer": ({"adapter.target_modules": "[q_proj]"}, "matches no layer"),
    "no supervised token": ({"data.max_length": 2}, "max_length"),
    "prompt beyond the context": ({"sample.prompts": f"[{'why ' * 400}]"}, "shorten it"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_leaves_no_folder_and_an_earlier_run_as_it_was(
    run_recipe, small_lora, copied_run, tmp_path, name
):
    from sft_kit import SftKitError

    changes, message = BAD_INPUT[name]
    before = snapshot(copied_run)
    with pytest.raises(SftKitError, match=message):
        run_recipe("sft_gpt2_lora", small_lora | changes | {"train.output_dir": tmp_path / "new"})
    assert not (tmp_path / "new").exists()
    settings = small_lora | changes | {"train.output_dir": copied_run}
    with pytest.raises(SftKitError, match=message):
        run_recipe("sft_gpt2_lora", settings, "--overwrite")
    assert snapshot(copied_run) == before


def test_bad_rows_leave_no_folder_and_an_earlier_run_as_it_was(
    run_recipe, small_lora, copied_run, rows_file, tmp_path
):
    from sft_kit import DataError

    bad = tmp_path / "bad.jsonl"
    lines = rows_file.read_text(encoding="utf-8").splitlines()
    bad.write_text("\n".join([*lines[:7], '{"instruction": "half a row"', *lines[7:]]))
    before = snapshot(copied_run)
    for folder, flags in ((tmp_path / "new", ()), (copied_run, ("--overwrite",))):
        settings = small_lora | {"data.path": bad, "train.output_dir": folder}
        with pytest.raises(DataError, match=r"bad\.jsonl:8"):
            run_recipe("sft_gpt2_lora", settings, *flags)
    assert not (tmp_path / "new").exists()
    assert snapshot(copied_run) == before


# --- interrupted and resumed ---------------------------------------------------------------------


def interrupt_at(step: int):
    """Press Ctrl-C when a step has ended."""

    def change(recipe):
        class Interrupt(recipe.LogFile):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == step:
                    raise KeyboardInterrupt

        recipe.LogFile = Interrupt

    return change


@pytest.fixture(scope="module")
def interrupted_run(run_recipe, small_lora, tmp_path_factory):
    """Stopped in step 5; its newest checkpoint is from step 4. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    settings = small_lora | {"train.output_dir": folder}
    with pytest.raises(KeyboardInterrupt):
        run_recipe("sft_gpt2_lora", settings, change=interrupt_at(5))
    return folder


def test_an_interrupted_run_does_not_look_finished(interrupted_run):
    from sft_kit import CheckpointError, load_run

    assert read_record(interrupted_run)["status"] == "running"
    assert not (interrupted_run / "adapter_model.safetensors").exists()
    with pytest.raises(CheckpointError, match=r"did not finish .*--resume"):
        load_run(str(interrupted_run))


def test_an_interrupted_run_needs_a_decision(run_recipe, small_lora, interrupted_run):
    from sft_kit import CheckpointError

    before = snapshot(interrupted_run)
    with pytest.raises(CheckpointError, match=r"did not finish: add --resume .* or --overwrite"):
        run_recipe("sft_gpt2_lora", small_lora | {"train.output_dir": interrupted_run})
    assert snapshot(interrupted_run) == before


def test_a_resumed_run_ends_bit_identical_to_the_straight_one(
    run_recipe, small_lora, interrupted_run, finished_run, tmp_path, capsys
):
    from sft_kit import load_run

    folder = Path(shutil.copytree(interrupted_run, tmp_path / "resumed"))
    run_recipe("sft_gpt2_lora", small_lora | {"train.output_dir": folder}, "--resume")

    assert f"resuming from {folder / 'checkpoint-4'}" in capsys.readouterr().out
    assert weights(folder) == weights(finished_run)
    resumed, straight = timeless_log(folder), timeless_log(finished_run)
    # The summary of the last session is its own; every other line is the same.
    assert [line for line in resumed if "train_loss" not in line] == [
        line for line in straight if "train_loss" not in line
    ]
    assert read_record(folder)["status"] == "finished"
    load_run(str(folder))


def test_a_run_in_bfloat16_by_our_kernels_without_padding_resumes_bit_identical_too(
    run_recipe, small_lora, tmp_path, capsys
):
    fast = small_lora | {
        "train.bf16": "true",
        "model.dtype": "bfloat16",
        "model.attention": "blocks",
        "train.train_sampling_strategy": "random",  # rows of unlike length: much padding
        "adapter.lora_dropout": 0.1,
    }
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run_recipe("sft_gpt2_lora", fast | {"train.output_dir": straight})
    assert "padding: left out where there is much" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        run_recipe("sft_gpt2_lora", fast | {"train.output_dir": resumed}, change=interrupt_at(5))
    run_recipe("sft_gpt2_lora", fast | {"train.output_dir": resumed}, "--resume")
    assert f"resuming from {resumed / 'checkpoint-4'}" in capsys.readouterr().out
    assert weights(resumed) == weights(straight)


def test_speed_of_a_resumed_run_counts_the_tokens_of_its_session(
    run_recipe, small_lora, interrupted_run, tmp_path
):
    folder = Path(shutil.copytree(interrupted_run, tmp_path / "resumed"))
    run_recipe("sft_gpt2_lora", small_lora | {"train.output_dir": folder}, "--resume")
    log = timeless_log(folder)
    tokens = {line["step"]: line["num_input_tokens_seen"] for line in log if "loss" in line}
    metrics = json.loads((folder / "metrics.json").read_text())
    session = metrics["tokens_per_second"] * metrics["train_seconds"]
    assert session == pytest.approx(tokens[6] - tokens[4], rel=1e-3)
    losses = [line["loss"] for line in log if "loss" in line]
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 6)
    assert metrics["resumed_from_step"] == 4
    assert "resumed at step 4" in (folder / "README.md").read_text()


def test_other_settings_are_refused_on_resuming_and_named(run_recipe, small_lora, interrupted_run):
    from sft_kit import CheckpointError

    before = snapshot(interrupted_run)
    changes = {"train.learning_rate": 1e-3, "adapter.r": 4, "train.output_dir": interrupted_run}
    with pytest.raises(CheckpointError) as caught:
        run_recipe("sft_gpt2_lora", small_lora | changes, "--resume")
    assert [(problem.key, problem.message) for problem in caught.value.problems] == [
        ("adapter.r", "found 4, but the run to resume had 8"),
        ("train.learning_rate", "found 0.001, but the run to resume had 0.0002"),
    ]
    assert snapshot(interrupted_run) == before


def test_other_rows_are_refused_on_resuming(
    run_recipe, small_lora, interrupted_run, rows_file, tmp_path
):
    from sft_kit import CheckpointError

    folder = Path(shutil.copytree(interrupted_run, tmp_path / "resumed"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows_file.read_text(encoding="utf-8").replace("Answer 7", "Reply 7"))
    record = read_record(folder)
    record["settings"]["data"]["path"] = str(rows)
    (folder / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    before = snapshot(folder)
    settings = small_lora | {"data.path": rows, "train.output_dir": folder}
    with pytest.raises(CheckpointError) as caught:
        run_recipe("sft_gpt2_lora", settings, "--resume")
    (problem,) = caught.value.problems
    assert problem.key == "data.fingerprint"
    assert hashlib.sha256(rows.read_bytes()).hexdigest()[:12] in problem.message
    assert record["data"]["fingerprint"][:12] in problem.message
    assert problem.message.endswith("what data.path names has changed since the run began")
    assert snapshot(folder) == before


def test_another_base_is_told_in_words_with_both_names(tmp_path):
    from sft_kit import CheckpointError
    from sft_kit.artifacts.folder import RunFolder

    before = {"name": "old", "fingerprint": "a" * 64, "config": {"n_layer": 2, "attn_pdrop": 0.1}}
    now = {"name": "new", "fingerprint": "b" * 64, "config": {"n_layer": 2, "attn_pdrop": 0.0}}
    run = RunFolder(tmp_path, None, {}, 0.0, earlier={"base": before})
    with pytest.raises(CheckpointError) as caught:
        run.begin(base=now)
    (problem,) = caught.value.problems
    assert problem.key == "base"
    assert problem.message.startswith("found 'new', but the run to resume began with 'old': the we")
    assert problem.message.endswith("its config.json has attn_pdrop=0.0 instead of 0.1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path):
    from sft_kit import CheckpointError
    from sft_kit.artifacts.folder import RunFolder

    run = RunFolder(tmp_path / ("x" * 300), None, {}, 0.0)
    with pytest.raises(CheckpointError, match=r"train\.output_dir=.*File name too long; name an"):
        run.begin()


def test_another_number_of_processes_is_refused_on_resuming(
    run_recipe, small_lora, interrupted_run, tmp_path
):
    from sft_kit import CheckpointError

    folder = Path(shutil.copytree(interrupted_run, tmp_path / "resumed"))
    record = read_record(folder)
    record["num_processes"] = 2
    (folder / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"num_processes: found 1, but .* had 2"):
        run_recipe("sft_gpt2_lora", small_lora | {"train.output_dir": folder}, "--resume")


KILLER = """
import os, runpy, signal, sys
import torch

save = torch.save

def killing_save(what, path, *args, **kwargs):
    if str(path).endswith("checkpoint-4.part/optimizer.pt"):
        os.kill(os.getpid(), signal.SIGKILL)
    save(what, path, *args, **kwargs)

torch.save = killing_save
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    run_recipe, small_lora, finished_run, tmp_path, capsys
):
    folder = tmp_path / "killed"
    # Said, since the process that is killed picks what is fastest on this machine.
    settings = small_lora | {"train.output_dir": folder, "train.bf16": False}
    recipe = str(REPOSITORY / "recipes" / "sft_gpt2_lora.py")
    words = [f"{key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, recipe, *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_record(folder)["status"] == "running"
    assert (folder / ".checkpoint-4.part" / "adapter_model.safetensors").exists()
    assert not (folder / "checkpoint-4").exists()

    run_recipe("sft_gpt2_lora", settings, "--resume")
    printed = capsys.readouterr().out
    assert "passed over" not in printed
    assert f"resuming from {folder / 'checkpoint-2'}" in printed
    assert not list(folder.glob(".*"))
    assert weights(folder) == weights(finished_run)
    assert [line for line in timeless_log(folder) if "loss" in line] == [
        line for line in timeless_log(finished_run) if "loss" in line
    ]


# --- loading refuses what is not the run ---------------------------------------------------------


def test_a_changed_adapter_is_refused(copied_run):
    from sft_kit import CheckpointError, load_run

    path = copied_run / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    saved = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError) as caught:
        load_run(str(copied_run))
    (problem,) = caught.value.problems
    assert problem.where == str(path)
    found = hashlib.sha256(bytes(data)).hexdigest()
    assert problem.message == f"has sha256 {found[:12]}, the run saved {saved[:12]}"


def test_a_missing_adapter_is_refused(copied_run):
    from sft_kit import CheckpointError, load_run

    (copied_run / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: is missing"):
        load_run(str(copied_run))


def test_another_base_is_refused_with_both_names(copied_run, checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from sft_kit import CheckpointError, load_run

    other = Path(shutil.copytree(checkpoint, tmp_path / "other-base"))
    tensors = load_file(other / "model.safetensors")
    torch.manual_seed(1)
    tensors["transformer.ln_f.bias"] += torch.rand(64)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_run(str(copied_run), base=str(other))
    assert f"found {str(other)!r}" in str(caught.value)
    assert f"trained on {str(checkpoint)!r}" in str(caught.value)

    same = shutil.copytree(checkpoint, tmp_path / "same-base")
    load_run(str(copied_run), base=str(same))


def test_a_changed_template_is_refused_with_both_fingerprints(copied_run):
    from sft_kit import CheckpointError, load_run

    path = copied_run / "chat_template.jinja"
    text = path.read_text(encoding="utf-8")
    changed = text.replace("Human: ", "User: ")
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        load_run(str(copied_run))
    for source in (text, changed):
        assert hashlib.sha256(source.encode()).hexdigest()[:12] in str(caught.value)


def test_overwrite_spares_a_run_folder_with_somebody_s_work_in_it(
    run_recipe, small, tmp_path
) -> None:
    from sft_kit import CheckpointError

    folder = tmp_path / "run"
    run_recipe("sft_gpt2_lora", small | {"train.output_dir": folder})
    (folder / "thesis.txt").write_text("three years")
    with pytest.raises(CheckpointError, match=r"thesis\.txt"):
        run_recipe("sft_gpt2_lora", small | {"train.output_dir": folder}, "--overwrite")
    assert (folder / "thesis.txt").read_text() == "three years"


@pytest.mark.parametrize("recipe", ["sft_gpt2_lora", "sft_gpt2_loop"])
def test_bf16_runs_end_with_the_weights_they_trained(run_recipe, small, tmp_path, recipe) -> None:
    import json

    folder = tmp_path / "run"
    changes = {"train.output_dir": folder, "train.bf16": "true"}
    known = small | changes
    if recipe == "sft_gpt2_loop":
        skipped = ("sample.", "train.eval", "train.save", "train.disable", "train.per_device_eval")
        known = {key: value for key, value in known.items() if not key.startswith(skipped)}
    run_recipe(recipe, known)
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["reload_max_logit_difference"] == 0
