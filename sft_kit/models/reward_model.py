"""Reward models: a decoder with a head that gives one number for a prompt with its answer.

The class is transformers' own sequence classifier with one label, so that what is saved needs
nothing else to be read. The score is read at the last real token by the attention mask
(`sft_kit.models.pooling`), wherever the padding is and whatever its id.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.base import load_config_of
from sft_kit.models.dropout import disable_dropout
from sft_kit.models.head_origin import HeadOrigin, LabelSet
from sft_kit.models.heads import head_modules, is_decoder, label_names_of, load_headed
from sft_kit.settings import ModelSettings

REGRESSION = "regression"
"""transformers' word for a head with one number."""

_SCORE = "score"


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """Where the scores of chosen answers lie, for those who normalise them.

    Attributes:
        mean: Of the scores.
        std: Of the scores, in their own unit.
        num: Chosen answers.
        rows: Whether they were `held-out` or `training` rows.
    """

    mean: float
    std: float
    num: int
    rows: str

    def describe(self) -> dict[str, object]:
        """As it goes into `run.yaml`."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """As it goes into `metrics.json`."""
        return {"score_mean": self.mean, "score_std": self.std}


def load_reward_model(
    settings: ModelSettings,
    *,
    pad_token_id: int | None,
    device: torch.device | str | None = None,
    require_head: bool = False,
) -> PreTrainedModel:
    """Load a pretrained decoder with a head for scores in the place of its language-model head.

    A head for one number that the checkpoint brings is kept; else a new one is drawn from the
    global random state with a standard deviation of 1 / sqrt(H + 1), H the width of the hidden
    states. `head_of` says which. The head is float32 and outside of autocast whatever the rest is,
    and never quantized. Dropout is off.

    Args:
        settings: Checkpoint, quantization and dtype; `auto` means float32 here.
        pad_token_id: Of the tokenizer. It is named in the model's config for transformers' own
            class, which takes the last token that is another one for a text's end. Where the
            end-of-text token is the padding too, the config names none: that class then refuses
            padded batches, where it would score every text one token early.
        device: Where the weights go. None: the device of this process.
        require_head: Refuse a checkpoint that brings no such head.

    Returns:
        The model in evaluation mode. Of a quantized one only the head trains.

    Raises:
        CheckpointError: As for `load_causal_lm`; the checkpoint is no decoder or pools in a way of
            its own; or `require_head` is not met.
        ConfigError: `model.config` sets the number of labels.

    Source:
        Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO": the head's standard
        deviation.
    """
    config = load_config_of(settings)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not is_decoder(config):
        found = f"{config.model_type} is no decoder, which reads from left to right"
        todo = "choose the checkpoint of a language model, such as GPT-2 or Llama"
        problem = Problem("model", "checkpoint", found, todo)
        raise CheckpointError(f"{settings.checkpoint} can't be made a reward model", [problem])
    brought = label_names_of(config)
    wanted = LabelSet(brought if len(brought) == 1 else (_SCORE,), REGRESSION)
    model = load_headed(
        settings,
        config,
        wanted,
        device=device,
        pad_token_id=pad_token_id,
        require_head=require_head,
    )
    _draw_small(model)
    text = cast("Any", model.config.get_text_config())
    ends = text.eos_token_id
    if text.pad_token_id in (ends if isinstance(ends, list) else [ends]):
        text.pad_token_id = None
    disable_dropout(model)
    return model


@torch.no_grad()
def _draw_small(model: PreTrainedModel) -> None:
    """Draw a head anew that is not the checkpoint's."""
    origin: HeadOrigin = cast("Any", model).sft_kit_head
    (name,) = head_modules(model)
    head = cast("nn.Linear", model.get_submodule(name))
    if f"{name}.weight" in origin.drawn:
        nn.init.normal_(head.weight, std=1.0 / math.sqrt(head.in_features + 1))
        if head.bias is not None:
            head.bias.zero_()
