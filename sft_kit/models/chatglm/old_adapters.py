"""Adapters as ChatGLM's own code and old versions of PEFT left them: read and checked."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file

from sft_kit.config.checkpoint_header import read_header
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.tensor_archive import read_tensors

ADAPTER_PREFIX = "base_model.model."
"""What PEFT writes before the name of a layer."""

CARRIED_SETTINGS = (
    "base_model_name_or_path",
    "revision",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
)
"""Settings that mean the same on the loaded layers."""

_KEY = re.compile(
    r"base_model\.model\.(?P<layer>transformer\..+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|weight)"
)
_PROMPT_KINDS = frozenset({"PREFIX_TUNING", "P_TUNING", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"})
_WITHOUT_EFFECT = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "target_modules",  # the tensors say which layers have an adapter
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",  # these two are looked up layer by layer
        "alpha_pattern",
        "modules_to_save",
        "merge_weights",  # PEFT 0.2: whether `.eval()` merges
        "fan_in_fan_out",  # PEFT switches it off on linear layers
        "runtime_config",
        "megatron_core",
    }
)
_PLAIN_STARTS = (True, False, "gaussian", "true", "false")
"""Values of `init_lora_weights` that leave the base's weights as they are."""


@dataclass(frozen=True, slots=True)
class OldAdapter:
    """A LoRA adapter of original layers.

    Attributes:
        folder: Where it was read from.
        settings: Its `adapter_config.json`.
        layers: Full original name of a layer -> part of its adapter ("lora_A.weight") -> tensor.
    """

    folder: Path
    settings: Mapping[str, object]
    layers: Mapping[str, dict[str, torch.Tensor]]

    def rank(self, layer: str) -> int:
        """Rank of one layer: its own where `rank_pattern` names it, else that of all."""
        return self._of_layer(layer, "r", "rank_pattern")

    def alpha(self, layer: str) -> int:
        """Alpha of one layer: its own where `alpha_pattern` names it, else that of all."""
        return self._of_layer(layer, "lora_alpha", "alpha_pattern")

    def _of_layer(self, layer: str, name: str, pattern_name: str) -> int:
        pattern = cast("Mapping[str, int]", self.settings.get(pattern_name) or {})
        own = pattern.get(get_pattern_key(list(pattern), layer))
        return cast("int", self.settings[name] if own is None else own)


def has_old_names(folder: Path) -> bool:
    """Whether an adapter has to be converted: original layer names, or a kind that can't load.

    Raises:
        CheckpointError: The folder holds no adapter, or a damaged one.
    """
    if _read_settings(folder).get("peft_type") in _PROMPT_KINDS:
        return True
    return any(name.startswith(f"{ADAPTER_PREFIX}transformer.") for name in _tensor_names(folder))


def read_old_adapter(folder: Path) -> OldAdapter:
    """Read a LoRA adapter of the original layers.

    Args:
        folder: As PEFT saved it: `adapter_config.json` and `adapter_model.bin` or `.safetensors`.

    Raises:
        CheckpointError: Another kind of adapter, settings that have no equivalent on the loaded
            layers, tensors that belong to no LoRA, or damaged files.
    """
    settings = _read_settings(folder)
    _refuse_settings(folder, settings)
    return OldAdapter(folder, settings, _group(folder, read_adapter_tensors(folder)))


def _read_settings(folder: Path) -> dict[str, object]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        todo = "give the folder that holds adapter_config.json and adapter_model.bin"
        raise CheckpointError(
            f"{folder} holds no adapter", [_problem(folder, "", f"it has no {CONFIG_NAME}", todo)]
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors are both
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} can't be read: it holds no settings")
    return settings


def _tensor_names(folder: Path) -> Iterable[str]:
    header = read_header(folder / SAFETENSORS_WEIGHTS_NAME)
    # Without one it is a pickle, which has no header, or damaged, which reading it explains.
    return read_adapter_tensors(folder) if header is None else header


def read_adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read an adapter's tensors by the names they were saved under; no pickle is run.

    Args:
        folder: With `adapter_model.safetensors`, or else `adapter_model.bin`.

    Raises:
        CheckpointError: It has neither, or a damaged or empty one.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        path = folder / WEIGHTS_NAME
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except FileNotFoundError as error:
        found = f"it has neither {SAFETENSORS_WEIGHTS_NAME} nor {WEIGHTS_NAME}"
        raise CheckpointError(
            f"{folder} holds no adapter", [_problem(folder, "", found)]
        ) from error
    except CheckpointError:
        raise
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        found = " ".join(str(error).split())[:200]
        problem = Problem(str(path), "", f"it is damaged: {found}", "copy it again")
        raise CheckpointError(f"the adapter in {folder} can't be read", [problem]) from error
    if not tensors:
        todo = "train it again; some old training scripts saved nothing"
        problem = Problem(str(path), "", "it holds no tensors", todo)
        raise CheckpointError(f"the adapter in {folder} can't be read", [problem])
    return tensors


def _refuse_settings(folder: Path, settings: Mapping[str, object]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        what = "prefixes (P-tuning) have no place in the model" if kind in _PROMPT_KINDS else ""
        found = f"found {kind!r}, accepts LORA" + (f"; {what}" if what else "")
        problem = _problem(folder, "peft_type", found, "train a LoRA adapter instead")
        raise CheckpointError(f"the adapter in {folder} can't be converted", [problem])
    defaults = {entry.name: getattr(LoraConfig(), entry.name) for entry in fields(LoraConfig)}
    problems = [
        _problem(folder, name, f"found {value!r}, which has no equivalent on the cut layers")
        for name, value in sorted(settings.items())
        if name not in _WITHOUT_EFFECT
        and name not in (*CARRIED_SETTINGS, "init_lora_weights", "bias")
        and value
        and value != defaults.get(name)
    ]
    start = settings.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        found = f"found {start!r}, which changed the base too; accepts true, false, gaussian"
        todo = "save it as plain LoRA first (path_initial_model_for_weight_conversion of PEFT)"
        problems.append(_problem(folder, "init_lora_weights", found, todo))
    bias = settings.get("bias", "none")
    if bias != "none":
        found = f"found {bias!r}, accepts none: trained biases are not part of a LoRA"
        problems.append(_problem(folder, "bias", found))
    problems += [
        _problem(folder, name, f"found {settings.get(name)!r}, accepts a number")
        for name in ("r", "lora_alpha")
        if not isinstance(settings.get(name), int | float)
    ]
    if problems:
        raise CheckpointError(f"the adapter in {folder} can't be converted", problems)


def _group(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Sort tensors by original layer and part of its adapter."""
    layers: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    unknown = []
    for key, tensor in tensors.items():
        # A saved `state_dict()` has the adapter's name in it, what PEFT saves does not.
        match = _KEY.fullmatch(re.sub(r"\.default(?=\.|$)", "", key))
        if match is None or not isinstance(tensor, torch.Tensor):
            unknown.append(key)
        else:
            layers[match["layer"]][match["part"]] = tensor
    if unknown:
        found = "accepts LoRA tensors of ChatGLM2/3 layers, embeddings and output layer"
        problems = [_problem(folder, key, found) for key in unknown]
        raise CheckpointError(f"the adapter in {folder} has tensors of another kind", problems)
    return dict(layers)


def _problem(folder: Path, key: str, message: str, todo: str = "") -> Problem:
    return Problem(str(folder), key, message, todo)
