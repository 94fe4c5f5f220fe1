"""The loop of PPO: roll out, score, update, log, keep.

The policy makes its own data, so a Trainer has nothing to iterate over. What a rollout is made of
depends on the seed and its number alone: prompts, draws, the order of the updates. A run that was
killed goes on from a checkpoint, which stands between two rollouts, with the same numbers.
"""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from tqdm.auto import tqdm
from transformers import get_scheduler

from sft_kit.data.inspection import name_places
from sft_kit.devices import peak_memory_bytes
from sft_kit.errors import NonFiniteError, SftKitError
from sft_kit.models.dropout import disable_dropout
from sft_kit.objectives.kl import adapted_kl_coefficient
from sft_kit.run_log import append_log, cut_log
from sft_kit.settings import PpoSettings
from sft_kit.stopping import StopRequest, catch_stop_signals
from sft_kit.training.out_of_memory import is_out_of_memory, rollout_out_of_memory_error
from sft_kit.training.ppo.alarms import find_alarms
from sft_kit.training.ppo.announce import rollout_line
from sft_kit.training.ppo.checkpoints import save_state
from sft_kit.training.ppo.checks import check_first_ratio, check_first_rollout, check_trained_set
from sft_kit.training.ppo.dumps import dump_rollout
from sft_kit.training.ppo.experience import Collector, Experience, collect
from sft_kit.training.ppo.held_out import evaluate_prompts
from sft_kit.training.ppo.learner import Learner
from sft_kit.training.ppo.metrics import rollout_metrics
from sft_kit.training.ppo.optimization import optimize
from sft_kit.training.ppo.order import prompt_batch
from sft_kit.training.ppo.phases import Phases
from sft_kit.training.ppo.resuming import Progress, capture_state, restore_state
from sft_kit.training.ppo.run import (
    PpoResult,
    PpoRun,
    check_request,
    make_collector,
    make_learner,
)
from sft_kit.training.ppo.samples import (
    append_samples,
    cut_samples,
    sample_rows,
    show_samples_table,
)
from sft_kit.training.stop_when_asked import agreed_signal, stopped_error

_NUM_SAMPLES = 3
_PROMISE = "finishing the rollout, then saving a checkpoint"
_COMPARED = ("score_mean", "gold_mean", "eval_score_mean", "eval_gold_mean", "stop_fraction")
"""Figures whose first value stands beside the last."""


def train_ppo(run: PpoRun) -> PpoResult:
    """Train a policy.

    Args:
        run: Its roles are trained in place.

    Raises:
        ConfigError: Settings that don't fit each other or the number of prompts.
        TrainingError: A self-check failed, a reward function did, or memory is too small.
        NonFiniteError: A rollout had no gradient that is a number.
        StoppedError: A signal came; the rollout was finished and the checkpoint saved.
        CheckpointError: The checkpoint is of another run.
    """
    check_request(run)
    put_back = [disable_dropout(role.model) for role in run.roles.all()]
    modes = [(role.model, role.model.training) for role in run.roles.all()]
    try:
        progress = Progress(run.settings.kl_coefficient)
        with catch_stop_signals(_PROMISE) as request:
            return _train(run, make_collector(run), make_learner(run), progress, request)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SftKitError) or not is_out_of_memory(error):
            raise
        number, longest = progress.num_rollouts + 1, run.settings.max_new_tokens
        raise rollout_out_of_memory_error(number, run.args, longest, str(run.folder)) from error
    finally:
        for restore in put_back:
            restore()
        for model, was_training in modes:
            model.train(was_training)


def _train(
    run: PpoRun,
    collector: Collector,
    learner: Learner,
    progress: Progress,
    request: StopRequest,
) -> PpoResult:
    settings, state = run.settings, PartialState()
    schedule = get_scheduler(
        run.args.lr_scheduler_type,
        learner.optimizer,
        settings.warmup_rollouts,
        settings.num_rollouts,
    )
    if run.checkpoint is not None:
        restore_state(Path(run.checkpoint), progress, learner, collector, schedule, run.identity)
        _cut_files(run.folder, progress.num_rollouts)
    if settings.self_checks:
        check_trained_set(run.roles)
    if not progress.num_rollouts:
        _evaluate(run, collector, progress)
        _keep_best(settings, progress, learner)
    stopped_by = None
    begun_at = saved_at = progress.num_rollouts
    hide = run.args.disable_tqdm or not state.is_main_process
    bar = tqdm(
        total=settings.num_rollouts, initial=progress.num_rollouts, disable=hide, unit="rollout"
    )
    with bar:  # closed before an error is printed
        while progress.num_rollouts < settings.num_rollouts and stopped_by is None:
            if agreed_signal(request):
                break
            before = learner.copy_policy() if settings.kl_budget is not None else []
            phases = Phases()
            experience = _roll_out(run, collector, progress, phases)
            figures = rollout_metrics(experience.rollout)
            if settings.kl_budget is not None and figures["kl"] > settings.kl_budget:
                _log(run, progress, figures | phases.metrics(), experience, ahead=1)
                stopped_by = _stop_over_budget(settings.kl_budget, figures["kl"], progress, learner)
                break
            figures |= _update(run, collector, learner, experience, phases)
            progress.kept |= {"previous": before} if before else {}
            progress.add_rollout(settings.episodes_per_rollout, int(figures["num_updates"]))
            _steer(progress, settings, figures["kl"])
            rates = schedule.get_last_lr()
            schedule.step()
            figures |= {"learning_rate": float(rates[0]), "value_learning_rate": float(rates[1])}
            figures |= phases.metrics()
            num_tokens = sum(len(one.completion_ids) for one in experience.rollout.episodes)
            figures["tokens_per_second"] = num_tokens / figures["seconds"]
            figures["peak_memory_bytes"] = float(peak_memory_bytes())
            _log(run, progress, figures, experience)
            if _is_due(progress.num_rollouts, settings.eval_rollouts, settings.num_rollouts):
                _evaluate(run, collector, progress)
                _keep_best(settings, progress, learner)
            _raise_alarms(run, progress)
            if run.on_rollout is not None:
                run.on_rollout(experience, figures)
            if _is_due(progress.num_rollouts, settings.save_rollouts, settings.num_rollouts):
                _save(run, progress, learner, collector, schedule)
                saved_at = progress.num_rollouts
            bar.set_postfix_str(rollout_line(figures))
            bar.update()
    if stopped_by is None and (number := agreed_signal(request)):
        done = progress.num_rollouts
        if saved_at != done:
            _save(run, progress, learner, collector, schedule)
        raise stopped_error(number, done, str(run.folder), num_new=done - begun_at, unit="rollout")
    return _end(settings, progress, learner, stopped_by)


def _end(
    settings: PpoSettings, progress: Progress, learner: Learner, stopped_by: str | None
) -> PpoResult:
    """Settle which policy is kept, and sum up."""
    state = PartialState()
    if stopped_by is not None:
        _say(state, stopped_by)
    kept = progress.num_rollouts - (stopped_by is not None)
    # The best one may be the very policy that was found to be over the budget.
    is_within = stopped_by is None or progress.best_rollout < progress.num_rollouts
    if settings.keep == "best" and "best" in progress.kept and is_within:
        kept = progress.best_rollout
        learner.put_policy(progress.kept["best"])
        _say(state, f"the policy after {kept} rollouts was the best and is kept")
    return PpoResult(
        progress.history,
        _summary(progress, kept),
        list(progress.alarms.values()),
        stopped_by,
        learner.ema,
    )


def _roll_out(run: PpoRun, collector: Collector, progress: Progress, phases: Phases) -> Experience:
    settings, index = run.settings, progress.num_rollouts
    chosen = prompt_batch(
        len(run.prompts), progress.num_episodes, settings.episodes_per_rollout, run.args.seed
    )
    experience = collect(collector, index, chosen, run.prompts, progress.kl_coefficient, phases)
    if settings.self_checks and index == 0:
        check_first_rollout(collector, experience)
    return experience


def _update(
    run: PpoRun,
    collector: Collector,
    learner: Learner,
    experience: Experience,
    phases: Phases,
) -> dict[str, float]:
    with phases.phase("train"):
        watched = optimize(learner, experience.rollout, experience.rows, experience.atom_of)
    if watched.num_skipped_updates and not watched.num_updates:
        places = [run.prompts[one.prompt].where for one in experience.rollout.episodes]
        raise NonFiniteError(
            f"rollout {experience.rollout.index + 1}: no update had a gradient that is a number. "
            f"Its prompts: {name_places(places)}. Look at them, lower train.learning_rate or "
            "ppo.value_learning_rate, and start anew with --overwrite; the checkpoints in the run "
            "folder are from before"
        )
    if run.settings.self_checks:
        check_first_ratio(watched.first_ratio_error, collector)
    return watched.metrics()


def _stop_over_budget(budget: float, kl: float, progress: Progress, learner: Learner) -> str:
    """Set the policy back to what it was a rollout ago, and say so."""
    if "previous" in progress.kept:
        learner.put_policy(progress.kept["previous"])
    return (
        f"kl of {kl:.3g} nats per episode is over ppo.kl_budget={budget:g}: the policy was set "
        "back to that of the rollout before"
    )


def _raise_alarms(run: PpoRun, progress: Progress) -> None:
    """Say each alarm once."""
    for alarm in find_alarms(progress.history, run.settings, run.scorer.settings.no_stop):
        if alarm.key not in progress.alarms:
            progress.alarms[alarm.key] = alarm.text
            _say(PartialState(), f"alarm: {alarm.text}")


def _steer(progress: Progress, settings: PpoSettings, kl: float) -> None:
    """Move the coefficient towards the target, after the updates."""
    if settings.kl_target is None:
        return
    progress.kl_coefficient = adapted_kl_coefficient(
        progress.kl_coefficient,
        kl,
        settings.kl_target,
        settings.episodes_per_rollout,
        settings.kl_horizon,
    )


def _evaluate(run: PpoRun, collector: Collector, progress: Progress) -> None:
    if not run.eval_prompts or not run.settings.eval_rollouts:
        return
    figures, rows = evaluate_prompts(collector, run.eval_prompts, progress.num_rollouts)
    progress.history.append({"step": progress.num_rollouts, **figures})
    if run.folder is not None and PartialState().is_main_process:
        append_log(run.folder, progress.history[-1])
        append_samples(run.folder, rows)


def _log(
    run: PpoRun,
    progress: Progress,
    figures: dict[str, float],
    experience: Experience,
    ahead: int = 0,
) -> None:
    step = progress.num_rollouts + ahead  # a rollout that is not learnt from is not counted
    progress.history.append({"step": step, **figures})
    if run.folder is None or not PartialState().is_main_process:
        return
    append_log(run.folder, progress.history[-1])
    if run.settings.dump_rollouts:
        dump_rollout(run.folder, experience.rollout)
    if run.tokenizer is None:
        return
    rows = sample_rows(experience.rollout, run.prompts, run.tokenizer, _NUM_SAMPLES)
    append_samples(run.folder, rows)
    every = run.settings.eval_rollouts or run.settings.save_rollouts
    if _is_due(progress.num_rollouts, every, run.settings.num_rollouts):
        show_samples_table(Console(stderr=True), rows)


def _save(
    run: PpoRun,
    progress: Progress,
    learner: Learner,
    collector: Collector,
    schedule: Any,  # noqa: ANN401 - torch's and transformers' schedules have no common type
) -> None:
    state = PartialState()
    if run.folder is None:
        return
    if state.is_main_process:
        kept = capture_state(progress, learner, collector, schedule, run.identity)
        save_state(run.folder, kept, keep=run.args.save_total_limit)
    state.wait_for_everyone()


def _summary(progress: Progress, num_rollouts_kept: int) -> dict[str, float]:
    """The last figures of the policy that is kept, and sums over the run."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for entry in progress.history:
        if entry["step"] > num_rollouts_kept:
            break
        first = {f"first_{name}": entry[name] for name in _COMPARED if name in entry} | first
        last |= {name: value for name, value in entry.items() if "/" not in name}
    last.pop("step", None)
    seconds = sum(entry.get("seconds", 0.0) for entry in progress.history)
    return {
        **last,
        **first,
        "num_rollouts": float(progress.num_rollouts),
        "num_rollouts_kept": float(num_rollouts_kept),
        "num_episodes": float(progress.num_episodes),
        "num_updates": float(progress.num_updates),
        "train_seconds": seconds,
    }


def _keep_best(settings: PpoSettings, progress: Progress, learner: Learner) -> None:
    """Copy the policy where the evaluation that was just made is the best so far."""
    if settings.keep != "best" or not progress.history:
        return
    score = progress.history[-1].get("eval_score_mean")
    if score is not None and (progress.best_score is None or score > progress.best_score):
        progress.best_score, progress.best_rollout = score, progress.num_rollouts
        progress.kept["best"] = learner.copy_policy()


def _cut_files(folder: Path | None, num_rollouts: int) -> None:
    if folder is not None and PartialState().is_main_process:
        cut_log(folder, num_rollouts)
        cut_samples(folder, num_rollouts)


def _is_due(num_done: int, every: int, total: int) -> bool:
    return every > 0 and (num_done % every == 0 or num_done == total)


def _say(state: PartialState, text: str) -> None:
    if state.is_main_process:
        tqdm.write(text)
