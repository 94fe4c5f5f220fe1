"""What a model answers to fixed token ids, to tell whether two models are the same."""

from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from sft_kit.models.kinds import kind_of

_PROBE_TOKENS = 32


def probe_logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """Compute the logits (T, V) of fixed token ids, in float32 on the CPU."""
    vocabulary = int(model.config.vocab_size)
    device = next(model.parameters()).device
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device).remainder(vocabulary).unsqueeze(0)
    # accelerate puts an autocasting `forward` on the instance that was trained; the class's own one
    # gives what the weights give.
    forward = cast("Any", type(model)).forward
    kind = kind_of(model)
    inputs = {"decoder_input_ids": ids} if kind == "seq2seq" else {}
    with torch.no_grad():
        output = forward(model, input_ids=ids, **inputs)
    logits = output.prediction_logits if kind == "pairs" else output.logits
    return cast("torch.Tensor", logits)[0].float().cpu()
