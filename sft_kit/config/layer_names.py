"""Layer names of checkpoints whose layers are called otherwise once they are loaded."""

from collections.abc import Mapping
from types import MappingProxyType

CHATGLM_BLOCK_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "self_attention.query_key_value": (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
        ),
        "self_attention.dense": ("self_attn.o_proj",),
        "mlp.dense_h_to_4h": ("mlp.gate_up_proj",),
        "mlp.dense_4h_to_h": ("mlp.down_proj",),
    }
)
"""Original name of a layer in a ChatGLM2/3 block -> names of the layers that hold its weights when
loaded, rows in order."""

CHATGLM_OUTER_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "transformer.embedding.word_embeddings": ("model.embed_tokens",),
        "transformer.output_layer": ("lm_head",),
    }
)
"""The same outside of the blocks."""


def chatglm_layer_names(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Map the full original name of every layer to the full names of its parts, rows in order.

    Args:
        num_layers: Number of blocks of the model.
    """
    names = dict(CHATGLM_OUTER_LAYERS)
    for index in range(num_layers):
        for layer, parts in CHATGLM_BLOCK_LAYERS.items():
            original = f"transformer.encoder.layers.{index}.{layer}"
            names[original] = tuple(f"model.layers.{index}.{part}" for part in parts)
    return names
