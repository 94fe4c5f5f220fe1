"""Small runs of PPO with a random GPT-2, in this process or in new ones.

    python -m tests.equivalence.ppo_runs SMALL_RUN_AS_JSON

Completions end early or late by chance, prompts have one to seven tokens, and the policy is far
from uniform, so that no two figures are equal by accident.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from sft_kit.checkpoints import newest_checkpoint
from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import Example, Where
from sft_kit.models.role_adapters import adapter_roles, whole_model_roles
from sft_kit.models.roles import Roles
from sft_kit.settings import PpoSettings, PtxSettings, ScoreSettings
from sft_kit.training.ppo.experience import Experience
from sft_kit.training.ppo.loop import train_ppo
from sft_kit.training.ppo.run import PpoResult, PpoRun
from sft_kit.training.ppo.scores import Scorer

VOCABULARY, STOPS = 16, (2, 3)
WANTED = frozenset({4, 7, 9, 11})
RANKS = "RANK", "WORLD_SIZE", "LOCAL_RANK"
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 180
CHANGES_FILES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


@dataclass(frozen=True)
class SmallRun:
    """A run of PPO, described by what JSON can hold.

    Attributes:
        folder: Its log, its checkpoints and what it tells about itself go there.
        num_prompts: In the data.
        value: As in the settings; "adapter" makes the policy an adapter too, else it is whole.
        is_dense: Score per token as well.
        ptx_coefficient: 0 is without language.
        seed: Of weights and training.
        ppo: Changes of the settings.
        reward: Changes of the settings.
        args: Changes of the training arguments.
        resume: Go on from the newest checkpoint, if there is one.
        kill_in_rollout: Kill this process by force when so many rollouts are done, before saving.
        kill_at_file: The same when it is about to open, rename or delete its n-th file.
        kill_after_seconds: The same after some time.
    """

    folder: str
    num_prompts: int = 5
    value: str = "adapter"
    is_dense: bool = False
    ptx_coefficient: float = 0.0
    seed: int = 0
    ppo: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    kill_in_rollout: int | None = None
    kill_at_file: int | None = None
    kill_after_seconds: float | None = None

    def but(self, **changes: Any) -> "SmallRun":
        """Return the same run with changes; those of a section are added to it."""
        merged = {
            name: {**getattr(self, name), **value} if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        return replace(self, **merged)


def random_gpt2(seed: int) -> GPT2LMHeadModel:
    """Make a GPT-2 of two small layers whose weights are large."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def lora() -> LoraConfig:
    """Describe a LoRA on the attention."""
    return LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )


def make_roles(small: SmallRun) -> Roles:
    """Make policy, reference policy and values."""
    base = random_gpt2(small.seed)
    if small.value == "adapter":
        return adapter_roles(base, lora(), "adapter")
    return whole_model_roles(base, small.value)


def make_prompts(count: int) -> list[Prompt]:
    """Make prompts of one to seven tokens."""
    draw = torch.Generator().manual_seed(11)
    prompts = []
    for index in range(count):
        length = 1 + index * 5 % 7
        ids = torch.randint(4, VOCABULARY, (length,), generator=draw).tolist()
        where = Where("prompts", index + 1)
        prompts.append(Prompt(tuple(ids), (), " ".join(map(str, ids)), {"bonus": index}, where))
    return prompts


def score(completion_ids: list[list[int]], bonus: list[int], **_: object) -> list[float]:
    """Like some tokens, an end, and some prompts better than others."""
    return [
        sum(token in WANTED for token in ids) / 4 + 0.5 * (ids[-1] in STOPS) + 0.1 * more
        for ids, more in zip(completion_ids, bonus, strict=True)
    ]


def dense_score(completion_ids: list[list[int]], **_: object) -> list[list[float]]:
    """Dislike high token ids, token by token."""
    return [[-token / 50 for token in ids] for ids in completion_ids]


def make_run(small: SmallRun) -> PpoRun:
    """Build a run: eight episodes, two epochs of two updates, two checkpoints at most."""
    folder = Path(small.folder)
    folder.mkdir(parents=True, exist_ok=True)
    functions: dict[str, Any] = {"score": score}
    if small.is_dense:
        functions["dense"] = dense_score
    reward = {"functions": dict.fromkeys(functions, 1.0), **small.reward}
    ppo = {
        "num_rollouts": 5, "episodes_per_rollout": 8, "num_epochs": 2, "num_minibatches": 2,
        "max_new_tokens": 9, "kl_coefficient": 0.1, "value": small.value, "eval_rollouts": 0,
        "save_rollouts": 1, "value_learning_rate": 3e-3, **small.ppo,
    }  # fmt: skip
    args = {
        "output_dir": "unused", "learning_rate": 3e-3, "lr_scheduler_type": "linear", "seed": 5,
        "per_device_train_batch_size": 2, "adam_epsilon": 1e-5, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_total_limit": 2, **small.args,
    }  # fmt: skip
    newest = newest_checkpoint(folder)[0] if small.resume else None
    return PpoRun(
        make_roles(small),
        make_prompts(small.num_prompts),
        Scorer(ScoreSettings(**reward), functions),
        PpoSettings(**ppo),
        TrainingArguments(**args),
        STOPS,
        eval_prompts=make_prompts(3) if ppo["eval_rollouts"] else (),
        ptx=PtxSettings(coefficient=small.ptx_coefficient, path="-", batch_size=5),
        ptx_rows=language() if small.ptx_coefficient else (),
        folder=folder,
        checkpoint=None if newest is None else str(newest),
    )


def language() -> list[Example]:
    """Make rows of language; their lengths differ, and not all tokens are learnt."""
    draw = torch.Generator().manual_seed(13)
    rows = []
    for index in range(7):
        ids = torch.randint(0, VOCABULARY, (3 + 2 * index,), generator=draw).tolist()
        rows.append(Example(ids, [-100, -100, *ids[2:]], False, Where("language", index + 1)))
    return rows


def execute(small: SmallRun) -> PpoResult:
    """Train, and note on every rank what happened."""
    run = make_run(small)
    num_steps = 0
    seen: list[dict[str, Any]] = []

    def count(optimizer: Optimizer, *_: Any) -> None:
        nonlocal num_steps
        num_steps += 1

    def note(experience: Experience, figures: dict[str, float]) -> None:
        episodes = experience.rollout.episodes
        seen.append(
            {
                "index": experience.rollout.index,
                "prompts": [episode.prompt for episode in episodes],
                "completions": [list(episode.completion_ids) for episode in episodes],
                "num_updates": figures["num_updates"],
            }
        )
        if experience.rollout.index + 1 == small.kill_in_rollout:
            os.kill(os.getpid(), signal.SIGKILL)

    run.on_rollout = note
    if small.kill_at_file is not None:
        die_at_file(small.kill_at_file)
    if small.kill_after_seconds is not None:
        # Without a handler the kernel ends the process on the spot, as by force.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, small.kill_after_seconds)
    handle = register_optimizer_step_post_hook(count)
    try:
        result = train_ppo(run)
    finally:
        handle.remove()
    rank = os.environ.get("RANK", "0")
    told = {"num_steps": num_steps, "rollouts": seen, "history": result.history}
    (Path(small.folder) / f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    parameters = {**run.roles.policy_parameters(), **run.roles.value_parameters()}
    torch.save(
        {name: one.detach() for name, one in parameters.items()},
        Path(small.folder) / f"parameters-{rank}.pt",
    )
    return result


def die_at_file(number: int) -> None:
    """Kill this process by force at its n-th access to a file that writes."""
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "aw"
        if writes or event in CHANGES_FILES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def in_process_of_its_own(small: dict[str, Any], rank: int, num_processes: int, port: int) -> None:
    """Run as one of several processes; what a launcher would set is set here."""
    if num_processes > 1:
        names = dict(zip(RANKS, (rank, num_processes, rank), strict=True))
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    execute(SmallRun(**small))


def in_new_processes(small: SmallRun, num_processes: int = 1) -> list[int | None]:
    """Train in new processes, and return how each ended.

    They are forked from a server that has imported all there is, and done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    started = []
    with pytest.MonkeyPatch.context() as patch:
        # Server and processes import this module by its name, wherever pytest was started.
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.syspath_prepend(REPOSITORY)
        for rank in range(num_processes):
            arguments = (asdict(small), rank, num_processes, port)
            started.append(context.Process(target=in_process_of_its_own, args=arguments))
            started[-1].start()
    for process in started:
        process.join(PATIENCE_SECONDS)
    for process in started:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in started]


def told(folder: Path | str, rank: int = 0) -> dict[str, Any]:
    """Read what a rank noted."""
    found: dict[str, Any] = json.loads((Path(folder) / f"told-{rank}.json").read_text())
    return found


def parameters(folder: Path | str, rank: int = 0) -> dict[str, torch.Tensor]:
    """Read the parameters that a rank ended with."""
    found: dict[str, torch.Tensor] = torch.load(Path(folder) / f"parameters-{rank}.pt")
    return found


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Compare tensors name by name."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def without_clock(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Leave out what no two runs share: seconds, speed and memory."""
    own = "seconds", "tokens_per_second", "peak_memory_bytes"
    return [
        {name: value for name, value in entry.items() if not name.startswith(own)}
        for entry in history
    ]


def as_json(small: SmallRun) -> str:
    """Write a run as the argument of this module."""
    return json.dumps(asdict(small))


if __name__ == "__main__":
    execute(SmallRun(**json.loads(sys.argv[1])))
