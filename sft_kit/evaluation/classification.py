"""How good a classifier is: every figure of a report, from its logits and the labels.

Shapes: N examples, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.errors import DataError, TrainingError
from sft_kit.evaluation.scores import (
    accuracy_interval,
    area_under_roc,
    calibration_error,
    class_table,
    confusion_counts,
    f1_scores,
    label_probabilities,
    log_probabilities,
    matthews,
    mean_loss,
    predict_labels,
)

if TYPE_CHECKING:
    from transformers import EvalPrediction

MAX_WRONG_ROWS = 20
"""Wrong answers that a report shows."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """How one class fares.

    Attributes:
        name: The class.
        precision: Share of the rows predicted to be this class that are; 0 where there are none.
        recall: Share of its rows that are predicted to be this class; 0 where there are none.
        f1: Their harmonic mean. Of a class that neither occurs nor is predicted None, or 0 with
            several labels a text, as it is in the mean over classes.
        support: Number of its rows.
    """

    name: str
    precision: float
    recall: float
    f1: float | None
    support: int


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row that was answered wrongly.

    Attributes:
        texts: One text, or the two of a pair.
        true: Its labels.
        predicted: What the model says.
        probability: How sure the model is of its mistake: the probability of the predicted class;
            with several labels a text, of the surest wrong decision about one of them.
        where: Place of the row.
    """

    texts: tuple[str, ...]
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    probability: float
    where: Where


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """All figures of a classifier on labelled rows. Shares are in [0, 1].

    Attributes:
        label_names: Class id -> name.
        multi_label: A text may have any number of labels; each is predicted from 0.5 on.
        num_rows: N.
        loss: Mean negative log-likelihood in nats of a row's label, or of each of its K decisions.
        accuracy: Share of the rows that are answered rightly; with several labels a text, all of
            them right.
        accuracy_interval: 95 % percentile bootstrap interval of the accuracy.
        micro_f1: F1 over all decisions; the accuracy where each text has one label.
        macro_f1: Mean F1 of the classes that occur or are predicted; with several labels a text, of
            all of them.
        weighted_f1: The same, weighted by support.
        mcc: Matthews correlation coefficient; None with several labels a text.
        per_class: One entry for each class.
        roc_auc: Mean area under the ROC curve of each class against the rest; None where undefined.
        roc_auc_note: Why it is undefined, or which classes it leaves out; may be empty.
        calibration_error: Expected calibration error of the predicted class's probability; with
            several labels a text, of the probabilities of all labels.
        confusion: K x K counts, true classes as rows; empty with several labels a text.
        label_confusions: Of each label ((true negatives, false positives), (false negatives, true
            positives)); empty where each text has one label.
        majority: Labels that most of these rows have, the answer of the baseline.
        majority_accuracy: Accuracy of always giving that answer.
        majority_macro_f1: Its macro F1.
        num_wrong: Rows that are answered wrongly.
        wrong: The surest of them.
    """

    label_names: tuple[str, ...]
    multi_label: bool
    num_rows: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    micro_f1: float
    macro_f1: float
    weighted_f1: float
    mcc: float | None
    per_class: tuple[ClassFigures, ...]
    roc_auc: float | None
    roc_auc_note: str
    calibration_error: float
    confusion: tuple[tuple[int, ...], ...]
    label_confusions: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    majority: tuple[str, ...]
    majority_accuracy: float
    majority_macro_f1: float
    num_wrong: int
    wrong: tuple[WrongRow, ...]


def evaluate(
    logits: np.ndarray,
    labels: np.ndarray,
    rows: Sequence[LabelledText],
    label_names: Sequence[str],
    *,
    multi_label: bool = False,
    seed: int = 0,
) -> ClassificationReport:
    """Judge a classifier's answers.

    Args:
        logits: (N, K).
        labels: (N) class ids; with several labels a text (N, K) numbers that are 0 or 1.
        rows: The N rows, for the text and place of wrong answers.
        label_names: K names, in the order of the class ids.
        multi_label: A text may have any number of labels.
        seed: Of the bootstrap.

    Raises:
        DataError: There are no rows.
        TrainingError: A logit is not a finite number.
    """
    if not len(rows):
        raise DataError("there are no rows to evaluate on")
    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels).astype(np.int64)
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the model's scores of the held-out rows are not finite: its training has diverged; "
            "train again with a lower train.learning_rate"
        )
    predicted = predict_labels(logits, multi_label=multi_label)
    is_right = _rows_right(labels, predicted)
    f1, table = f1_scores(labels, predicted), class_table(labels, predicted, len(label_names))
    counts = confusion_counts(labels, predicted, len(label_names)).tolist()
    area, area_note = area_under_roc(logits, labels, label_names)
    majority = _majority(labels)
    return ClassificationReport(
        label_names=tuple(label_names),
        multi_label=multi_label,
        num_rows=len(rows),
        loss=mean_loss(logits, labels),
        accuracy=float(is_right.mean()),
        accuracy_interval=accuracy_interval(int(is_right.sum()), len(rows), seed),
        micro_f1=f1["micro"],
        macro_f1=f1["macro"],
        weighted_f1=f1["weighted"],
        mcc=None if multi_label else matthews(labels, predicted),
        per_class=_per_class(table, labels, predicted, label_names),
        roc_auc=area,
        roc_auc_note=area_note,
        calibration_error=_calibration(logits, labels, is_right),
        confusion=() if multi_label else tuple(map(tuple, counts)),
        label_confusions=_label_confusions(counts) if multi_label else (),
        majority=_names(majority[0], label_names),
        majority_accuracy=float(_rows_right(labels, majority).mean()),
        majority_macro_f1=f1_scores(labels, majority)["macro"],
        num_wrong=int((~is_right).sum()),
        wrong=_wrong_rows(logits, labels, predicted, rows, label_names),
    )


def class_metrics(prediction: "EvalPrediction") -> dict[str, float]:
    """For `Trainer(compute_metrics=...)`: the figures to watch while a classifier learns.

    Args:
        prediction: Logits (N, K), alone or first in a tuple, and labels (N) or (N, K).

    Returns:
        `loss` in nats without class weights and label smoothing, `accuracy` and `macro_f1`; with
        one label a text also `weighted_f1` and `mcc`, with several `micro_f1`.
    """
    found, given = prediction.predictions, prediction.label_ids
    logits = np.asarray(found[0] if isinstance(found, tuple) else found, dtype=np.float64)
    labels = np.asarray(given[0] if isinstance(given, tuple) else given).astype(np.int64)
    multi_label = labels.ndim == 2
    predicted = predict_labels(logits, multi_label=multi_label)
    f1 = f1_scores(labels, predicted)
    metrics = {
        "loss": mean_loss(logits, labels),
        "accuracy": float(_rows_right(labels, predicted).mean()),
        "macro_f1": f1["macro"],
    }
    if multi_label:
        return {**metrics, "micro_f1": f1["micro"]}
    return {**metrics, "weighted_f1": f1["weighted"], "mcc": matthews(labels, predicted)}


def _rows_right(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    same = labels == predicted
    return np.asarray(same.all(axis=1) if labels.ndim == 2 else same)


def _majority(labels: np.ndarray) -> np.ndarray:
    """The answer that is right most often, for every row; the lower class id where two tie."""
    counts = Counter(map(tuple, labels.tolist()) if labels.ndim == 2 else labels.tolist())
    answer = min(counts, key=lambda one: (-counts[one], one))
    return np.broadcast_to(np.asarray(answer, dtype=np.int64), labels.shape)


def _per_class(
    table: np.ndarray, labels: np.ndarray, predicted: np.ndarray, label_names: Sequence[str]
) -> tuple[ClassFigures, ...]:
    has_several = labels.ndim == 2
    figures = []
    for index, (name, row) in enumerate(zip(label_names, table.tolist(), strict=True)):
        precision, recall, f1, support = row
        is_known = has_several or support > 0 or bool((predicted == index).any())
        figures.append(
            ClassFigures(name, precision, recall, f1 if is_known else None, int(support))
        )
    return tuple(figures)


def _label_confusions(
    counts: Sequence[Sequence[Sequence[int]]],
) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    return tuple(((right, extra), (missed, found)) for (right, extra), (missed, found) in counts)


def _calibration(logits: np.ndarray, labels: np.ndarray, is_right: np.ndarray) -> float:
    if labels.ndim == 2:
        return calibration_error(label_probabilities(logits).ravel(), labels.ravel())
    return calibration_error(np.exp(log_probabilities(logits).max(axis=1)), is_right)


def _wrong_rows(
    logits: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    rows: Sequence[LabelledText],
    label_names: Sequence[str],
) -> tuple[WrongRow, ...]:
    """List the wrong answers the model is surest of; equally sure ones in the order of the rows."""
    if labels.ndim == 2:
        sureness = np.abs(label_probabilities(logits) - labels).max(axis=1)
    else:
        sureness = np.exp(log_probabilities(logits).max(axis=1))
    wrong = np.flatnonzero(~_rows_right(labels, predicted))
    surest = wrong[np.argsort(-sureness[wrong], kind="stable")][:MAX_WRONG_ROWS]
    return tuple(
        WrongRow(
            texts=rows[index].texts,
            true=_names(labels[index], label_names),
            predicted=_names(predicted[index], label_names),
            probability=float(sureness[index]),
            where=rows[index].where,
        )
        for index in surest.tolist()
    )


def _names(answer: np.ndarray, label_names: Sequence[str]) -> tuple[str, ...]:
    """Names of one row's labels: of a class id, or of K numbers that are 0 or 1."""
    ids = np.flatnonzero(answer).tolist() if answer.ndim else [int(answer)]
    return tuple(label_names[index] for index in ids)
