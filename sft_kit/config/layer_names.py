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

_PARENTS = {
    "query_key_value": ("self_attention", "self_attn"),
    "dense": ("self_attention", "self_attn"),
    "dense_h_to_4h": ("mlp", "mlp"),
    "dense_4h_to_h": ("mlp", "mlp"),
}


def chatglm_layer_names(num_layers: int) -> list[str]:
    """Full names of a ChatGLM2/3's linear layers, as in its files and as loaded."""
    names = []
    for index in range(num_layers):
        for original, native in CHATGLM_LAYERS.items():
            stored_in, loaded_in = _PARENTS[original]
            names.append(f"transformer.encoder.layers.{index}.{stored_in}.{original}")
            names += [f"model.layers.{index}.{loaded_in}.{name}" for name in native]
    return sorted(names)
