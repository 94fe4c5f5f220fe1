"""PPO here in a world whose optimum is known: how much of the possible gain is reached?

    python benchmarks/ppo_exact_optimum.py                  # beta 0.1, 40 rollouts: half a minute
    python benchmarks/ppo_exact_optimum.py --minibatches 4 --seed 1 --json figures.json
    python benchmarks/ppo_exact_optimum.py --lora --value adapter --updates 2   # does it run?

A tiny GPT-2 that speaks a small language is the reference policy. All of its 2 801 completions of
each prompt are listed, so expected reward, KL divergence, J = E[R] - beta * KL and the most that J
can be are exact. `norm` is 0 for the reference policy and 1 for the best one.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig
from ppo_worlds import (
    EOS,
    ExactFigures,
    Task,
    World,
    causal_forward,
    checkpoint,
    completion_logprobs,
    completion_scores,
    draw_texts,
    exact_figures,
    words,
    world_of,
)
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import IGNORED, Example, Where
from sft_kit.models.role_adapters import adapter_roles, whole_model_roles
from sft_kit.models.roles import Role, Roles, activate
from sft_kit.settings import PpoSettings, PtxSettings, ScoreSettings
from sft_kit.training.ppo.loop import train_ppo
from sft_kit.training.ppo.reward_functions import RewardFunction
from sft_kit.training.ppo.run import PpoResult, PpoRun
from sft_kit.training.ppo.scores import Scorer

PACKAGES = ("torch", "transformers", "peft")
NAMES = {
    "expected_reward": "expected reward",
    "kl": "KL",
    "j": "J",
    "best_j": "J*",
    "reference_j": "J of the reference policy",
    "sampled_kl": "KL in the last rollout",
    "mean_score": "mean score in the last rollout",
}
PTX_ROWS, PTX_SEED = 512, 2_000_003


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        world: Where it was.
        roles: As trained.
        result: Of `train_ppo`.
        optimizer_steps: Updates made.
        cpu_seconds: Of this process, for the training alone.
    """

    world: World
    roles: Roles
    result: PpoResult
    optimizer_steps: int
    cpu_seconds: float


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Train, print the figures, write the JSON."""
    options = parse(arguments)
    task = task_of(options)
    disable_progress_bar()
    trained = train_in_world(task)
    last = trained.result.history[-1]
    figures: dict[str, object] = {
        "cpu_seconds_per_update": trained.cpu_seconds / task.updates,
        "optimizer_steps": trained.optimizer_steps,
        "mean_score": last["score_mean"],
        "sampled_kl": last["kl"],
    }
    if task.world == "enumerated":
        figures = {**asdict(judge(trained, task.beta)), **figures}
    if options.json != "-":
        show(task, figures)
    record = {
        **figures,
        "task": asdict(task),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if options.json == "-":
        sys.stdout.write(json.dumps(record) + "\n")
    elif options.json:
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; defaults are those of a task."""
    default = Task()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--beta", type=float, default=default.beta, help="KL coefficient")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--reward-token", type=int, default=default.reward_token)
    parser.add_argument("--stop-bonus", type=float, default=default.stop_bonus)
    parser.add_argument("--scale", type=float, default=default.scale, help="of the scores")
    parser.add_argument("--minibatches", type=int, default=default.minibatches, help="per epoch")
    parser.add_argument("--episodes", type=int, default=default.episodes, help="per rollout")
    parser.add_argument("--updates", type=int, default=default.updates, help="rollouts")
    parser.add_argument("--epochs", type=int, default=default.epochs, help="per rollout")
    parser.add_argument("--lr", type=float, default=default.learning_rate, dest="learning_rate")
    parser.add_argument("--lambda", type=float, default=default.gae_lambda, dest="gae_lambda")
    parser.add_argument("--micro-batch", type=int, default=default.micro_batch)
    parser.add_argument("--value", choices=["model", "shared", "adapter"], default=default.value)
    parser.add_argument("--lora", action="store_true", help="adapters on one frozen base")
    parser.add_argument("--task", type=Path, help="all options from a file of ppo_vs_trl.py")
    parser.add_argument(
        "--json", nargs="?", const="-", help="write the figures to this file, or print only them"
    )
    options = parser.parse_args(arguments)
    if options.value == "adapter" and not options.lora and not options.task:
        parser.error("--value adapter needs --lora: without it the whole policy trains")
    if options.beta <= 0:
        parser.error(f"--beta: found {options.beta}; the optimum is known above 0 only")
    return options


def task_of(options: argparse.Namespace) -> Task:
    """Return the task that the command line asks for."""
    if options.task:
        return Task(**json.loads(options.task.read_text(encoding="utf-8")))
    given = {field.name: getattr(options, field.name, None) for field in fields(Task)}
    return Task(**{name: value for name, value in given.items() if value is not None})


# --- training ------------------------------------------------------------------------------------


def train_in_world(
    task: Task, *, ptx_coefficient: float = 0.0, reward_folder: Path | None = None
) -> Trained:
    """Train a policy in a world with this project's loop.

    Args:
        task: What and how.
        ptx_coefficient: Weight of the loss on texts of the world's own language.
        reward_folder: Adapter of a reward model that scores instead of the world; needs `lora`.
    """
    world = world_of(task)
    torch.manual_seed(task.seed)
    roles = roles_of(task, world, reward_folder)
    run = PpoRun(
        roles=roles,
        prompts=[
            Prompt(prompt, (), words(prompt), {}, Where("world", number))
            for number, prompt in enumerate(world.prompts, 1)
        ],
        scorer=scorer_of(None if reward_folder else world_reward(world)),
        settings=settings_of(task, world),
        args=arguments_of(task),
        stop_token_ids=(EOS,),
        ptx=PtxSettings(coefficient=ptx_coefficient, path="-" if ptx_coefficient else None),
        ptx_rows=language_rows(world) if ptx_coefficient else (),
    )
    started = time.process_time()
    result = train_ppo(run)
    seconds = time.process_time() - started
    return Trained(world, roles, result, int(result.metrics["num_updates"]), seconds)


def roles_of(task: Task, world: World, reward_folder: Path | None = None) -> Roles:
    """Load the world's model and make roles of it, as a task asks for them."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint(world.language), dtype=torch.float32)
    if task.lora:
        return adapter_roles(model, lora(), task.value, reward_folder=reward_folder)
    return whole_model_roles(model, task.value)


def lora(task_type: str = "CAUSAL_LM") -> LoraConfig:
    """Adapters on every linear layer of a block."""
    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True, task_type=task_type,
    )  # fmt: skip


def settings_of(task: Task, world: World) -> PpoSettings:
    """Write a task as the `ppo` section of a run."""
    return PpoSettings(
        num_rollouts=task.updates, episodes_per_rollout=task.episodes, num_epochs=task.epochs,
        num_minibatches=task.minibatches, max_new_tokens=world.max_new_tokens,
        kl_coefficient=task.beta, gae_lambda=task.gae_lambda, value=task.value,
        value_learning_rate=task.learning_rate, eval_rollouts=0,
    )  # fmt: skip


def arguments_of(task: Task) -> TrainingArguments:
    """Write a task as the `train` section of a run."""
    return TrainingArguments(
        output_dir="unused", learning_rate=task.learning_rate, lr_scheduler_type="linear",
        adam_epsilon=1e-5, max_grad_norm=1.0, per_device_train_batch_size=task.micro_batch,
        seed=task.seed, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def world_reward(world: World) -> RewardFunction:
    """Make a reward function that answers what a world says completions are worth."""

    def score(completion_ids: list[list[int]], **_: object) -> list[float]:
        return [world.score(ids) for ids in completion_ids]

    return score


def scorer_of(function: RewardFunction | None) -> Scorer:
    """Score by one function alone, or by the reward role where there is none; without limits."""
    if function is None:
        return Scorer(ScoreSettings(clip=None))
    return Scorer(ScoreSettings(functions={"world": 1.0}, clip=None), {"world": function})


def language_rows(world: World) -> list[Example]:
    """Draw texts to keep the language by, with a label on every token after the first."""
    texts = draw_texts(world.language, PTX_ROWS, world.language.seed + PTX_SEED)
    return [
        Example(text, [IGNORED, *text[1:]], was_cut=False, where=Where("language", number))
        for number, text in enumerate(texts, 1)
    ]


# --- judging -------------------------------------------------------------------------------------


def judge(trained: Trained, beta: float) -> ExactFigures:
    """Work out the exact figures of a policy in an enumerated world."""
    return exact_figures(
        role_logprobs(trained.roles.policy, trained.world),
        role_logprobs(trained.roles.reference, trained.world),
        completion_scores(trained.world),
        beta,
    )


def role_logprobs(role: Role, world: World) -> torch.Tensor:
    """Return (prompts, N) log-probabilities of every completion under a role."""
    activate(role)
    role.model.eval()
    return completion_logprobs(causal_forward(role.model), world)


def show(task: Task, figures: dict[str, object]) -> None:
    """Print the figures."""
    table = Table(
        title=f"{task.world} world, beta {task.beta}, seed {task.seed}", show_header=False
    )
    for name, value in figures.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(NAMES.get(name, name.replace("_", " ")), shown)
    Console().print(table)


if __name__ == "__main__":
    main()
