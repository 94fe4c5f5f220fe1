"""LoRA adapters: attach, load, and count what trains."""

import difflib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.models.chatglm.adapters import convert_adapter
from sft_kit.models.chatglm.family import family_in
from sft_kit.models.chatglm.layers import rename_layers
from sft_kit.models.chatglm.old_adapters import has_old_names, read_adapter_tensors
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.fused_lora import use_fused_lora
from sft_kit.models.head_adapters import check_saved_head, check_task, save_head_with
from sft_kit.models.heads import head_modules

_NAMES_A_FILE = "prompt_tuning_init_state_dict_path"
_LORA_LAYERS = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layer classes that PEFT can put a LoRA on; quantized ones are subclasses of `nn.Linear`."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters that train and all parameters (packed weights counted as what they stand for)."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total
        return f"{self.trainable:,} of {self.total:,} parameters train ({share:.2%})"


def attach_lora(
    model: PreTrainedModel, config: LoraConfig | None, *, fused: bool = True
) -> PreTrainedModel | PeftModel:
    """Add a LoRA adapter to a base model; draws the adapter from the global random state.

    GPT-2 keeps its linear layers as `Conv1D`, with the weight transposed; once quantized they are
    `Linear` like everybody's. The flag for it follows the class of the layers found. ChatGLM's
    layers may be called by their original names. A classification head gets no adapter: all of it
    trains and is saved with the adapter, whatever it is called.

    Args:
        model: The base, as loaded.
        config: None leaves the whole model trainable.
        fused: Compute a frozen layer and its adapter in one step where that is the same; see
            `sft_kit.models.fused_lora`.

    Returns:
        The model with its adapter in float32, or the model itself.

    Raises:
        ConfigError: A target module matches no layer; each name is reported on its own. Or
            `task_type` is for another kind of model.
    """
    if config is None:
        return model
    check_task(model, config)
    if _is_chatglm(model):
        rename_layers(config, model.config.num_hidden_layers)
    save_head_with(model, config)
    targets = _target_layers(model, config)
    config.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in targets)
    if fused:
        use_fused_lora(config)
    with quiet_peft():
        try:
            return cast("PeftModel", get_peft_model(model, config))
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError, re.error) as error:
            # Starts such as PiSSA's need weights that are numbers; re.error: keys of rank_pattern.
            problem = Problem("adapter", "", " ".join(str(error).split()))
            raise ConfigError("the adapter does not fit the model", [problem]) from error


def load_adapter(
    model: PreTrainedModel, folder: Path, label_names: Sequence[str] | None = None
) -> PeftModel:
    """Put a saved adapter on its base; one of ChatGLM's original layers is converted on the way.

    Args:
        model: The base, as loaded.
        folder: As PEFT saved it, with `.safetensors`; one for ChatGLM may have `.bin`.
        label_names: What a classifier's adapter was trained on, where that is known.

    Returns:
        The model with its adapter in evaluation mode; nothing in it trains.

    Raises:
        CheckpointError: The folder holds no adapter, a damaged one, or one for another base; or
            the head that was saved with it is missing, or for other labels.
    """
    check_adapter_files(folder, is_chatglm=_is_chatglm(model))
    if not _is_chatglm(model):
        check_saved_head(model, folder, label_names)
        return _load_plain(model, folder, folder)
    _refuse_other_family(model, folder)
    is_old = has_old_names(folder)
    if not is_old and (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        return _load_plain(model, folder, folder)
    with TemporaryDirectory(prefix="sft-kit-") as converted:
        if is_old:
            convert_adapter(folder, Path(converted), model.config)
        else:
            _write_without_pickle(folder, Path(converted))
        return _load_plain(model, Path(converted), folder)


def _write_without_pickle(folder: Path, output: Path) -> None:
    """Write an adapter in `.bin` as safetensors, since PEFT would unpickle it."""
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.clone().contiguous() for name, tensor in read_adapter_tensors(folder).items()
    }
    save_file(tensors, output / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    shutil.copyfile(folder / CONFIG_NAME, output / CONFIG_NAME)


def check_adapter_files(folder: Path, *, is_chatglm: bool = False) -> None:
    """Refuse a folder without adapter, and `.bin` where nobody has to publish it any more.

    Args:
        folder: As PEFT saved it.
        is_chatglm: Whether it is for ChatGLM, whose `.bin` is read, without an unpickler.

    Raises:
        CheckpointError: It lacks settings or weights, the weights are a pickle, or the settings
            name another file to read.
    """
    is_pickled = (
        not (folder / SAFETENSORS_WEIGHTS_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()
    )
    needed = WEIGHTS_NAME if is_pickled and is_chatglm else SAFETENSORS_WEIGHTS_NAME
    missing = [name for name in (CONFIG_NAME, needed) if not (folder / name).is_file()]
    if missing:
        found, todo = f"it has no {missing[0]}", "give the folder in which PEFT saved an adapter"
        if is_pickled and missing[0] == needed:
            found = f"{found}, and {WEIGHTS_NAME} is a pickle, which is never read"
            todo = "load it with PEFT where you trust it and save it again, which makes that file"
        raise CheckpointError(f"{folder} holds no adapter", [Problem(str(folder), "", found, todo)])
    named = _settings_of(folder).get(_NAMES_A_FILE)
    if named is not None:
        found = f"found {str(named)[:80]!r}, a file to start from, which PEFT may unpickle"
        problem = Problem(str(folder / CONFIG_NAME), _NAMES_A_FILE, found, "set it to null")
        raise CheckpointError(f"the adapter in {folder} can't be read", [problem])


def _settings_of(folder: Path) -> dict[str, object]:
    """An adapter's settings; none where they are damaged, which whoever loads them says."""
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _refuse_other_family(model: PreTrainedModel, folder: Path) -> None:
    """Stop where only names tell: ChatGLM2 and ChatGLM3 have the same shapes."""
    base = str(_settings_of(folder).get("base_model_name_or_path") or "")
    family, own = family_in(base), cast("Any", model.config).family
    if family is not None and family != own:
        message = f"found {base!r}, and the base is of the family {own}"
        problem = Problem(str(folder), "base_model_name_or_path", message, "give the base it names")
        raise CheckpointError("the adapter was trained on another model", [problem])


def _load_plain(model: PreTrainedModel, folder: Path, shown: Path) -> PeftModel:
    try:
        with quiet_peft(), warnings.catch_warnings():
            # Otherwise PEFT would leave those layers without an adapter and go on.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file ends in whatever its reader raises
        found = " ".join(str(error).split())[:300]
        todo = "give the base it was trained on"
        problem = Problem(str(shown), "", f"{type(error).__name__}: {found}", todo)
        raise CheckpointError(
            "the adapter does not fit the model, or is damaged", [problem]
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep back two warnings of PEFT 0.21 that a user can do nothing about."""
    with warnings.catch_warnings():
        # It sets the flag layer by layer where classes are mixed, and warns each time.
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        # It asks for a property that transformers 5.20 renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count parameters, a packed weight as the weights it stands for and its scales not at all.

    Of a module that is saved whole with an adapter, the copy that trains counts.
    """
    packed: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, RowwiseQuantLinear):
            packed[id(module.weight)] = module.in_features * module.out_features
            packed[id(module.weight_scale)] = 0
    trainable = total = 0
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        state = getattr(parameter, "quant_state", None)
        size = parameter.numel() if state is None else torch.Size(state.shape).numel()
        size = packed.get(id(parameter), size)
        total += size
        trainable += size if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def _is_chatglm(model: PreTrainedModel) -> bool:
    return getattr(model.config, "model_type", None) == "chatglm"


def _target_layers(model: PreTrainedModel, config: LoraConfig) -> list[nn.Module]:
    head = tuple(f"{name}." for name in head_modules(model))
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _LORA_LAYERS) and not f"{name}.".startswith(head)
    }
    targets = config.target_modules
    if targets is None or targets == "all-linear":
        return list(layers.values())
    if isinstance(targets, str):
        try:
            found = [layer for name, layer in layers.items() if re.fullmatch(targets, name)]
        except re.error as error:
            message = f"found {targets!r}, which is no regular expression: {error}"
            problem = Problem("adapter", "target_modules", message)
            raise ConfigError("1 target module matches no layer of the model", [problem]) from error
        problems = [] if found else [_no_match(targets, layers)]
    else:
        matches = {
            target: [
                layer
                for name, layer in layers.items()
                if name == target or name.endswith(f".{target}")
            ]
            for target in targets
        }
        found = [layer for group in matches.values() for layer in group]
        problems = [_no_match(target, layers) for target in sorted(matches) if not matches[target]]
    if problems:
        count = (
            "1 target module matches"
            if len(problems) == 1
            else f"{len(problems)} target modules match"
        )
        raise ConfigError(f"{count} no layer of the model", problems)
    return found


def _no_match(target: str, layers: dict[str, nn.Module]) -> Problem:
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    close = difflib.get_close_matches(target, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    if target in names:  # only a string, which is matched against whole names, gets here
        hint = f"; a string is a regular expression for the whole name, write [{target}]"
    return Problem(
        "adapter",
        "target_modules",
        f"found {target!r}, which matches no layer; accepts all-linear or {', '.join(names)}{hint}",
    )
