"""The run folder before and during training: never an earlier run overwritten by accident."""

import re
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from accelerate import PartialState

from sft_kit.artifacts.checkpoints import newest_checkpoint
from sft_kit.artifacts.record import (
    RUN_FILE,
    installed_versions,
    read_record,
    source_commit,
    write_record,
)
from sft_kit.config import Config, Resolved
from sft_kit.config.places import why_not_writable
from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.run_log import LOG_FILE

_MAY_CHANGE = {
    "train.output_dir",
    "train.max_steps",
    "train.num_train_epochs",
    "train.save_total_limit",
    "train.disable_tqdm",
    "train.report_to",
    "train.run_name",
    "ppo.num_rollouts",
    "ppo.save_rollouts",
    "ppo.eval_rollouts",
    "ppo.dump_rollouts",
    "reward.model",
    "ppo.sft_adapter",
}
"""Settings that may differ when a run is resumed: none of them changes the steps already done.

Other runs may have moved; their weights are known by digest."""
_WHAT_CHANGED = {
    ("data", "fingerprint"): "what data.path names has changed since the run began",
    ("data", "eval_fingerprint"): "what data.eval_path names has changed since the run began",
    ("base", "fingerprint"): "model.checkpoint has other weights than when the run began",
}
_WRITTEN = re.compile(
    r"checkpoint-\d+|\.checkpoint-\d+\.(part|old)|\.staging|runs|run\.yaml|\.run\.yaml\.part|log\.jsonl|metrics\.json|"
    r"samples\.md|README\.md|(loss|learning_rate|confusion|margins)\.png|(adapter_|generation_)?config\.json|"
    r"(loss_by_tokens|accuracy|perplexity)\.png|evaluation(\.json|\.md)?|value|reward|ema|rollouts|ppo_samples\.jsonl|(score|kl|length)\.png|"
    r"(adapter_)?model.*\.(safetensors|json)|.*token.*|chat_template\.jinja|vocab\.\w+|merges\.txt"
)
"""Names in a run folder; one with any other name may hold somebody's work."""
_MUST_MATCH = (
    ("data", "fingerprint"),
    ("data", "eval_fingerprint"),
    ("template", "sha256"),
    ("labels", "names"),
    ("base", "fingerprint"),
)
"""Facts that must be the same when a run is resumed, whatever the settings call them."""
_MAY_CHANGE_PREFIXES = ("train.logging_", "train.save_", "train.eval_", "sample.")


@dataclass(slots=True)
class RunFolder:
    """An output folder that this run may write to.

    Attributes:
        path: The folder.
        checkpoint: Checkpoint folder to resume from; None starts at step 0.
        record: What `run.yaml` will say.
        started: Seconds since 1970.
        overwrite: Delete the run that is there.
        earlier: `run.yaml` of the run to resume.
    """

    path: Path
    checkpoint: str | None
    record: dict[str, object]
    started: float
    overwrite: bool = False
    earlier: Mapping[str, object] = field(default_factory=dict)

    def begin(self, **facts: Mapping[str, object]) -> None:
        """Claim the folder: empty it if that was asked for, and write that a run is under way.

        Args:
            **facts: What is known before step 1, by subject; goes into `run.yaml`.

        Raises:
            CheckpointError: The run to resume had other rows, another template or another base.
        """
        _check_same_facts(self.path, self.earlier, facts)
        if PartialState().is_main_process:
            if self.overwrite and self.path.is_dir():
                shutil.rmtree(self.path.resolve())
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"train.output_dir={self.path} can't be made: {error.strerror}; name another "
                    "folder"
                ) from error
            if self.checkpoint is None:
                (self.path / LOG_FILE).unlink(missing_ok=True)
            self.record.update(facts)
            write_record(self.path, self.record)
        PartialState().wait_for_everyone()

    def announce_end(self, metrics: Mapping[str, float]) -> None:
        """Print the figures and name the folder."""
        for name, value in metrics.items():
            PartialState().print(f"{name}: {value:,.4g}")
        PartialState().print(f"run folder: {self.path}")
        path = shlex.quote(str(self.path))
        if "labels" in self.record:
            PartialState().print(f"classify with it: sft-kit classify {path} --text TEXT")
        if "reward_model" in self.record:
            PartialState().print(f"score with it: sft-kit score {path} --data FILE")
        elif "pretraining" in self.record:
            PartialState().print(f"use it: sft-kit generate {path} --prompt TEXT")
        elif "template" in self.record:
            PartialState().print(f"talk to it: sft-kit chat {path}")


def open_run(config: Config[object]) -> RunFolder:
    """Check that the output folder may be used; nothing is written yet.

    A folder with anything in it needs `--resume` (same settings, goes on from the newest complete
    checkpoint) or `--overwrite` (only ever deletes folders that a run has written).

    Raises:
        CheckpointError: What stands there, and the two ways on.
    """
    sections = config.resolved.sections
    output_dir = (sections["train"] or {}).get("output_dir")
    if not output_dir:
        raise ConfigError("train.output_dir is not set: name the folder that the run is written to")
    path = Path(str(output_dir))
    is_used = path.exists() and (not path.is_dir() or any(path.iterdir()))
    checkpoint = None
    earlier: dict[str, object] = {}
    if is_used and config.resume:
        earlier = _unfinished(path)
        _check_same_settings(path, earlier, config.resolved)
        checkpoint = _checkpoint_in(path)
    elif is_used and config.overwrite:
        _check_deletable(path)
    elif is_used:
        raise CheckpointError(_what_stands_in(path))
    PartialState().wait_for_everyone()  # a trial in the folder would make it look used
    if PartialState().is_main_process and (reason := why_not_writable(path)):
        raise CheckpointError(f"train.output_dir={path} can't be written: {reason}")
    record: dict[str, object] = {
        "status": "running",
        "recipe": config.resolved.recipe.name,
        "settings": sections,
        "origins": config.resolved.origins,
        "notes": list(config.notes),
        "versions": installed_versions(),
        "commit": source_commit(config.resolved.recipe.resolve().parent),
        "num_processes": PartialState().num_processes,
    }
    PartialState().wait_for_everyone()
    overwrite = config.overwrite and is_used
    return RunFolder(path, checkpoint, record, time.time(), overwrite, earlier)


def _unfinished(path: Path) -> dict[str, object]:
    record = read_record(path)
    if record["status"] == "finished":
        raise CheckpointError(
            f"the run in {path} has finished; there is nothing to resume. Set another "
            "train.output_dir, or add --overwrite to replace it"
        )
    return record


def _checkpoint_in(path: Path) -> str | None:
    checkpoint, skipped = newest_checkpoint(path)
    where = checkpoint or "step 0, since no complete checkpoint is there"
    for line in [*skipped, f"resuming from {where}"]:
        PartialState().print(line)
    return str(checkpoint) if checkpoint else None


def _check_same_settings(path: Path, earlier: Mapping[str, object], resolved: Resolved) -> None:
    before = cast("dict[str, object]", earlier["settings"])
    problems: list[Problem] = []
    num_processes = PartialState().num_processes
    if earlier.get("num_processes", num_processes) != num_processes:
        message = f"found {num_processes}, but the run to resume had {earlier['num_processes']}"
        problems.append(Problem("launcher", "num_processes", message))
    recipe = resolved.recipe.name
    if earlier.get("recipe", recipe) != recipe:
        message = f"found {recipe}, but the run to resume was of {earlier['recipe']}"
        problems.append(Problem("command line", "recipe", message))
    for section, now in resolved.sections.items():
        old = cast("Mapping[str, object]", before.get(section) or {})
        for key, value in (now or {}).items():
            name = f"{section}.{key}"
            free = name in _MAY_CHANGE or name.startswith(_MAY_CHANGE_PREFIXES)
            if not free and key in old and old[key] != value:
                origin = resolved.origins.get(name, "")
                message = f"found {value!r}, but the run to resume had {old[key]!r}"
                problems.append(Problem(origin, name, message))
    if problems:
        raise CheckpointError(
            f"the run in {path} can't be resumed with other settings: put them back, or start "
            "anew with --overwrite or another train.output_dir",
            problems,
        )


def _check_same_facts(
    path: Path, earlier: Mapping[str, object], facts: Mapping[str, Mapping[str, object]]
) -> None:
    problems: list[Problem] = []
    for subject, key in _MUST_MATCH:
        old = cast("Mapping[str, object]", earlier.get(subject) or {}).get(key)
        new = facts.get(subject, {}).get(key)
        if old is not None and old != new:
            message = f"found {_shortened(new)}, but the run to resume had {_shortened(old)}"
            if (subject, key) in _WHAT_CHANGED:
                message += f": {_WHAT_CHANGED[subject, key]}"
            problems.append(Problem(str(path / RUN_FILE), f"{subject}.{key}", message))
    if problems:
        raise CheckpointError(
            f"the run in {path} can't be resumed: what it was trained on has changed. Bring it "
            "back, or start anew with --overwrite or another train.output_dir",
            problems,
        )


def _shortened(fact: object) -> str:
    """A fingerprint's beginning tells it apart; names are written out."""
    return fact[:12] if isinstance(fact, str) else str(fact)


def _check_deletable(path: Path) -> None:
    if not path.is_dir() or not (path / RUN_FILE).is_file():
        raise CheckpointError(
            f"{path} was not written by a run (it has no run.yaml), so --overwrite does not "
            "delete it. Set another train.output_dir"
        )
    read_record(path)
    foreign = sorted(item.name for item in path.iterdir() if not _WRITTEN.fullmatch(item.name))
    if foreign:
        raise CheckpointError(
            f"{path} holds what no run writes ({', '.join(foreign[:5])}), so --overwrite does not "
            "delete it. Move that away, or set another train.output_dir"
        )


def _what_stands_in(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is a file; set train.output_dir to a folder"
    if not (path / RUN_FILE).is_file():
        return f"{path} is not empty and was not written by a run; set another train.output_dir"
    status = read_record(path)["status"]
    what = "a finished run" if status == "finished" else "a run that did not finish"
    ways = (
        "add --overwrite to replace it"
        if status == "finished"
        else "add --resume to go on with it, or --overwrite to start anew"
    )
    return f"{path} holds {what}: {ways}, or set another train.output_dir=..."
