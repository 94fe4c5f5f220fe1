"""Single figures of a classifier, from its logits and the labels.

Shapes: N examples, K classes. Labels are N class ids or, with several labels a text, (N, K) numbers
that are 0 or 1; predictions have the shape of the labels.
"""

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 2_000
"""Bootstrap resamples: the ends of a 95 % interval then vary by a few percent of its width."""

NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""

_CONFIDENCE = 0.95


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the softmax over the classes, (N, K)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def label_probabilities(logits: np.ndarray) -> np.ndarray:
    """Sigmoid of each logit, (N, K), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels in nats, without weights and smoothing.

    Args:
        logits: (N, K).
        labels: (N): cross entropy of each row. (N, K): binary cross entropy of each label.
    """
    if labels.ndim == 2:
        return float((np.logaddexp(0.0, logits) - labels * logits).mean())
    chosen = np.take_along_axis(log_probabilities(logits), labels[:, None], axis=1)
    return float(-chosen.mean())


def predict_labels(logits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Choose the likeliest class of each row, or every label with a probability of 0.5 or more."""
    return (logits >= 0).astype(np.int64) if multi_label else logits.argmax(axis=1)


def f1_scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Micro, macro and weighted F1, with the same classes in the mean as in scikit-learn.

    With one label a text, classes that neither occur nor are predicted stay out of it; with several
    all K are in it, those with an F1 of 0.

    Returns:
        Keys `micro`, `macro` and `weighted`.
    """
    from sklearn.metrics import f1_score

    classes = range(labels.shape[1]) if labels.ndim == 2 else np.union1d(labels, predicted)
    true, found = (_as_indicator(values) for values in (labels, predicted))
    return {
        average: float(
            f1_score(true, found, labels=list(classes), average=average, zero_division=0.0)
        )
        for average in ("micro", "macro", "weighted")
    }


def class_table(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Precision, recall, F1 and support of each class, (K, 4); 0 where a figure is 0 / 0."""
    from sklearn.metrics import precision_recall_fscore_support

    true, found = (_as_indicator(values) for values in (labels, predicted))
    columns = precision_recall_fscore_support(
        true, found, labels=list(range(num_classes)), average=None, zero_division=0.0
    )
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count rows by true class (first axis) and predicted class (second), (K, K).

    With several labels a text: (K, 2, 2), for each label not true / true and not predicted /
    predicted.
    """
    from sklearn.metrics import confusion_matrix

    if labels.ndim == 1:
        return np.asarray(confusion_matrix(labels, predicted, labels=list(range(num_classes))))
    return np.stack(
        [
            confusion_matrix(labels[:, index], predicted[:, index], labels=[0, 1])
            for index in range(num_classes)
        ]
    )


def matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews correlation coefficient, in [-1, 1]; 0 where all is one class."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.union1d(labels, predicted)) == 1:
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def accuracy_interval(num_right: int, num_rows: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the accuracy, over rows.

    Of N rows drawn with replacement the number that is right follows the binomial distribution, so
    it is drawn itself: the same interval as from drawing rows, without N numbers a resample.

    Args:
        num_right: Rows that were answered rightly.
        num_rows: N.
        seed: Of the draw.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    draws = np.random.default_rng(seed).binomial(num_rows, num_right / num_rows, NUM_RESAMPLES)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(draws / num_rows, [tail, 1 - tail])
    return float(low), float(high)


def calibration_error(probabilities: np.ndarray, was_right: np.ndarray) -> float:
    """Expected calibration error: how far stated probabilities are from observed shares.

    Args:
        probabilities: Of the M answers that are judged.
        was_right: M truth values.

    Returns:
        Mean over the answers of |share that was right - mean probability| in their bin, in [0, 1].

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: bins of equal width
        ((m - 1) / 15, m / 15].
    """
    bins = np.clip(np.ceil(probabilities * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bins, weights=was_right - probabilities, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def area_under_roc(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> tuple[float | None, str]:
    """Area under the ROC curve: mean over the classes, each against the rest.

    With two classes that is the usual binary area.

    Args:
        logits: (N, K).
        labels: (N) or (N, K).
        label_names: K names.

    Returns:
        The area, or None where no class can be told from a rest; and which classes are left out,
        since all rows or none are theirs.
    """
    from sklearn.metrics import roc_auc_score

    scores = logits if labels.ndim == 2 else _log_odds(logits)
    areas, left_out = [], []
    for index, name in enumerate(label_names):
        is_class = labels[:, index] > 0 if labels.ndim == 2 else labels == index
        if is_class.any() and not is_class.all():
            areas.append(roc_auc_score(is_class, scores[:, index]))
        else:
            left_out.append(name)
    if not areas:
        return None, "every class has all of the rows or none of them"
    note = f"without {', '.join(left_out)}: all rows or none are theirs" if left_out else ""
    return float(np.mean(areas)), note


def _log_odds(logits: np.ndarray) -> np.ndarray:
    """Order of each class's probabilities over the rows, also where they round to 1."""
    logs = log_probabilities(logits)
    top = logs.argmax(axis=1)[:, None]
    others = logs.copy()
    np.put_along_axis(others, top, -np.inf, axis=1)
    odds = logs.copy()
    with np.errstate(divide="ignore"):  # the top class is put right below
        odds -= np.log1p(-np.exp(logs))
    highest = others.max(axis=1, keepdims=True)
    rest = highest + np.log(np.exp(others - highest).sum(axis=1, keepdims=True))
    np.put_along_axis(odds, top, np.take_along_axis(logs, top, axis=1) - rest, axis=1)
    return odds


def _as_indicator(values: np.ndarray) -> np.ndarray:
    """Whole numbers; a single label gets an empty neighbour, else scikit-learn takes it for ids."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = np.pad(values, ((0, 0), (0, 1)))
    return values.astype(np.int64)
