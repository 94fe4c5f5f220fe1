"""What a head answers, as its model carries it and as `run.yaml` records it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from sft_kit.models.heads import is_classifier, label_names_of
from sft_kit.models.reward_model import REGRESSION


@dataclass(frozen=True, slots=True)
class Labels:
    """What a head answers.

    Attributes:
        names: Class id -> name.
        multi_label: A text may have any number of them.
        is_score: There is one, and it is no class but the score of a reward model.
    """

    names: tuple[str, ...]
    multi_label: bool
    is_score: bool = False

    def describe(self) -> dict[str, object]:
        """As it goes into `run.yaml`."""
        return {"names": list(self.names), "multi_label": self.multi_label}


def labels_of(model: PreTrainedModel | PeftModel) -> Labels | None:
    """Read what a model's head answers from its config; None of a language model."""
    if not is_classifier(model):
        return None
    problem = model.config.problem_type
    is_multi, is_score = problem == "multi_label_classification", problem == REGRESSION
    return Labels(label_names_of(model.config), is_multi, is_score)


def recorded_labels(record: Mapping[str, object]) -> Labels | None:
    """Read the classes from `run.yaml`; None of a language model."""
    labels = cast("Mapping[str, object] | None", record.get("labels"))
    if labels is None:
        return None
    names = cast("list[str]", labels["names"])
    return Labels(tuple(names), bool(labels["multi_label"]))
