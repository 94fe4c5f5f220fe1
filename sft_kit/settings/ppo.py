"""PPO: prompts, what is scored, how the policy is optimised, and the language kept beside it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from sft_kit.settings.data import TemplateName

DataFormat = Literal[
    "auto", "prompt", "alpaca", "sharegpt", "messages", "prompt-completion", "text", "preference"
]


@dataclass
class PromptDataSettings:
    """Where the prompts come from that the policy answers.

    Attributes:
        path: File (.json, .jsonl, .csv, .tsv, .parquet, .txt), folder of such files, or Hub data
            set id. Answers that stand there are left out.
        format: Shape of a row; `auto` detects it and prints what it found.
        split: Split of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        num_rows: Use only the first rows of `path`.
        eval_path: Held-out prompts in a file of their own; excludes `eval_fraction`.
        eval_fraction: Share of prompts held out when there is no `eval_path`.
        split_seed: Seed of that split.
        template: Chat template; `auto` takes the tokenizer's own, else `human-assistant`.
        max_prompt_length: Tokens per prompt.
        on_long_prompt: Drop longer prompts, or cut their beginning.
        on_bad_row: Stop with a report of all bad rows, or skip them and count.
    """

    path: Annotated[str, MinLen(1)]
    format: DataFormat = "auto"
    split: str = "train"
    revision: str | None = None
    num_rows: Annotated[int, Ge(1)] | None = None
    eval_path: str | None = None
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.05
    split_seed: Annotated[int, Ge(0)] = 42
    template: TemplateName = "auto"
    max_prompt_length: Annotated[int, Ge(1)] = 256
    on_long_prompt: Literal["drop", "cut"] = "drop"
    on_bad_row: Literal["stop", "skip"] = "stop"


@dataclass
class ScoreSettings:
    """What a completion is scored by: a reward model, Python functions, or a weighted sum.

    Attributes:
        model: Run folder of a reward model; null for none.
        model_weight: Its weight in the sum.
        functions: `module:function` (or `file.py:function`) -> weight. A function gets `prompts`,
            `completions`, `completion_ids` and the data's other columns by keyword, and answers
            one number, or one number per token, for each completion.
        gold: A function of the same kind that is only watched: an alarm tells when the score rises
            while this falls.
        no_stop: What happens to a completion without stop token: subtract `no_stop_value` from its
            score, replace the score by it, or mask it: no policy loss, but a value loss.
        no_stop_value: In units of the score.
        normalise: Scale of the scores: that of the reward model on its own data, a running standard
            deviation (no shift), or none.
        clip: Largest absolute score after that, of a completion or of a token; null for no limit.
    """

    model: str | None = None
    model_weight: float = 1.0
    functions: dict[str, float] = field(default_factory=dict)
    gold: str | None = None
    no_stop: Literal["penalise", "replace", "mask", "none"] = "none"
    no_stop_value: float = 1.0
    normalise: Literal["reference", "running", "none"] = "none"
    clip: Annotated[float, Gt(0)] | None = 5.0


@dataclass
class PpoSettings:
    """Rollouts, and how the policy learns from them.

    An episode is a prompt with the completion that the policy drew. A rollout is a batch of
    episodes; it is cut into minibatches, one optimizer update each, and gone through several times.

    Attributes:
        sft_adapter: Run folder of a supervised fine-tuning with LoRA on the same base: the policy
            starts from it and the reference policy is it. null: the base itself.
        num_rollouts: Rollouts in all.
        episodes_per_rollout: Of all processes together.
        num_epochs: Times a rollout is gone through.
        num_minibatches: Optimizer updates per epoch.
        max_new_tokens: Longest completion in tokens.
        temperature: Of the policy, in drawing and in all its probabilities.
        top_k: Draw from the k likeliest tokens only; 0 is off, and anything else biases PPO.
        top_p: Draw from the smallest set with this total probability; 1 is off, and anything else
            biases PPO.
        stop_tokens: More tokens that end a completion, beside the template's and the checkpoint's.
        generation_batch_size: Prompts per decoding batch.
        merge_for_generation: Merge the adapter for decoding and restore the base bit by bit
            (`auto`: where the base is float32).
        kl_coefficient: Weight of the KL divergence from the reference policy (beta), per nat.
        kl_in: Take it from the reward, or add it to the loss.
        kl_target: Steer the coefficient to this divergence in nats per episode; null keeps it.
        kl_horizon: Episodes in which the coefficient can change by that controller.
        kl_stop: Stop a rollout's updates when the policy has moved 1.5 times this far from the one
            that drew it, in nats per token; null for no limit.
        kl_budget: Stop the run when the divergence from the reference policy is larger, in nats per
            episode; null for no limit.
        gamma: Discount per token.
        gae_lambda: Of generalized advantage estimation.
        value_lambda: The same for the returns the value head learns; null takes `gae_lambda`.
        advantage_scaling: Shift and scale advantages over the whole rollout, shift only, or none.
        advantage_epsilon: Floor of their standard deviation.
        whiten_rewards: Divide rewards by their standard deviation in the rollout.
        clip_low: The ratio of new to old probability is clipped at 1 minus this.
        clip_high: And at 1 plus this.
        dual_clip: Bound of the ratio for negative advantages (above 1); null for none.
        loss_mean: Mean over all tokens of a minibatch, or over tokens and then over completions.
        entropy_coefficient: Weight of the entropy bonus.
        sampler_correction: Weigh tokens by probability in training over probability in drawing, up
            to this; null for no correction.
        value: Where values come from: an adapter and head of their own, a head on the policy
            (`shared`: half the training cost), or a model of its own (`model`).
        value_coefficient: Weight of the value loss.
        value_clip: Values move at most that many standard deviations of the returns per rollout;
            null for no limit.
        value_learning_rate: Peak learning rate of what belongs to values only.
        value_warmup_rollouts: First rollouts, in which values are learnt and the policy rests.
        warmup_rollouts: Rollouts in which the learning rates rise.
        ema_decay: Keep a moving average of the policy in `ema/`; null for none.
        eval_rollouts: Answer the held-out prompts every that many rollouts; 0 for never.
        save_rollouts: Write a checkpoint every that many rollouts.
        keep: The policy to end with: the last, or the one with the best score on held-out prompts.
        self_checks: Check at the start that logprobs, padding, roles and gradients are right.
        dump_rollouts: Write the tensors of each rollout to `rollouts/`.
    """

    sft_adapter: str | None = None
    num_rollouts: Annotated[int, Ge(1)] = 50
    episodes_per_rollout: Annotated[int, Ge(1)] = 64
    num_epochs: Annotated[int, Ge(1)] = 2
    num_minibatches: Annotated[int, Ge(1)] = 4
    max_new_tokens: Annotated[int, Ge(1)] = 48
    temperature: Annotated[float, Gt(0)] = 1.0
    top_k: Annotated[int, Ge(0)] = 0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    stop_tokens: list[str] = field(default_factory=list)
    generation_batch_size: Annotated[int, Ge(1)] = 64
    merge_for_generation: Literal["auto", "always", "never"] = "auto"
    kl_coefficient: Annotated[float, Ge(0)] = 0.05
    kl_in: Literal["reward", "loss"] = "reward"
    kl_target: Annotated[float, Gt(0)] | None = None
    kl_horizon: Annotated[int, Ge(1)] = 10_000
    kl_stop: Annotated[float, Gt(0)] | None = None
    kl_budget: Annotated[float, Gt(0)] | None = None
    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    gae_lambda: Annotated[float, Ge(0), Le(1)] = 0.95
    value_lambda: Annotated[float, Ge(0), Le(1)] | None = None
    advantage_scaling: Literal["std", "mean", "none"] = "std"
    advantage_epsilon: Annotated[float, Gt(0)] = 1e-4
    whiten_rewards: bool = False
    clip_low: Annotated[float, Gt(0), Lt(1)] = 0.2
    clip_high: Annotated[float, Gt(0)] = 0.2
    dual_clip: Annotated[float, Gt(1)] | None = None
    loss_mean: Literal["tokens", "completions"] = "tokens"
    entropy_coefficient: Annotated[float, Ge(0)] = 0.0
    sampler_correction: Annotated[float, Gt(0)] | None = None
    value: Literal["adapter", "shared", "model"] = "adapter"
    value_coefficient: Annotated[float, Ge(0)] = 1.0
    value_clip: Annotated[float, Gt(0)] | None = 0.2
    value_learning_rate: Annotated[float, Gt(0)] = 1e-4
    value_warmup_rollouts: Annotated[int, Ge(0)] = 0
    warmup_rollouts: Annotated[int, Ge(0)] = 0
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None = None
    eval_rollouts: Annotated[int, Ge(0)] = 10
    save_rollouts: Annotated[int, Ge(1)] = 10
    keep: Literal["last", "best"] = "last"
    self_checks: bool = True
    dump_rollouts: bool = False


@dataclass
class PtxSettings:
    """Language that is learnt beside the reward, so that the policy does not forget it (PTX).

    Attributes:
        coefficient: Weight of the language-model loss; 0 is off.
        mix: Add it to the PPO loss, or mix the two as (1 - coefficient) and coefficient.
        path: Conversations or plain text, as in supervised fine-tuning; null for none.
        format: Shape of a row; `auto` detects it.
        split: Split of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        max_length: Tokens per row; plain text is packed into rows of this length.
        loss_on: Learn the completions only, or every token after the first.
        batch_size: Rows per optimizer update, of all processes together.
    """

    coefficient: Annotated[float, Ge(0)] = 0.0
    mix: Literal["add", "convex"] = "add"
    path: str | None = None
    format: Literal["auto", "alpaca", "sharegpt", "messages", "prompt-completion", "text"] = "auto"
    split: str = "train"
    revision: str | None = None
    max_length: Annotated[int, Ge(2)] = 256
    loss_on: Literal["completion", "all"] = "completion"
    batch_size: Annotated[int, Ge(1)] = 8
