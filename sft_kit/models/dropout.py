"""Dropout switched off in every form it takes, so that two forwards of one model agree."""

from collections.abc import Callable
from typing import Any

from torch import nn

_NAMES = ("dropout", "pdrop")


def disable_dropout(model: nn.Module) -> Callable[[], None]:
    """Set every dropout probability of a model to 0, in training mode too.

    Dropout stands in modules, in numbers that a forward hands to `scaled_dot_product_attention`
    (Llama's `attention_dropout`), and in configs that a forward reads.

    Args:
        model: Changed in place.

    Returns:
        A function that puts the probabilities back.
    """
    changed: list[tuple[Any, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        names += [name for name in vars(module) if any(part in name for part in _NAMES)]
        _switch_off(module, names, changed)
        config = vars(module).get("config")
        if config is not None and hasattr(config, "to_dict"):
            names = [name for name in vars(config) if any(part in name for part in _NAMES)]
            _switch_off(config, names, changed)

    def put_back() -> None:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)

    return put_back


def _switch_off(owner: object, names: list[str], changed: list[tuple[Any, str, float]]) -> None:
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, float) and value > 0:
            changed.append((owner, name, value))
            setattr(owner, name, 0.0)
