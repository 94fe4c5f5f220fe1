"""Where a classifier's head comes from: the checkpoint, or the random state."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from sft_kit.errors import CheckpointError, Problem

_SHOWN_LABELS = 10


@dataclass(frozen=True, slots=True)
class LabelSet:
    """What a head is for.

    Attributes:
        names: Class id -> name.
        problem_type: transformers' word for one label a text or any number; None where unknown.
    """

    names: tuple[str, ...]
    problem_type: str | None

    def fits(self, wanted: "LabelSet") -> bool:
        """Whether a head for these labels answers what is wanted."""
        return self.names == wanted.names and self.problem_type in (None, wanted.problem_type)

    def __str__(self) -> str:
        return count_labels(self.names)


@dataclass(frozen=True, slots=True)
class HeadOrigin:
    """Where the parts of a head come from.

    Attributes:
        drawn: Names of its parameters that are random; the others are the checkpoint's.
        note: The same as a sentence for whoever trains it.
    """

    drawn: frozenset[str]
    note: str


def count_labels(names: Sequence[str]) -> str:
    """Say how many labels there are, and which."""
    rest = len(names) - _SHOWN_LABELS
    shown = ", ".join(names[:_SHOWN_LABELS]) + (f", and {rest} more" if rest > 0 else "")
    return f"{len(names)} label{'s' if len(names) != 1 else ''} ({shown})"


def parameter_names(model: nn.Module, modules: Sequence[str]) -> set[str]:
    """Full names of the parameters of some of a model's modules."""
    return {
        f"{name}.{key}"
        for name in modules
        for key, _ in model.get_submodule(name).named_parameters()
    }


@contextmanager
def held_back_report() -> Iterator[list[logging.LogRecord]]:
    """Keep back transformers' table of what it drew at random; a head that is new is no news."""
    records: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            records.append(record)
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(hold)
    try:
        yield records
    finally:
        logger.removeFilter(hold)


def show_unexpected(
    model: PreTrainedModel, unexpected: Collection[str], records: Sequence[logging.LogRecord]
) -> None:
    """Show that table all the same where tensors of the backbone found no place in the model."""
    prefix = f"{model.base_model_prefix}."
    inside = {name for name, _ in model.base_model.named_children()} - {"pooler"}
    if any(key.removeprefix(prefix).partition(".")[0] in inside for key in unexpected):
        for record in records:
            logging.getLogger(record.name).handle(record)


def refuse_other_sizes(checkpoint: str, tensors: Collection[str]) -> None:
    """Stop where tensors have other sizes than the config says; transformers would draw them.

    Raises:
        CheckpointError: `tensors` names some.
    """
    if not tensors:
        return
    shown = ", ".join(sorted(tensors)[:3]) + (", ..." if len(tensors) > 3 else "")
    found = f"{len(tensors)} tensors have other sizes than config.json says: {shown}"
    todo = "take config.json from where the weights come from"
    problem = Problem("", "model.checkpoint", found, todo)
    raise CheckpointError(f"{checkpoint} can't be loaded", [problem])


def settle_head(
    model: PreTrainedModel,
    blank: PreTrainedModel,
    modules: Sequence[str],
    report: Mapping[str, set[Any]],
    *,
    brought: LabelSet,
    wanted: LabelSet,
) -> HeadOrigin:
    """Draw a new head where the checkpoint's is for other labels, and say what it is now.

    Args:
        model: As loaded; what the checkpoint lacks has been drawn already.
        blank: The same model without memory; it is used up.
        modules: Names of the head's modules. A pooler, which belongs to the backbone, stays.
        report: Of transformers, what was missing or of another size.
        brought: What the checkpoint's head is for, if it has one.
        wanted: What the head is to be for.
    """
    pooler = f"{model.base_model_prefix}.pooler"
    outside = [name for name in modules if name != pooler]
    head = parameter_names(model, outside)
    mismatched = {key for key, *_ in report["mismatched_keys"]}
    drawn = (report["missing_keys"] | mismatched) & parameter_names(model, modules)
    is_other = not head & report["missing_keys"] and (bool(mismatched) or not brought.fits(wanted))
    if is_other:
        _draw(model, blank, outside)
        drawn |= head
    if not drawn:
        return HeadOrigin(frozenset(), f"head: the checkpoint's own, for {wanted}")
    names = [name for name in modules if parameter_names(model, [name]) & drawn]
    note = f"head: new ({', '.join(names)}), for {wanted}"
    if is_other:
        note += f"; the checkpoint's own is for {brought}"
    return HeadOrigin(frozenset(drawn), note)


@torch.no_grad()
def _draw(model: PreTrainedModel, blank: PreTrainedModel, modules: Sequence[str]) -> None:
    """Draw modules anew as their architecture does it; all else of `blank` has no memory."""
    for name in modules:
        place = next(model.get_submodule(name).parameters()).device
        blank.get_submodule(name).to_empty(device=place)
    for module in blank.modules():
        cast("Any", module)._is_hf_initialized = False
    blank.initialize_weights()
    for name in modules:
        model.get_submodule(name).load_state_dict(blank.get_submodule(name).state_dict())


def refuse_drawn(
    checkpoint: str, origin: HeadOrigin, *, brought: LabelSet, wanted: LabelSet
) -> None:
    """Stop where a head was to come from the checkpoint and has been drawn.

    Raises:
        CheckpointError: It brings no head, or one for other labels.
    """
    if not origin.drawn:
        return
    if brought.fits(wanted):
        lacking = sorted({name.rpartition(".")[0] for name in origin.drawn})
        found = f"it has no weights for {', '.join(lacking)}"
        todo = "give the folder as the run saved it"
    else:
        found = f"it is for {brought}, and the labels asked for are {wanted}"
        todo = "give the folder of the run that was trained on these labels"
    problem = Problem(checkpoint, "", found, todo)
    raise CheckpointError(f"{checkpoint} has no head for these labels", [problem])
