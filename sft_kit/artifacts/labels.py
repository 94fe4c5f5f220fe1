"""The classes of a classifier, as its model carries them and as `run.yaml` records them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from sft_kit.models.heads import is_classifier, label_names_of


@dataclass(frozen=True, slots=True)
class Labels:
    """Class id -> name, and whether a text may have any number of them."""

    names: tuple[str, ...]
    multi_label: bool

    def describe(self) -> dict[str, object]:
        """As it goes into `run.yaml`."""
        return {"names": list(self.names), "multi_label": self.multi_label}


def labels_of(model: PreTrainedModel | PeftModel) -> Labels | None:
    """Read the classes from a model's config; None of a language model."""
    if not is_classifier(model):
        return None
    is_multi = model.config.problem_type == "multi_label_classification"
    return Labels(label_names_of(model.config), is_multi)


def recorded_labels(record: Mapping[str, object]) -> Labels | None:
    """Read the classes from `run.yaml`; None of a language model."""
    labels = cast("Mapping[str, object] | None", record.get("labels"))
    if labels is None:
        return None
    names = cast("list[str]", labels["names"])
    return Labels(tuple(names), bool(labels["multi_label"]))
