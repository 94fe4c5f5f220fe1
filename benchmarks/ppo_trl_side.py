"""The last TRL that has PPO, 1.12.0, in one of the worlds; `ppo_vs_trl.py` runs it.

    PYTHON_WITH_TRL benchmarks/ppo_trl_side.py TASK.json RESULT.json

It runs in an environment of its own and knows nothing of sft_kit. TRL is given what suits it: a pad
token of its own, one batch per optimizer update (its gradient accumulation lets go at the end of
the data), the k1 estimator, no dropout, and a value model that starts as a copy of the policy with
a head of zeros. Its option for minibatches has no effect, so it is left at 1.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from ppo_worlds import (
    EOS,
    PAD,
    Task,
    World,
    causal_forward,
    checkpoint,
    completion_logprobs,
    completion_scores,
    exact_figures,
    world_of,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main(task_file: str, result_file: str) -> None:
    """Train as a task says, and write what came of it."""
    task = Task(**json.loads(Path(task_file).read_text(encoding="utf-8")))
    world = world_of(task)
    folder = str(checkpoint(world.language))
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as output:
        trainer, steps = make_trainer(task, world, folder, policy, reference, output)
        log = Log()
        trainer.add_callback(log)
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
    result: dict[str, object] = {
        "cpu_seconds_per_update": seconds / task.updates,
        "optimizer_steps": len(steps),
        "mean_score": log.last["objective/scores"],
        "sampled_kl": log.last["objective/kl"],
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
    }
    if task.world == "enumerated":
        logprobs, ref_logprobs = (
            completion_logprobs(causal_forward(model.eval()), world)
            for model in (policy, reference)
        )
        figures = exact_figures(logprobs, ref_logprobs, completion_scores(world), task.beta)
        result |= asdict(figures)
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


def make_trainer(
    task: Task,
    world: World,
    folder: str,
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    output: str,
) -> tuple[PPOTrainer, list[None]]:
    """Make TRL's trainer, and a list that grows by one with each optimizer step."""
    value = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    torch.nn.init.zeros_(value.score.weight)
    width = max(map(len, world.prompts))
    copies = max(1, -(-task.episodes // len(world.prompts)))
    rows = [{"input_ids": list(prompt)} for prompt in world.prompts * copies]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        # Always as wide as the longest prompt, so that the reward below knows where answers begin.
        ids = [[PAD] * (width - len(row["input_ids"])) + row["input_ids"] for row in batch]
        return {"input_ids": torch.tensor(ids)}

    config = PPOConfig(
        output_dir=output, use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=task.episodes, gradient_accumulation_steps=1,
        num_mini_batches=1, local_rollout_forward_batch_size=task.episodes,
        total_episodes=task.episodes * task.updates, num_ppo_epochs=task.epochs,
        learning_rate=task.learning_rate, lr_scheduler_type="linear", adam_epsilon=1e-5,
        kl_coef=task.beta, kl_estimator="k1", lam=task.gae_lambda, gamma=1.0, temperature=1.0,
        response_length=world.max_new_tokens, stop_token="eos", seed=task.seed,
        num_sample_generations=0, save_strategy="no", report_to="none", disable_tqdm=True,
        logging_steps=1,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=AutoTokenizer.from_pretrained(folder), model=policy,
        ref_model=reference, reward_model=WorldReward(world, width), value_model=value,
        train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:1]),
        data_collator=collate,
    )  # fmt: skip
    steps: list[None] = []
    trainer.optimizer.optimizer.register_step_post_hook(  # under accelerate's
        lambda *_: steps.append(None)
    )
    return trainer, steps


class WorldReward(torch.nn.Module):
    """A world's score in the shape of a reward model: one number at each position.

    TRL reads it at the position before the first pad token of the completion.
    """

    base_model_prefix = "backbone"

    def __init__(self, world: World, width: int) -> None:
        super().__init__()
        self.world, self.width = world, width
        self.backbone = TokensAsStates()

    def score(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (B, T, 1): what the completion is worth if it ends at each position."""
        wanted = torch.tensor(sorted(self.world.reward_tokens))
        counts = torch.isin(ids, wanted)
        counts[:, : self.width] = False
        shares = counts.cumsum(1) / self.world.max_new_tokens
        worth = self.world.scale * (shares + self.world.stop_bonus * (ids == EOS))
        return (worth + self.world.constant).unsqueeze(-1)


class TokensAsStates(torch.nn.Module):
    """A backbone that gives the token ids back as its hidden states."""

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        """Return them as (B, T)."""
        return SimpleNamespace(hidden_states=[input_ids])


class Log(TrainerCallback):
    """Keeps the last line of figures that TRL logs."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def on_log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
        """Remember a line that has PPO's figures."""
        if logs and "objective/scores" in logs:
            self.last = dict(logs)


if __name__ == "__main__":
    main(*sys.argv[1:])
