"""What a PPO run consists of, and what it makes of its settings before the first rollout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import Example
from sft_kit.errors import ConfigError, Problem
from sft_kit.models.roles import Roles, base_of, can_merge
from sft_kit.objectives.advantages import RunningMoments
from sft_kit.settings import PpoSettings, PtxSettings
from sft_kit.training.ppo.experience import Collector, Experience
from sft_kit.training.ppo.learner import Learner
from sft_kit.training.ppo.sampling import Sampling
from sft_kit.training.ppo.scores import Scorer
from sft_kit.training.ppo.scoring import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READ_ARGUMENTS = {
    *("output_dir", "seed", "per_device_train_batch_size", "activation_checkpointing"),
    *("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "use_cpu"),
    *("save_total_limit", "disable_tqdm"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"),
}
"""What this loop and its run folder read of TrainingArguments; any other key is an error."""
_REPLICATED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_XPU,
}
"""Launches in which every process has the whole model."""


@dataclass(slots=True)
class PpoRun:
    """Everything a run consists of; `train_ppo` takes it to its end.

    Attributes:
        roles: Policy, reference policy, values, reward model.
        prompts: To train on.
        scorer: What scores.
        settings: The `ppo` section.
        args: `READ_ARGUMENTS` of them are read: per_device_train_batch_size is the episodes of a
            forward at most, and the schedule takes a step per rollout.
        stop_token_ids: Tokens that end a completion, the template's first.
        tokenizer: Decodes completions; None where there is none.
        eval_prompts: Held out.
        ptx: The `ptx` section.
        ptx_rows: Rows of language.
        folder: Where log, samples and checkpoints go; None writes nothing.
        checkpoint: To go on from.
        identity: Fingerprints of what the run was started from.
        on_rollout: Called after each rollout with its experience and figures.
    """

    roles: Roles
    prompts: Sequence[Prompt]
    scorer: Scorer
    settings: PpoSettings
    args: TrainingArguments
    stop_token_ids: Sequence[int]
    tokenizer: "PreTrainedTokenizerBase | None" = None
    eval_prompts: Sequence[Prompt] = ()
    ptx: PtxSettings = field(default_factory=PtxSettings)
    ptx_rows: Sequence[Example] = ()
    folder: Path | None = None
    checkpoint: str | None = None
    identity: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    on_rollout: Callable[[Experience, dict[str, float]], None] | None = None


@dataclass(frozen=True, slots=True)
class PpoResult:
    """How a run ended.

    Attributes:
        history: Figures of every rollout and every evaluation, with `step` = rollouts done.
        metrics: The last figures, and sums over the run.
        alarms: What was said of it.
        stopped_by: Why it ended before its last rollout; None where it did not.
        ema: Name -> moving average of the policy's parameters; empty without one.
    """

    history: list[dict[str, float]]
    metrics: dict[str, float]
    alarms: list[str]
    stopped_by: str | None = None
    ema: Mapping[str, torch.Tensor] = field(default_factory=lambda: MappingProxyType({}))

    def headline(self) -> dict[str, float]:
        """Choose the figures that say in short how the run went; all are in `metrics`."""
        both = ("score_mean", "gold_mean", "eval_score_mean", "eval_gold_mean", "stop_fraction")
        names = [key for name in both for key in (f"first_{name}", name)]
        names += ["kl", "completion_length_mean", "num_updates", "train_seconds"]
        return {name: self.metrics[name] for name in names if name in self.metrics}


def make_collector(run: PpoRun) -> Collector:
    """Make what draws and scores."""
    settings, state = run.settings, PartialState()
    base = base_of(run.roles.policy.model)
    merge = settings.merge_for_generation == "always" or (
        settings.merge_for_generation == "auto"
        and base.dtype == torch.float32
        and not run.args.bf16  # rounded together, the two would differ by 1e-2 nats
    )
    sampling = Sampling(
        settings.max_new_tokens,
        tuple(run.stop_token_ids),
        settings.temperature,
        settings.top_k,
        settings.top_p,
        merge=merge and can_merge(run.roles.policy),
    )
    return Collector(
        run.roles,
        run.scorer,
        run.tokenizer,
        settings,
        sampling,
        Precision(base.device.type, bool(run.args.bf16)),
        run.args.seed,
        run.args.per_device_train_batch_size,
        base.device,
        RunningMoments(),
        state.num_processes,
        state.process_index,
    )


def make_learner(run: PpoRun) -> Learner:
    """Make what learns, with an optimizer of two groups: the policy, and the values."""
    args, state = run.args, PartialState()
    base = base_of(run.roles.policy.model)
    policy = list(run.roles.policy_parameters().values())
    values = list(run.roles.value_parameters().values())
    optimizer = torch.optim.AdamW(
        [
            {"params": policy, "lr": args.learning_rate},
            {"params": values, "lr": run.settings.value_learning_rate},
        ],
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )
    for role in run.roles.all():
        model: Any = base_of(role.model)
        if args.activation_checkpointing and not model.is_activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
    learner = Learner(
        run.roles,
        optimizer,
        run.settings,
        Precision(base.device.type, bool(args.bf16)),
        args.seed,
        micro_batch=args.per_device_train_batch_size,
        max_grad_norm=args.max_grad_norm,
        num_processes=state.num_processes,
        process=state.process_index,
        ptx=run.ptx,
        ptx_rows=run.ptx_rows,
    )
    if run.settings.ema_decay is not None:
        learner.ema = {
            name: parameter.detach().float().clone()
            for name, parameter in run.roles.policy_parameters().items()
        }
    return learner


def check_request(run: PpoRun) -> None:
    """Refuse settings that don't fit each other or the data.

    Raises:
        ConfigError: All of them.
    """
    settings = run.settings
    problems: list[Problem] = []
    if not run.prompts:
        problems.append(Problem("", "data.path", "found no prompt to train on", "add some"))
    if settings.episodes_per_rollout < settings.num_minibatches:
        found = f"found {settings.num_minibatches} for {settings.episodes_per_rollout} episodes"
        todo = "lower it, or raise ppo.episodes_per_rollout"
        problems.append(Problem("", "ppo.num_minibatches", found, todo))
    if PartialState().distributed_type not in _REPLICATED:
        found = f"found {PartialState().distributed_type.value}, which shards the model"
        todo = "launch with torchrun, or a config of recipes/launch that does not shard"
        problems.append(Problem("launcher", "", found, todo))
    if run.args.fp16:
        found = "found true, which needs a gradient scaler that this loop does not have"
        problems.append(Problem("", "train.fp16", found, "set it to false, or set train.bf16"))
    if run.ptx.coefficient > 0 and not run.ptx_rows:
        problems.append(Problem("", "ptx.path", "found no rows to learn", "set ptx.coefficient=0"))
    if problems:
        raise ConfigError("PPO can't start", problems)
