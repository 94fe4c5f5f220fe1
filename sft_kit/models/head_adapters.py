"""Adapters of classifiers: the head is saved beside the LoRA weights, and must come back with them.

PEFT saves what `modules_to_save` names. On its own it guesses two names, `classifier` and `score`,
looks for them while the adapter is attached, and on loading goes on where one is missing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import PreTrainedModel

from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.models.head_origin import count_labels
from sft_kit.models.heads import head_modules, head_of, is_classifier, label_names_of
from sft_kit.models.kinds import Kind, kind_of

_CLASSIFICATION = "SEQ_CLS"
_TASKS: Mapping[Kind, tuple[str, str | None]] = MappingProxyType(
    {
        "causal": ("a language model", "CAUSAL_LM"),
        "masked": ("an encoder", None),
        "pairs": ("an encoder", None),
        "seq2seq": ("an encoder with a decoder", "SEQ_2_SEQ_LM"),
    }
)
"""What a model is called, and PEFT's name for its task; it has none for encoders."""

_PREFIX = "base_model.model."


def check_task(model: PreTrainedModel, config: LoraConfig) -> None:
    """Stop an adapter whose task is not the model's: PEFT would wrap it in the wrong class.

    Raises:
        ConfigError: The task of another kind of model.
    """
    found = _task_name(config.task_type)
    what, accepted = _TASKS[kind_of(model)]
    if is_classifier(model):
        what, accepted = "a classifier", _CLASSIFICATION
    if found is None or found == accepted:
        return
    choices = "null" if accepted is None else f"{accepted} or null"
    message = f"found {found}, and the model is {what}; accepts {choices}"
    problem = Problem("adapter", "task_type", message)
    raise ConfigError("the adapter does not fit the model", [problem])


def save_head_with(model: PreTrainedModel, config: LoraConfig) -> None:
    """Have PEFT train and save the head, and keep adapters off it, by naming all of its modules."""
    head = head_modules(model)
    if head:
        own = config.modules_to_save or []
        config.modules_to_save = [*own, *(name for name in head if name not in own)]


def check_saved_head(
    model: PreTrainedModel, folder: Path, label_names: Sequence[str] | None = None
) -> None:
    """Compare the head in an adapter's folder with the model's, before PEFT reads it.

    Args:
        model: The base, as loaded.
        folder: As PEFT saved it.
        label_names: What the adapter was trained on, where that is known.

    Raises:
        CheckpointError: A part of the head is in neither the base nor the folder; it is for another
            number of labels or for other labels; or only one of the two is a classifier.
    """
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        shapes = _saved_shapes(folder)
        task = _task_name(settings.get("task_type"))
        saved_whole = [str(name) for name in settings.get("modules_to_save") or ()]
    except Exception:  # a damaged file ends in whatever its reader raises; who loads it says so
        return
    if is_classifier(model):
        problems = _problems_of_head(model, shapes, task, label_names)
    else:
        problems = _problems_of_language_model(model, shapes, task, saved_whole)
    if problems:
        raise CheckpointError(
            "the adapter does not fit the model",
            [Problem(str(folder), "", found, todo) for found, todo in problems],
        )


def _task_name(task: object) -> str | None:
    return None if task is None else str(getattr(task, "value", task))


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names, without PEFT's prefix, and shapes of the tensors in an adapter's folder."""
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        shapes = {
            name: tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118 (not a mapping)
        }
    return {name.removeprefix(_PREFIX): shape for name, shape in shapes.items()}


def _problems_of_head(
    model: PreTrainedModel,
    shapes: Mapping[str, tuple[int, ...]],
    task: str | None,
    label_names: Sequence[str] | None,
) -> list[tuple[str, str]]:
    if task not in (None, _CLASSIFICATION):
        found = f"it was trained for {task}, and the model is a classifier"
        return [(found, "give the folder of a classifier's run")]
    if others := _other_labels(model, shapes, label_names):
        return [others]
    missing = sorted(
        {
            name
            for name in head_modules(model)
            for key in head_of(model).drawn
            if key.startswith(f"{name}.") and key not in shapes
        }
    )
    if missing:
        found = f"it has no weights for {', '.join(missing)}"
        return [(found, "train it again with the head in adapter.modules_to_save")]
    return []


def _other_labels(
    model: PreTrainedModel,
    shapes: Mapping[str, tuple[int, ...]],
    label_names: Sequence[str] | None,
) -> tuple[str, str] | None:
    """What was found and what to do where the saved head does not answer the model's labels."""
    names = label_names_of(model.config)
    asked, todo = count_labels(names), "give the labels it was trained on"
    expected = {
        f"{name}.{key}": tuple(parameter.shape)
        for name in head_modules(model)
        for key, parameter in model.get_submodule(name).named_parameters()
    }
    others = {key for key in expected if shapes.get(key, expected[key]) != expected[key]}
    counts = {shapes[key][0] for key in others if expected[key][0] == len(names)}
    if others:
        if len(counts) == 1 and all(shapes[key][1:] == expected[key][1:] for key in others):
            count = counts.pop()
            is_known = label_names is not None and len(label_names) == count
            saved = count_labels(label_names or ()) if is_known else f"{count} labels"
            return f"its head is for {saved}, the model's for {asked}", todo
        found = f"its head has other sizes than the model's: {', '.join(sorted(others))}"
        return found, "give the base it was trained on"
    if label_names is not None and tuple(label_names) != names:
        return f"its head is for {count_labels(label_names)}, the model's for {asked}", todo
    return None


def _problems_of_language_model(
    model: PreTrainedModel,
    shapes: Mapping[str, tuple[int, ...]],
    task: str | None,
    saved_whole: Sequence[str],
) -> list[tuple[str, str]]:
    todo = "load the base as a classifier, or give the adapter of a language model"
    if task == _CLASSIFICATION:
        return [(f"it was trained for {task}, and the model is a language model", todo)]
    known = {name for name, _ in model.named_modules()}
    foreign = sorted(
        name
        for name in saved_whole
        if any(f".{key}".rpartition(".")[0].endswith(f".{name}") for key in shapes)
        and not any(f".{module}".endswith(f".{name}") for module in known)
    )
    if foreign:
        return [(f"it has weights for {', '.join(foreign)}, which the model lacks", todo)]
    return []
