"""Proof that what was saved gives back the model in memory."""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel

from sft_kit.artifacts.labels import labels_of
from sft_kit.artifacts.load import load_model
from sft_kit.devices import free_memory_bytes
from sft_kit.models.adapters import quiet_peft
from sft_kit.models.kinds import kind_of
from sft_kit.models.probe import probe_logits
from sft_kit.settings import ModelSettings

_ROOM = 1.25
"""Memory that a second model needs while it is loaded, as a multiple of its weights."""

_READ_BACK = "read_back"


def reload_difference(
    model: PreTrainedModel | PeftModel, folder: Path, settings: ModelSettings | None
) -> float:
    """Load what was saved into a fresh base and compare logits on fixed token ids.

    Where memory has no room for a second base, which would end a long training with nothing, the
    saved adapter is put beside the trained one on the same base; a whole model is compared tensor
    by tensor.

    Args:
        model: As trained.
        folder: What was saved of it.
        settings: How its base is loaded; None for a model without one.

    Returns:
        Largest absolute difference of a logit; infinite where a saved tensor differs.
    """
    was_training = model.training
    model.eval()
    try:
        before = probe_logits(model)
        if _second_model_fits(model):
            device = next(model.parameters()).device
            base = settings if isinstance(model, PeftModel) else None
            read_back = load_model(
                folder, base, device, labels=labels_of(model), kind=kind_of(model)
            )
            after = probe_logits(read_back.eval())
        elif isinstance(model, PeftModel):
            after = _logits_of_saved_adapter(model, folder)
        else:
            return 0.0 if _saved_tensors_are_equal(model, folder) else float("inf")
    finally:
        model.train(was_training)
    return float((before - after).abs().max())


def tolerated_difference(model: PreTrainedModel | PeftModel) -> float:
    """Largest difference of a logit that counts as the same model."""
    # One CPU computes the same bits twice; a GPU may choose another kernel for the second model.
    return 0.0 if next(model.parameters()).device.type == "cpu" else 1e-2


def _second_model_fits(model: torch.nn.Module) -> bool:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return weights * _ROOM < free_memory_bytes(next(model.parameters()).device)


def _logits_of_saved_adapter(model: PeftModel, folder: Path) -> torch.Tensor:
    trained = model.active_adapter
    with quiet_peft():
        model.load_adapter(str(folder), _READ_BACK, is_trainable=False)
        try:
            model.set_adapter(_READ_BACK)
            return probe_logits(model)
        finally:
            model.set_adapter(trained)
            model.delete_adapter(_READ_BACK)


def _saved_tensors_are_equal(model: PreTrainedModel, folder: Path) -> bool:
    state = model.state_dict()
    seen: set[int] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = state.get(name)
                if tensor is None or not torch.equal(file.get_tensor(name), tensor.cpu()):
                    return False
                seen.add(tensor.data_ptr())
    # A tied tensor is saved once, under one of its names.
    return all(parameter.data_ptr() in seen for parameter in model.parameters())
