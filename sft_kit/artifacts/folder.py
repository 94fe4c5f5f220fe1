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
from accelerate.utils import broadcast_object_list

from sft_kit.artifacts.publishing import check_push, push_finished
from sft_kit.artifacts.same_run import check_same_facts, check_same_settings
from sft_kit.checkpoints import newest_checkpoint
from sft_kit.config import Config
from sft_kit.config.places import TRIAL_PREFIX, why_not_writable
from sft_kit.disk import telling_full_disk
from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.run_log import LOG_FILE
from sft_kit.run_record import (
    RUN_FILE,
    installed_versions,
    new_run_id,
    read_record,
    source_commit,
    write_record,
)

_WRITTEN = re.compile(
    r"checkpoint-\d+|\.checkpoint-\d+\.(part|old|gone)|\.staging|runs|run\.yaml|\.run\.yaml\.part|\.sft-kit-.*|\.?log\.jsonl(\.part)?|metrics\.json|"
    r"samples\.md|README\.md|(loss|learning_rate|confusion|margins)\.png|(adapter_|generation_)?config\.json|"
    r"(loss_by_tokens|accuracy|perplexity)\.png|evaluation(\.json|\.md)?|value|reward|ema|rollouts|ppo_samples\.jsonl|(score|kl|length)\.png|"
    r"(adapter_)?model.*\.(safetensors|json)|.*token.*|chat_template\.jinja|vocab\.\w+|merges\.txt"
)
"""Names in a run folder; one with any other name may hold somebody's work."""
_BEGINNING = re.compile(rf"\.run\.yaml\.part|{re.escape(TRIAL_PREFIX)}.*")
"""Names that stand there before `run.yaml` does."""


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
        check_same_facts(self.path, self.earlier, facts)
        if PartialState().is_main_process:
            if self.overwrite and self.path.is_dir():
                _empty(self.path)
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
            with telling_full_disk(self.path, RUN_FILE):
                write_record(self.path, self.record)
        PartialState().wait_for_everyone()

    def announce_end(self, metrics: Mapping[str, float]) -> None:
        """Print the figures, name the folder, and push it where the settings say so.

        Raises:
            HubError: It was not pushed; the run is finished all the same.
        """
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
        if PartialState().is_main_process:
            push_finished(self.path, _train_section(self.record), print)


def open_run(config: Config[object]) -> RunFolder:
    """Check that the output folder may be used; nothing is written yet.

    A folder with anything in it needs `--resume` (same settings, goes on from the newest complete
    checkpoint) or `--overwrite` (only ever deletes folders that a run has written).

    Raises:
        CheckpointError: What stands there, and the two ways on.
        HubError: It shall be pushed, and nobody is logged in who may do that.
    """
    sections = config.resolved.sections
    output_dir = (sections["train"] or {}).get("output_dir")
    if not output_dir:
        raise ConfigError("train.output_dir is not set: name the folder that the run is written to")
    path = Path(str(output_dir))
    is_used = _is_used(path)
    checkpoint = None
    earlier: dict[str, object] = {}
    if is_used and config.resume:
        earlier = _unfinished(path)
        processes = PartialState().num_processes
        for note in check_same_settings(path, earlier, config.resolved, processes):
            PartialState().print(note)
        checkpoint = _checkpoint_in(path, str(earlier.get("run_id") or ""))
    elif is_used and config.overwrite:
        _check_deletable(path)
    elif is_used:
        raise CheckpointError(_what_stands_in(path))
    elif config.resume:
        PartialState().print(f"nothing to resume in {path}: starting at step 0")
    PartialState().wait_for_everyone()  # a trial in the folder would make it look used
    if PartialState().is_main_process:
        check_push(sections["train"] or {})
    if PartialState().is_main_process and (reason := why_not_writable(path)):
        raise CheckpointError(f"train.output_dir={path} can't be written: {reason}")
    record: dict[str, object] = {
        "status": "running",
        "run_id": earlier.get("run_id") or new_run_id(),
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


def _train_section(record: Mapping[str, object]) -> Mapping[str, object]:
    settings = cast("Mapping[str, Mapping[str, object] | None]", record.get("settings") or {})
    return settings.get("train") or {}


def _is_used(path: Path) -> bool:
    """Whether anything stands there but what a run leaves that is killed while it begins."""
    if not path.is_dir():
        return path.exists()
    return any(not _BEGINNING.fullmatch(item.name) for item in path.iterdir())


def _empty(folder: Path) -> None:
    """Delete the run in a folder, its record last: half done it can be done again."""
    items = sorted(folder.iterdir(), key=lambda item: item.name == RUN_FILE)
    for item in items:
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def _unfinished(path: Path) -> dict[str, object]:
    record = read_record(path)
    if record["status"] == "finished":
        raise CheckpointError(
            f"the run in {path} has finished; there is nothing to resume. Set another "
            "train.output_dir, or add --overwrite to replace it"
        )
    return record


def _checkpoint_in(path: Path, run: str) -> str | None:
    """Choose the checkpoint to go on from; the main process reads for all."""
    found: list[str | None] = [None]
    if PartialState().is_main_process:
        checkpoint, skipped = newest_checkpoint(path, run)
        found = [str(checkpoint) if checkpoint else None]
        where = checkpoint or "step 0, since no complete checkpoint is there"
        for line in [*skipped, f"resuming from {where}"]:
            PartialState().print(line)
    if PartialState().use_distributed:
        broadcast_object_list(found)
    return found[0]


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
