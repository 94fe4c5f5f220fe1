"""The attention states of a dialogue, kept between its turns.

Every turn sends the whole dialogue so far. Most of it has been read before: the states of the ids
that the new prompt begins with are the same, so only the rest has to be computed.
"""

import inspect
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

# With these the rotation of the first token depends on how long the whole text is.
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


@dataclass(frozen=True, slots=True)
class _ModelState:
    """What the states of a text depend on, besides the text."""

    model: "weakref.ReferenceType[torch.nn.Module]"
    weights: list[tuple[int, int]]
    adapters: Sequence[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class _Held:
    cache: DynamicCache
    ids: list[int]
    made_by: _ModelState


class KeptCache:
    """Keeps the attention states of one dialogue, and gives each turn what it can use of them.

    What is given is cut to the ids that the new prompt begins with. Nothing is given when the model
    is another one, or its weights or adapters have changed; and nothing is kept of a model whose
    states can't be cut (sliding windows, state-space layers) or depend on more than the ids before
    them. A reply is then what it is without this class, but for float rounding: a prompt read in
    two parts adds up its sums in another order.
    """

    def __init__(self) -> None:
        self._held: _Held | None = None

    @property
    def ids(self) -> list[int]:
        """Token ids whose states are kept; the last id of a reply is never among them."""
        return [] if self._held is None else list(self._held.ids)

    def clear(self) -> None:
        """Forget everything, and free its memory."""
        self._held = None

    @contextmanager
    def lent(
        self,
        model: "PreTrainedModel | PeftModel",
        prompt_ids: Sequence[int],
        new_ids: Sequence[int],
    ) -> Iterator[DynamicCache | None]:
        """Give the states of the beginning of a prompt, and take back what was added to them.

        Between the two nothing is kept, so that an interruption at any place leaves nothing half
        done.

        Args:
            model: Model that is going to read the prompt.
            prompt_ids: P ids of the prompt, all of them; at least the last is left to be read.
            new_ids: Ids of the reply, C of them, in a list that grows while the cache is lent.

        Yields:
            A cache of at most P - 1 tokens; None where the model's states can't be kept.
        """
        held, self._held = self._held, None
        if not states_can_be_kept(model):
            yield None
            return
        if held is None or held.made_by != _state_of(model):
            cache = DynamicCache(config=model.config)
        else:
            cache = held.cache
            _cut(cache, _common_length(held.ids, prompt_ids[:-1]))
        try:
            yield cache
        finally:
            ids, num_read = [*prompt_ids, *new_ids], _length(cache)
            # The last id is never read. A model that has read more puts tokens of its own in front
            # of the prompt, as CPM-Ant and a learnt prompt do.
            if num_read < len(ids):
                _cut(cache, num_read)
                self._held = _Held(cache, ids[:num_read], _state_of(model))


def states_can_be_kept(model: "PreTrainedModel | PeftModel") -> bool:
    """Whether the states of a text's beginning can be cut out and used for another text.

    Args:
        model: Causal language model, with or without adapter.
    """
    is_adapted = hasattr(model, "get_base_model")
    base = cast("Any", model).get_base_model() if is_adapted else cast("Any", model)
    if _has_rope(base.config, _LENGTH_DEPENDENT_ROPE):
        return False
    if "past_key_values" not in inspect.signature(type(base).forward).parameters:
        return False
    # An activated LoRA looks for its words in what is read in the same call.
    adapters = getattr(model, "peft_config", {}).values()
    if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters):
        return False
    # int8 layers choose the columns that they compute in float16 by all tokens of a call.
    if any(isinstance(layer, Linear8bitLt) for layer in model.modules()):
        return False
    try:
        layers = DynamicCache(config=base.config).layers
    except (AttributeError, KeyError):  # a config that does not say what its layers are
        return False
    # Other layers than these forget what left their window, or keep one state for the whole text.
    return all(type(layer) is DynamicLayer for layer in layers)


def _has_rope(config: "PreTrainedConfig", rope_types: set[str]) -> bool:
    """Whether a config, or one kind of its layers, uses one of these rotary embeddings."""
    text_config = cast("Any", config).get_text_config(decoder=True)
    parameters = getattr(text_config, "rope_parameters", None) or {}
    kinds = [parameters, *(part for part in parameters.values() if isinstance(part, Mapping))]
    return any(kind.get("rope_type") in rope_types for kind in kinds)


def _state_of(model: torch.nn.Module) -> _ModelState:
    """Describe the weights and adapters of a model: equal as long as nothing has touched them."""
    # torch counts every change in place in `_version`, but not for tensors of inference mode.
    weights = [
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for weight in model.parameters()
    ]
    adapters = [
        (
            tuple(layer.active_adapters),
            layer.disable_adapters,
            tuple(layer.merged_adapters),
            dict(getattr(layer, "scaling", {})),
        )
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    return _ModelState(weakref.ref(model), weights, adapters)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _layers(cache: DynamicCache) -> list[DynamicLayer]:
    return cast("list[DynamicLayer]", cache.layers)


def _length(cache: DynamicCache) -> int:
    """Tokens that every layer holds: an interrupted forward pass has filled only some of them."""
    parts = [part for layer in _layers(cache) for part in (layer.keys, layer.values)]
    return min(
        (0 if part is None or not part.numel() else part.shape[-2] for part in parts), default=0
    )


def _cut(cache: DynamicCache, length: int) -> None:
    """Leave the first tokens only."""
    if length == 0:
        cache.reset()
        return
    # `DynamicCache.crop` removes as many tokens from every layer, however many each holds.
    for layer in _layers(cache):
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys = layer.keys[..., :length, :]
        layer.values = layer.values[..., :length, :]
