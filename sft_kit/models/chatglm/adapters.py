"""Adapters trained on ChatGLM's own code, converted for the layers that stand here.

The original code holds queries, keys and values in one layer, `query_key_value`. Its LoRA is
`W + alpha / r * B @ A`; the rows of B belong to the rows of W, so the same A with B cut by rows
gives the three layers exactly what the one had.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import PreTrainedConfig

from sft_kit.config.layer_names import chatglm_layer_names
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.old_adapters import (
    ADAPTER_PREFIX,
    CARRIED_SETTINGS,
    OldAdapter,
    read_old_adapter,
)


@dataclass(slots=True)
class _Converted:
    """Tensors under native names, and what is particular to single layers."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    saved_whole: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, int] = field(default_factory=dict)


def convert_adapter(folder: Path, output: Path, base: PreTrainedConfig) -> None:
    """Write a LoRA adapter of the original layers as a plain PEFT adapter for the loaded ones.

    Args:
        folder: As PEFT saved it: `adapter_config.json` and `adapter_model.bin` or `.safetensors`.
        output: Folder to write; made if it is not there.
        base: Config of the loaded base; says how the rows are cut.

    Raises:
        CheckpointError: Another kind of adapter, settings or tensors that have no equivalent, or
            shapes that are not the base's; all at once.
    """
    adapter = read_old_adapter(folder)
    num_layers = int(base.num_hidden_layers)
    names = chatglm_layer_names(num_layers)
    sizes = _native_sizes(base)
    converted = _Converted()
    problems: list[Problem] = []
    for layer in adapter.layers:
        if layer not in names:
            found = f"the base, which has {num_layers} blocks, has no such layer"
            problems.append(Problem(str(folder), layer, found))
            continue
        shapes = {part: sizes[part.rpartition(".")[2]] for part in names[layer]}
        wrong = list(_wrong_shapes(adapter, layer, shapes))
        problems += wrong
        if not wrong:
            _convert_layer(adapter, layer, shapes, converted)
    if problems:
        raise CheckpointError(f"the adapter in {folder} does not fit the base", problems)
    output.mkdir(parents=True, exist_ok=True)
    _new_settings(adapter, converted, num_layers).save_pretrained(str(output))
    save_file(converted.tensors, output / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def _native_sizes(base: PreTrainedConfig) -> dict[str, tuple[int, int]]:
    """(output, input) size of the loaded layers, by last part of their names."""
    query = base.num_attention_heads * base.head_dim
    key = base.num_key_value_heads * base.head_dim
    hidden = base.hidden_size
    return {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
        "gate_up_proj": (2 * base.intermediate_size, hidden),
        "down_proj": (hidden, base.intermediate_size),
        "lm_head": (base.vocab_size, hidden),
        "embed_tokens": (base.vocab_size, hidden),
    }


def _wrong_shapes(
    adapter: OldAdapter, layer: str, shapes: Mapping[str, tuple[int, int]]
) -> Iterator[Problem]:
    """Compare a layer's tensors with what the base's layer needs."""
    tensors = adapter.layers[layer]
    rank = adapter.rank(layer)
    num_out = sum(out for out, _ in shapes.values())
    num_in = next(iter(shapes.values()))[1]
    accepted: dict[str, tuple[int, ...]]
    if "weight" in tensors and not layer.startswith("transformer.encoder."):
        accepted = {"weight": (num_out, num_in)}
    elif layer.endswith("word_embeddings"):  # its lookup multiplies from the other side
        accepted = {"lora_embedding_A": (rank, num_out), "lora_embedding_B": (num_in, rank)}
    else:
        accepted = {"lora_A.weight": (rank, num_in), "lora_B.weight": (num_out, rank)}
        if adapter.settings.get("use_dora"):
            accepted["lora_magnitude_vector"] = (num_out,)
    for part in sorted({*accepted, *tensors}):
        found = tuple(tensors[part].shape) if part in tensors else None
        if found != accepted.get(part):
            said = f"found {_shape(found)}, the base and the settings need"
            message = f"{said} {_shape(accepted.get(part))}"
            yield Problem(str(adapter.folder), f"{layer}.{part}", message)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else " x ".join(map(str, shape))


def _convert_layer(
    adapter: OldAdapter, layer: str, shapes: Mapping[str, tuple[int, int]], into: _Converted
) -> None:
    tensors = adapter.layers[layer]
    row = 0
    for name, (num_rows, _) in shapes.items():
        cut = slice(row, row + num_rows)
        row += num_rows
        for part, tensor in tensors.items():
            by_rows = part in ("lora_B.weight", "lora_magnitude_vector")
            # A copy of its own: safetensors refuses tensors that share memory.
            kept = (tensor[cut] if by_rows else tensor).clone().contiguous()
            into.tensors[f"{ADAPTER_PREFIX}{name}.{part}"] = kept
        if "weight" in tensors:
            into.saved_whole.append(name)
            continue
        into.adapted.append(name)
        rank = adapter.rank(layer)
        alpha = adapter.alpha(layer)
        if rank != adapter.settings["r"]:
            into.ranks[name] = rank
        if alpha != adapter.settings["lora_alpha"]:
            into.alphas[name] = alpha


def _new_settings(adapter: OldAdapter, converted: _Converted, num_layers: int) -> LoraConfig:
    carried = {
        name: adapter.settings[name]
        for name in CARRIED_SETTINGS
        if adapter.settings.get(name) is not None
    }
    return LoraConfig(
        **carried,  # type: ignore[arg-type]
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        target_modules=_shortest(converted.adapted, num_layers),
        modules_to_save=converted.saved_whole or None,
        rank_pattern=converted.ranks,
        alpha_pattern=converted.alphas,
    )


def _shortest(names: list[str], num_layers: int) -> list[str]:
    """Last parts of the names where every block has the layer, else the names as they are."""
    by_ending: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_ending[name.rpartition(".")[2]].append(name)
    short: list[str] = []
    for ending, group in by_ending.items():
        is_everywhere = len(group) == num_layers or not group[0].startswith("model.layers.")
        short += [ending] if is_everywhere else group
    return sorted(short)
