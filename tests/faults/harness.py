"""Recipes run in forked processes that die where a test says, and what is left of them.

torch and the recipes are imported once, in the parent; a trial costs a fork and a short training.
The parent itself never trains: a fork would not take its threads along.
"""

import hashlib
import importlib.util
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from ..hub_stand_in.here import png

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_GPT2 = REPOSITORY / "data" / "checkpoints" / "tiny-gpt2"
TINY_BERT = REPOSITORY / "data" / "checkpoints" / "tiny-bert-chinese"
NOT_OF_THE_RUN = ("time", "runtime", "per_second", "seconds", "memory", "train_loss")
"""Parts of the names of logged figures that no two sessions share."""
PATIENCE_SECONDS = 600
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Job:
    """A small run of a recipe.

    Attributes:
        stem: Name of the recipe.
        settings: Dotted keys and values, but the folder.
        weights: File in the run folder that holds what was trained.
    """

    stem: str
    settings: Mapping[str, object]
    weights: str = "adapter_model.safetensors"


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; minus the signal's number where one ended it.
        said: What it printed, both streams.
        seconds: Of computing, so that a busy machine moves no moment.
    """

    code: int
    said: str
    seconds: float


@dataclass
class Report:
    """What became of trials, for one line at the end."""

    trials: int = 0
    killed: int = 0
    failures: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        """Sum up."""
        whole = self.trials - len(self.failures)
        return f"{name}: {whole} of {self.trials} bit-identical ({self.killed} were killed)"


# --- jobs ----------------------------------------------------------------------------------------


def make_jobs(folder: Path) -> dict[str, Job]:
    """Write small data and describe a run of each recipe: four steps, a checkpoint every second."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "train.per_device_train_batch_size": 2,
        "train.per_device_eval_batch_size": 4,
        "train.max_steps": 4,
        "train.logging_steps": 1,
        "train.eval_strategy": "steps",
        "train.eval_steps": 2,
        "train.save_strategy": "steps",
        "train.save_steps": 2,
        "train.save_total_limit": 2,
        "train.disable_tqdm": "true",
    }
    adapter = {"model.checkpoint": TINY_GPT2, "adapter.r": 2}
    rollouts = {
        "model.checkpoint": TINY_GPT2,
        "data.path": _write_pairs(folder / "pairs.jsonl"),
        "adapter.r": 2,
        "reward.model": "null",
        "reward.normalise": "none",
        "reward.clip": "null",
        "reward.functions": json.dumps({f"{_write_rewards(folder)}:length": 1.0}),
        "ppo.sft_adapter": "null",
        "ppo.num_rollouts": 3,
        "ppo.episodes_per_rollout": 4,
        "ppo.num_minibatches": 2,
        "ppo.num_epochs": 1,
        "ppo.max_new_tokens": 6,
        "ppo.eval_rollouts": 2,
        "ppo.save_rollouts": 1,
        "train.per_device_train_batch_size": 2,
        "train.save_total_limit": 2,
        "train.disable_tqdm": "true",
        "sample.prompts": "[]",
    }
    return {
        "sft": Job(
            "sft_gpt2_lora",
            common | adapter | {"data.path": _write_chats(folder / "rows.jsonl"),
                                "model.quantization": "none", "sample.prompts": "[]"},
        ),
        "classify": Job(
            "classify_bert_chinese_lora",
            common | {"model.checkpoint": TINY_BERT, "data.path": _write_labels(folder),
                      "data.eval_fraction": 0.2, "data.max_length": 32,
                      "train.metric_for_best_model": "loss"},
        ),
        "reward": Job(
            "reward_gpt2_lora",
            common | adapter | {"data.path": _write_pairs(folder / "pairs.jsonl"),
                                "data.eval_fraction": 0.2},
        ),
        "ppo": Job("ppo_gpt2_lora", rollouts),
    }  # fmt: skip


def _write_chats(path: Path) -> Path:
    rows = [
        {"instruction": f"Question {index}:{' why' * (index % 5)}?",
         "output": f"Answer {index}{' because' * (index * index % 7)}."}
        for index in range(16)
    ]  # fmt: skip
    return _write_lines(path, rows)


def _write_pairs(path: Path) -> Path:
    rows = [
        {"prompt": f"Question {index}{' why' * (index % 4)}?", "chosen": "Yes, of course.",
         "rejected": "no " * (1 + index % 4) + "!"}
        for index in range(20)
    ]  # fmt: skip
    return _write_lines(path, rows)


def _write_labels(folder: Path) -> Path:
    draw = random.Random(5)
    lines = ["text\tlabel"]
    for index in range(24):
        words = "".join(draw.choices("天气好坏房间服务很不错", k=1 + index % 9))
        lines.append(f"{words}{index}\t{('low', 'high')[index % 3 == 0]}")
    path = folder / "rows.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_rewards(folder: Path) -> Path:
    path = folder / "rewards.py"
    path.write_text(
        "def length(completions, **_):\n    return [float(len(one)) for one in completions]\n"
    )
    return path


def _write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- processes -----------------------------------------------------------------------------------


@cache
def recipe_module(stem: str) -> ModuleType:
    """Import a recipe in this process, once."""
    path = REPOSITORY / "recipes" / f"{stem}.py"
    spec = importlib.util.spec_from_file_location(f"recipe_{stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def start(
    job: Job,
    folder: Path,
    *flags: str,
    first: Callable[[], object] | None = None,
    log: Path | None = None,
) -> int:
    """Fork a process that runs a recipe as a user would, and returns its id at once.

    Args:
        job: What to run.
        folder: Run folder.
        *flags: `--resume` and the like.
        first: Called in the new process before the recipe, to arm what will kill it.
        log: File to which goes what is printed; default: one beside the folder.
    """
    module = recipe_module(job.stem)
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        _redirect(log or log_of(folder))
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        words = [f"{key}={value}" for key, value in job.settings.items()]
        sys.argv = [str(module.__file__), *words, f"train.output_dir={folder}", *flags]
        _leave_out_what_costs_time()
        if first is not None:
            first()
        from sft_kit.command import run_recipe

        run_recipe(module.main)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return 0


def wait(child: int, log: Path, *, kill_after: float | None = None) -> Ended:
    """Wait for a process to end, and kill it after some seconds of computing if that is asked."""
    began = time.monotonic()
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            break
        if kill_after is not None and computed(child) >= kill_after:
            os.kill(child, signal.SIGKILL)
            kill_after = None
        if time.monotonic() - began > PATIENCE_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"{log}: no end after {PATIENCE_SECONDS} s")
        time.sleep(0.002)
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return Ended(os.waitstatus_to_exitcode(status), said, used.ru_utime + used.ru_stime)


def computed(process: int) -> float:
    """Seconds that a process has computed."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def run(
    job: Job,
    folder: Path,
    *flags: str,
    kill_after: float | None = None,
    first: Callable[[], object] | None = None,
    log: Path | None = None,
) -> Ended:
    """Run a recipe in a process of its own and wait for its end."""
    log = log or log_of(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    child = start(job, folder, *flags, first=first, log=log)
    return wait(child, log, kill_after=kill_after)


def _leave_out_what_costs_time() -> None:
    """Write pictures of one pixel and ask git for no commit: half of a trial."""
    from sft_kit.artifacts import figures, folder

    figures._draw = lambda path, *_: path.write_bytes(png())  # type: ignore[assignment]
    folder.source_commit = lambda _: None  # type: ignore[assignment]


def log_of(folder: Path) -> Path:
    """Where the words of a run go that are not sent elsewhere."""
    return folder.with_name(f"{folder.name}.log")


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # pytest has put its own files here, which a fork would write to.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))


# --- file events ---------------------------------------------------------------------------------


def on_file_event(folder: Path, act: Callable[[int], None]) -> None:
    """Call `act` with 1, 2, ... before every change to a file below a folder, in this process.

    What native code writes raises no event; its files are seen when Python forces them to the disk.
    """
    inside, count, fsync = str(folder), [0], os.fsync

    def happen() -> None:
        count[0] += 1
        act(count[0])

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event not in WATCHED or not str(args[0]).startswith(inside):
            return
        if event == "open" and not (int(args[2] or 0) & (os.O_WRONLY | os.O_RDWR)):  # type: ignore[call-overload]
            return
        happen()

    def watched_fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(inside):
            happen()
        fsync(descriptor)

    os.fsync = watched_fsync
    sys.addaudithook(hook)


def die_at(event: int) -> Callable[[int], None]:
    """Make what kills this process at the n-th event."""

    def act(number: int) -> None:
        if number == event:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


# --- what is left --------------------------------------------------------------------------------


def digest(folder: Path, job: Job) -> str:
    """Sha256 of the weights a run left."""
    return hashlib.sha256((folder / job.weights).read_bytes()).hexdigest()


def logged(folder: Path) -> list[dict[str, float]]:
    """The log of a run without clocks and without the summaries of sessions."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not any(n in key for n in NOT_OF_THE_RUN)}
        for line in lines
        if "train_runtime" not in line
    ]


def finish(job: Job, folder: Path, log: Path | None = None) -> Ended:
    """Do what a user does after a crash: the same command with `--resume`."""
    return run(job, folder, "--resume", log=log)


def compare(job: Job, folder: Path, straight: Path, ended: Ended) -> str:
    """Say what differs from the run that was never stopped; empty where nothing does."""
    if ended.code != 0:
        return f"{folder.name}: exit {ended.code}: {ended.said[-600:]}"
    if digest(folder, job) != digest(straight, job):
        return f"{folder.name}: other weights: {ended.said[-600:]}"
    if logged(folder) != logged(straight):
        return f"{folder.name}: another log: {logged(folder)}"
    return ""


def random_moments(count: int, seconds: float, seed: int) -> Iterator[float]:
    """Draw moments of a run: half of them anywhere, half in its second half, where it saves."""
    draw = random.Random(seed)
    for index in range(count):
        yield draw.uniform(0.0 if index % 2 else seconds / 2, seconds)
