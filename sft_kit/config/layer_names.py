"""Layer names of checkpoints whose layers are called otherwise once they are loaded."""

from collections.abc import Mapping
from types import MappingProxyType

CHATGLM_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "query_key_value": ("q_proj", "k_proj", "v_proj"),
        "dense": ("o_proj",),
        "dense_h_to_4h": ("gate_up_proj",),
        "dense_4h_to_h": ("down_proj",),
    }
)
"""Original name of a ChatGLM2/3 layer -> names of the layers that hold its weights when loaded."""

_BLOCKS = MappingProxyType(
    {
        "query_key_value": ("self_attention", "self_attn"),
        "dense": ("self_attention", "self_attn"),
        "dense_h_to_4h": ("mlp", "mlp"),
        "dense_4h_to_h": ("mlp", "mlp"),
    }
)
_OUTSIDE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "transformer.embedding.word_embeddings": ("model.embed_tokens",),
        "transformer.output_layer": ("lm_head",),
    }
)


def chatglm_layer_names(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Map the full original name of every layer to the full names of its parts, rows in order.

    Args:
        num_layers: Number of blocks of the model.
    """
    names: dict[str, tuple[str, ...]] = dict(_OUTSIDE)
    for index in range(num_layers):
        for layer, parts in CHATGLM_LAYERS.items():
            stored_in, loaded_in = _BLOCKS[layer]
            original = f"transformer.encoder.layers.{index}.{stored_in}.{layer}"
            names[original] = tuple(f"model.layers.{index}.{loaded_in}.{part}" for part in parts)
    return names
