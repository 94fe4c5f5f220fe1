"""Texts that an encoder-decoder model writes for other texts.

What it writes depends on the model, the source and the settings only: not on the other sources of
the batch and not on the generation settings that a checkpoint brings along, but for the tokens they
name: those that begin a text, and those that end it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig

from sft_kit.data.pairs.tokenization import end_token_id
from sft_kit.errors import CheckpointError
from sft_kit.inference.generate import answering
from sft_kit.inference.text_pieces import decode_reply, until_stop
from sft_kit.models.base import context_length
from sft_kit.settings import WritingSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote.

    Attributes:
        text: Without special tokens and surrounding white space.
        ids: Its token ids up to the one that ends it.
        stopped: The model ended the text itself; else it was cut.
    """

    text: str
    ids: list[int]
    stopped: bool


def write(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    sources: Sequence[Sequence[int]],
    settings: WritingSettings,
    batch_size: int = 16,
) -> list[Written]:
    """Write a text for every source.

    Args:
        model: Encoder-decoder model; its training mode is put back afterwards.
        tokenizer: The run's tokenizer.
        sources: Token ids of each source, from `encode_sources`.
        settings: `num_beams` and `max_new_tokens`, which the model's context bounds.
        batch_size: Sources per forward pass; changes the speed only.

    Raises:
        CheckpointError: The model does not say with which token its decoder begins.
    """
    tokens = begin_and_end(model, tokenizer)
    context = context_length(model.config)
    length = settings.max_new_tokens if context is None else min(settings.max_new_tokens, context)
    options = {
        **tokens,
        "do_sample": False,
        "num_beams": settings.num_beams,
        "max_new_tokens": length,
        "use_cache": True,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # Sources of similar length share a batch.
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    written: dict[int, Written] = {}
    with answering(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            chosen = [sources[index] for index in batch]
            for index, ids in zip(batch, _write_batch(model, chosen, options), strict=True):
                written[index] = _as_written(tokenizer, ids, tokens)
    return [written[index] for index in range(len(sources))]


def begin_and_end(
    model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, int | list[int]]:
    """Find the tokens that begin and end a text, as `generate` calls them.

    A model for many languages is told by a first token which one to write: `forced_bos_token_id`.

    Raises:
        CheckpointError: The model does not say with which token its decoder begins.
    """
    base = cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model
    found: dict[str, Any] = {}
    for name in ("decoder_start_token_id", "forced_bos_token_id", "eos_token_id"):
        values = (getattr(owner, name, None) for owner in (base.generation_config, base.config))
        found[name] = next((value for value in values if value is not None), None)
    if found["decoder_start_token_id"] is None:
        raise CheckpointError(
            "the model does not say with which token its decoder begins (set "
            "decoder_start_token_id in its config.json)"
        )
    named = found["eos_token_id"]
    own = [] if named is None else [named] if isinstance(named, int) else [*named]
    found["eos_token_id"] = [*dict.fromkeys([*own, end_token_id(tokenizer)])]
    return {name: value for name, value in found.items() if value is not None}


def _write_batch(
    model: "PreTrainedModel | PeftModel",
    sources: Sequence[Sequence[int]],
    options: dict[str, Any],
) -> list[list[int]]:
    """Write for B sources, padded on the right as in training."""
    width = max(map(len, sources))
    padded = [[*ids, *[options["pad_token_id"]] * (width - len(ids))] for ids in sources]
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in sources]
    output = cast("Any", model).generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=cast("Any", GenerationConfig)(**options),
    )
    return cast("list[list[int]]", output[:, 1:].tolist())  # the first one begins the decoder


def _as_written(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], tokens: dict[str, int | list[int]]
) -> Written:
    kept = until_stop(ids, cast("list[int]", tokens["eos_token_id"]))
    stopped = len(kept) < len(ids)
    return Written(decode_reply(tokenizer, kept), kept, stopped)
