"""The loss, class weights and callbacks of classifiers against torch and arithmetic on paper."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from sft_kit.data.labelled.rows import LabelledExample
from sft_kit.data.rows import Where
from sft_kit.errors import ConfigError
from sft_kit.settings import ClassifySettings
from sft_kit.training.classification import (
    choose_class_weights,
    class_logits,
    classifier_loss,
    early_stopping,
    make_loss,
)

NAMES = ("low", "mid", "high")


def examples(labels: list[int] | list[list[float]]) -> list[LabelledExample]:
    return [
        LabelledExample([1], [], label, was_cut=False, where=Where("rows.tsv", line))
        for line, label in enumerate(labels, start=1)
    ]


def output(logits: torch.Tensor, lm_nll: torch.Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(logits=logits, lm_nll=lm_nll)


def test_the_loss_of_a_batch_is_torchs_mean():
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    found = classifier_loss(output(logits), labels, label_smoothing=0.2)
    assert torch.allclose(found, functional.cross_entropy(logits, labels, label_smoothing=0.2))


def test_a_micro_batch_gives_its_share_of_the_global_batch():
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    weights = torch.tensor([0.5, 2.0, 1.0])
    whole = classifier_loss(output(logits), labels, 8, class_weights=weights)
    parts = [
        classifier_loss(output(logits[some]), labels[some], 8, class_weights=weights)
        for some in (slice(0, 3), slice(3, 4), slice(4, 8))
    ]
    rows = functional.cross_entropy(logits, labels, weight=weights, reduction="none")
    assert torch.allclose(whole, rows.sum() / 8)
    assert torch.allclose(sum(parts), whole)


def test_l3_is_l2_plus_lambda_l1():
    logits, labels, lm_nll = torch.randn(8, 3), torch.randint(3, (8,)), torch.rand(8) * 5
    whole = classifier_loss(output(logits, lm_nll), labels, lm_weight=0.5)
    assert torch.allclose(whole, functional.cross_entropy(logits, labels) + 0.5 * lm_nll.mean())
    parts = [
        classifier_loss(output(logits[some], lm_nll[some]), labels[some], 8, lm_weight=0.5)
        for some in (slice(0, 5), slice(5, 8))
    ]
    assert torch.allclose(sum(parts), whole)


def test_l3_with_several_labels_a_text_counts_rows_for_the_language_model():
    logits, lm_nll = torch.randn(4, 3), torch.rand(4) * 5
    labels = torch.randint(2, (4, 3)).float()
    expected = functional.binary_cross_entropy_with_logits(logits, labels) + 2 * lm_nll.mean()
    # The Trainer counts every number of `labels` as an item.
    found = classifier_loss(output(logits, lm_nll), labels, labels.ne(-100).sum(), lm_weight=2.0)
    assert torch.allclose(found, expected)


def test_equal_weights_are_none():
    assert choose_class_weights(ClassifySettings(), examples([0, 1, 2]), NAMES) is None


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 6 + [1] * 3 + [2]
    found = choose_class_weights(ClassifySettings("balanced"), examples(labels), NAMES)
    expected = compute_class_weight("balanced", classes=torch.arange(3).numpy(), y=labels)
    assert found.tolist() == pytest.approx(expected.tolist())


def test_weights_by_name_have_a_mean_of_one_over_the_rows():
    labels = [0] * 6 + [1] * 3 + [2]
    settings = ClassifySettings({"high": 4.0, "mid": 2.0})
    found = choose_class_weights(settings, examples(labels), NAMES)
    assert found.tolist() == pytest.approx([1 * 10 / 16, 2 * 10 / 16, 4 * 10 / 16])
    assert float(found[labels].mean()) == pytest.approx(1.0)


def test_balanced_weights_of_several_labels_make_yes_and_no_weigh_the_same():
    labels = [[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    found = choose_class_weights(ClassifySettings("balanced"), examples(labels), NAMES)
    assert found.tolist() == pytest.approx([1 / 3, 3.0, 3.0])
    given = choose_class_weights(ClassifySettings({"mid": 5.0}), examples(labels), NAMES)
    assert given.tolist() == [1.0, 5.0, 1.0]


def test_a_label_that_every_text_has_is_learnt_with_weight_one():
    labels = [[1.0, 0.0], [1.0, 1.0]]
    found = choose_class_weights(ClassifySettings("balanced"), examples(labels), ("a", "b"))
    assert found.tolist() == [1.0, 1.0]


def test_weights_of_unknown_classes_are_refused_all_at_once():
    settings = ClassifySettings({"hihg": 2.0, "lwo": 1.0})
    with pytest.raises(ConfigError) as caught:
        choose_class_weights(settings, examples([0, 1, 2]), NAMES)
    assert [(one.key, one.message) for one in caught.value.problems] == [
        ("class_weights.hihg", "found 'hihg', accepts low, mid, high"),
        ("class_weights.lwo", "found 'lwo', accepts low, mid, high"),
    ]


def test_the_section_classify_makes_the_loss():
    settings = ClassifySettings({"high": 4.0}, label_smoothing=0.1, lm_weight=0.5)
    rows = examples([0, 0, 2])
    logits, labels, lm_nll = torch.randn(3, 3), torch.tensor([0, 0, 2]), torch.rand(3)
    found = make_loss(settings, rows, NAMES)(output(logits, lm_nll), labels, 3)
    weights = torch.tensor([1.0, 1.0, 4.0]) * 3 / 6
    total = functional.cross_entropy(
        logits, labels, weight=weights, label_smoothing=0.1, reduction="sum"
    )
    assert torch.allclose(found, total / 3 + 0.5 * lm_nll.mean())


def test_metrics_get_the_class_logits_alone():
    logits, lm_nll = torch.randn(2, 3), torch.rand(2)
    assert class_logits((logits, lm_nll), torch.zeros(2)) is logits
    assert class_logits(logits, torch.zeros(2)) is logits


def test_early_stopping_is_asked_for_by_a_number():
    assert early_stopping(ClassifySettings()) == []
    (callback,) = early_stopping(ClassifySettings(early_stopping_patience=4))
    assert callback.early_stopping_patience == 4
