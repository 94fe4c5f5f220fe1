"""A few rollouts of PPO instead of all, and what they cost."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from sft_kit.data.preference.rows import Prompt
from sft_kit.disk import folder_bytes
from sft_kit.plan.recorder import Recorder
from sft_kit.training.ppo.experience import Experience
from sft_kit.training.ppo.loop import train_ppo
from sft_kit.training.ppo.run import PpoResult, PpoRun

_MEASURED_SECONDS = 6.0
_MIN_ROLLOUTS = 2
_MAX_ROLLOUTS = 6


def measure_ppo(recorder: Recorder, run: PpoRun) -> PpoResult:
    """Go through one rollout of the longest prompts, a few ordinary ones, and one with all.

    Args:
        recorder: Takes the figures.
        run: As for `train_ppo`; its policy learns a little.

    Returns:
        The result of the last rollout.
    """
    recorder.phase("started")
    settings = run.settings
    recorder.write(
        "rollouts",
        num_rollouts=settings.num_rollouts,
        episodes=settings.episodes_per_rollout,
        prompt_lengths=[len(one.input_ids) for one in run.prompts],
        num_evaluations=_num_due(settings.eval_rollouts, settings.num_rollouts) + 1
        if run.eval_prompts and settings.eval_rollouts
        else 0,
        num_checkpoints=_num_due(settings.save_rollouts, settings.num_rollouts),
        kept_checkpoints=run.args.save_total_limit,
        micro_batch=run.args.per_device_train_batch_size,
        num_processes=PartialState().num_processes,
    )
    by_length = sorted(run.prompts, key=lambda one: -len(one.input_ids))
    longest = by_length[: settings.episodes_per_rollout]
    with recorder.part() as part:
        train_ppo(_shortened(run, longest, num_rollouts=1))
    recorder.write("widest_rollout", part)
    began = time.perf_counter(), time.process_time()
    num_rollouts = max(_MIN_ROLLOUTS, min(_MAX_ROLLOUTS, int(_MEASURED_SECONDS / part.seconds)))

    def note(experience: Experience, figures: dict[str, float]) -> None:
        nonlocal began
        drawn = sum(len(one.completion_ids) for one in experience.rollout.episodes)
        ended = time.perf_counter(), time.process_time()
        host, device = recorder.peaks()
        recorder.write(
            "rollout",
            seconds=figures["seconds"],
            cpu_seconds=ended[1] - began[1],
            host_bytes=host,
            device_bytes=device,
            drawn=drawn,
        )
        began = ended

    ordinary = _shortened(run, run.prompts, num_rollouts=num_rollouts)
    train_ppo(replace(ordinary, on_rollout=note))
    return _with_evaluation(recorder, run)


def _with_evaluation(recorder: Recorder, run: PpoRun) -> PpoResult:
    """Measure what stands around a rollout: two evaluations, and a checkpoint."""
    began = time.perf_counter(), time.process_time()
    reached = began
    in_rollout = 0.0

    def note(_: Experience, figures: dict[str, float]) -> None:
        nonlocal reached, in_rollout
        reached, in_rollout = (time.perf_counter(), time.process_time()), figures["seconds"]

    evals = min(run.settings.eval_rollouts, 1)
    short = _shortened(run, run.prompts, num_rollouts=1, eval_rollouts=evals, save_rollouts=1)
    short = replace(short, on_rollout=note)
    with recorder.part() as part:
        result = train_ppo(replace(short, folder=run.folder))
    ended = time.perf_counter(), time.process_time()
    share = 1 - in_rollout / max(reached[0] - began[0], in_rollout)
    recorder.write(
        "evaluation",
        seconds=(reached[0] - began[0]) * share / 2,
        cpu_seconds=(reached[1] - began[1]) * share / 2,
        host_bytes=part.host_bytes,
        device_bytes=part.device_bytes,
        rows_per_measured=1.0,
    )
    written = [] if run.folder is None else list(Path(run.folder).glob("checkpoint-*"))
    recorder.write(
        "checkpoint",
        seconds=ended[0] - reached[0],
        cpu_seconds=ended[1] - reached[1],
        bytes=sum(map(folder_bytes, written)),
    )
    for folder in written:
        shutil.rmtree(folder)
    recorder.phase("trained")
    return result


def _shortened(
    run: PpoRun,
    prompts: Sequence[Prompt],
    *,
    num_rollouts: int,
    eval_rollouts: int = 0,
    save_rollouts: int = 0,
) -> PpoRun:
    """The same run, but for its length, what it writes, and the checks of an untrained policy."""
    settings = replace(
        run.settings,
        num_rollouts=num_rollouts,
        eval_rollouts=eval_rollouts,
        save_rollouts=save_rollouts,
        self_checks=False,
    )
    return replace(run, prompts=prompts, settings=settings, folder=None)


def _num_due(every: int, total: int) -> int:
    """Count what is done every so many rollouts and after the last."""
    return 0 if every <= 0 else -(-total // every)
