"""Every figure of a report against scikit-learn, a closed form or a count by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from sft_kit.data.collators import pad_labelled
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.rows import Where
from sft_kit.errors import DataError, TrainingError
from sft_kit.evaluation.classification import class_metrics, evaluate
from sft_kit.evaluation.scores import accuracy_interval, area_under_roc, calibration_error
from sft_kit.inference.classify import predict_logits

NAMES = ("bad", "good", "mixed", "other")


def draw_logits(labels, num_classes, seed, strength=1.5):
    """Logits (N, K) that know something of the labels."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(len(labels), num_classes)) + strength * np.eye(num_classes)[labels]


def make_rows(count):
    return [
        LabelledText((f"text {line}",), (), Where("dev.tsv", line)) for line in range(1, count + 1)
    ]


@pytest.fixture
def single():
    """Logits and labels of 300 rows, four classes of unequal size."""
    labels = np.random.default_rng(0).choice(4, size=300, p=[0.5, 0.3, 0.15, 0.05])
    return draw_logits(labels, 4, seed=1), labels


@pytest.fixture
def several():
    """Logits and labels of 200 rows that have any of four labels."""
    draw = np.random.default_rng(2)
    labels = (draw.random((200, 4)) < [0.5, 0.3, 0.2, 0.05]).astype(np.float64)
    return draw.normal(size=(200, 4)) * 2 + 2 * labels - 1, labels


def report_on(logits, labels, names=NAMES, **options):
    return evaluate(logits, labels, make_rows(len(labels)), names, **options)


# --- one label a text ----------------------------------------------------------------------------


def test_figures_of_a_text_with_one_label_are_scikit_learns(single):
    logits, labels = single
    said = logits.argmax(axis=1)
    report = report_on(logits, labels)
    assert report.accuracy == pytest.approx(metrics.accuracy_score(labels, said))
    assert report.macro_f1 == pytest.approx(metrics.f1_score(labels, said, average="macro"))
    assert report.weighted_f1 == pytest.approx(metrics.f1_score(labels, said, average="weighted"))
    assert report.micro_f1 == pytest.approx(report.accuracy)
    assert report.mcc == pytest.approx(metrics.matthews_corrcoef(labels, said))
    assert report.confusion == tuple(map(tuple, metrics.confusion_matrix(labels, said).tolist()))
    columns = metrics.precision_recall_fscore_support(labels, said)
    found = [(one.precision, one.recall, one.f1, one.support) for one in report.per_class]
    assert np.allclose(found, np.stack(columns, axis=1))
    assert [one.name for one in report.per_class] == list(NAMES)
    shares = torch.tensor(logits).softmax(dim=1).numpy()
    assert report.loss == pytest.approx(metrics.log_loss(labels, shares))
    expected = metrics.roc_auc_score(labels, shares, multi_class="ovr", average="macro")
    assert report.roc_auc == pytest.approx(expected)
    assert report.roc_auc_note == ""
    assert (report.num_rows, report.num_wrong) == (300, int((said != labels).sum()))


def test_the_loss_of_sure_answers_is_exact_where_a_share_rounds_to_nothing():
    logits, labels = np.array([[900.0, 0.0], [0.0, 1.0]]), np.array([1, 1])
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert report_on(logits, labels, ("a", "b")).loss == pytest.approx(expected.item())


def test_the_baseline_always_names_the_commonest_class(single):
    logits, labels = single
    report = report_on(logits, labels)
    share = np.bincount(labels).max() / len(labels)
    assert report.majority == ("bad",)
    assert report.majority_accuracy == pytest.approx(share)
    assert report.majority_macro_f1 == pytest.approx(2 * share / (1 + share) / 4)


def test_a_class_that_does_not_occur_is_in_no_mean_and_has_no_f1():
    labels = np.array([0, 0, 1, 1, 1, 3])
    said = np.array([0, 1, 1, 1, 0, 0])
    report = report_on(np.eye(4)[said] * 3, labels)
    assert report.macro_f1 == pytest.approx(metrics.f1_score(labels, said, average="macro"))
    assert [one.f1 is None for one in report.per_class] == [False, False, True, False]
    assert report.per_class[3].f1 == 0
    assert sum(map(sum, report.confusion)) == 6


def test_one_class_alone_has_no_area_and_no_correlation():
    report = report_on(np.array([[2.0, 1.0], [3.0, 1.0]]), np.array([0, 0]), ("a", "b"))
    assert (report.roc_auc, report.mcc, report.accuracy) == (None, 0.0, 1.0)
    assert "every class has all of the rows or none" in report.roc_auc_note


def test_the_area_leaves_out_classes_that_do_not_occur_and_says_so():
    labels = np.array([0, 1, 0, 1, 2, 2, 0])
    logits = draw_logits(labels, 4, seed=5)
    report = report_on(logits, labels)
    shares = torch.tensor(logits).softmax(dim=1).numpy()
    areas = [metrics.roc_auc_score(labels == index, shares[:, index]) for index in range(3)]
    assert report.roc_auc == pytest.approx(np.mean(areas))
    assert "without other" in report.roc_auc_note


def test_the_area_of_two_classes_tells_answers_apart_whose_shares_round_to_one():
    labels = np.array([0, 1, 0, 1])
    margin = np.array([100.0, 300.0, 250.0, 200.0])
    logits = np.stack([np.zeros(4), margin], axis=1)
    shares = torch.tensor(logits).softmax(dim=1)[:, 1].numpy()
    assert len(set(shares)) == 1, "the shares can't tell these rows apart"
    area, _ = area_under_roc(logits, labels, ("a", "b"))
    assert area == metrics.roc_auc_score(labels, margin) == 0.75


# --- several labels a text -----------------------------------------------------------------------


def test_figures_of_a_text_with_several_labels_are_scikit_learns(several):
    logits, labels = several
    shares = torch.tensor(logits).sigmoid().numpy()
    said = (shares >= 0.5).astype(int)
    report = report_on(logits, labels, multi_label=True)
    assert report.accuracy == pytest.approx(metrics.accuracy_score(labels, said))
    for average, found in (
        ("micro", report.micro_f1), ("macro", report.macro_f1), ("weighted", report.weighted_f1)
    ):  # fmt: skip
        assert found == pytest.approx(metrics.f1_score(labels, said, average=average))
    columns = metrics.precision_recall_fscore_support(labels, said, zero_division=0)
    found = [(one.precision, one.recall, one.f1, one.support) for one in report.per_class]
    assert np.allclose(found, np.stack(columns, axis=1))
    assert report.roc_auc == pytest.approx(metrics.roc_auc_score(labels, shares, average="macro"))
    expected = metrics.multilabel_confusion_matrix(labels, said)
    assert np.array_equal(report.label_confusions, expected)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        *map(torch.tensor, (logits, labels))
    )
    assert report.loss == pytest.approx(loss.item())
    assert (report.mcc, report.confusion) == (None, ())


def test_the_baseline_of_several_labels_is_the_commonest_set_of_them():
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1], [0, 1]])
    report = report_on(np.zeros((5, 2)) - 1, labels, ("a", "b"), multi_label=True)
    assert report.majority == ("a",)
    assert report.majority_accuracy == pytest.approx(2 / 5)
    assert report.majority_macro_f1 == pytest.approx((2 * 3 / (5 + 3) + 0) / 2)


def test_a_single_label_that_may_or_may_not_apply_is_judged_as_that_label():
    labels = np.array([[1], [0], [1], [1], [0], [1]])
    logits = np.array([[2.0], [1.0], [-1.0], [3.0], [-2.0], [4.0]])
    report = report_on(logits, labels, ("toxic",), multi_label=True)
    said = (logits[:, 0] >= 0).astype(int)
    true = labels[:, 0]
    assert report.accuracy == pytest.approx(metrics.accuracy_score(true, said))
    assert report.macro_f1 == pytest.approx(metrics.f1_score(true, said))
    assert report.per_class[0].support == 4
    assert report.label_confusions == (((1, 1), (1, 3)),)
    assert report.roc_auc == pytest.approx(metrics.roc_auc_score(true, logits[:, 0]))


def test_labels_that_never_occur_have_no_area_and_stay_in_the_mean_of_f1():
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    logits = np.array([[2.0, -2.0, -1.0], [1.0, 3.0, -1.0], [2.0, -1.0, -3.0]])
    report = report_on(logits, labels, NAMES[:3], multi_label=True)
    said = (logits >= 0).astype(int)
    expected = metrics.f1_score(labels, said, average=None, zero_division=0)
    assert not labels[:, 2].any()
    assert not said[:, 2].any()
    assert [one.f1 for one in report.per_class] == pytest.approx(expected.tolist())
    assert report.macro_f1 == pytest.approx(expected.mean())
    assert 0 < report.macro_f1 < 2 / 3, "the label without rows counts"
    areas = [metrics.roc_auc_score(labels[:, index], logits[:, index]) for index in (0, 1)]
    assert report.roc_auc == pytest.approx(np.mean(areas))
    assert "without mixed" in report.roc_auc_note


# --- bootstrap, calibration, wrong rows ----------------------------------------------------------


@pytest.mark.parametrize(("num_right", "num_rows"), [(697, 872), (60, 120), (2_200, 2_264)])
def test_the_interval_agrees_with_the_closed_form(num_right, num_rows):
    low, high = accuracy_interval(num_right, num_rows, seed=0)
    share = num_right / num_rows
    deviation = math.sqrt(share * (1 - share) / num_rows)
    # An end of the interval is a quantile of 2,000 draws: it errs by about 0.06 deviations, and by
    # at most one row because rows are whole.
    tolerance = 4 * 0.06 * deviation + 1 / num_rows
    assert low == pytest.approx(share - 1.96 * deviation, abs=tolerance)
    assert high == pytest.approx(share + 1.96 * deviation, abs=tolerance)


def test_the_interval_is_that_of_drawing_rows():
    is_right = np.array([True] * 130 + [False] * 70)
    draw = np.random.default_rng(3)
    means = [is_right[draw.integers(0, 200, 200)].mean() for _ in range(4_000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert np.allclose(accuracy_interval(130, 200, seed=0), expected, atol=0.011)


def test_the_interval_depends_on_its_seed_only(single):
    logits, labels = single
    first, again = (report_on(logits, labels, seed=4).accuracy_interval for _ in range(2))
    assert first == again
    assert len({report_on(logits, labels, seed=seed).accuracy_interval for seed in range(8)}) > 1


def brute_calibration(shares, was_right):
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [
            (share, right)
            for share, right in zip(shares, was_right, strict=True)
            if low < share <= high or (number == 0 and share == 0)
        ]
        if inside:
            confidence = sum(share for share, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(shares) * abs(accuracy - confidence)
    return total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_sum_over_bins(answers):
    # Shares at the very edge of a bin may round to either side.
    answers = [(share, right) for share, right in answers if abs(share * 15 % 1 - 0.5) < 0.49999]
    answers += [(0.0, False), (1.0, True)]
    shares, was_right = map(np.array, zip(*answers, strict=True))
    expected = brute_calibration(shares.tolist(), was_right.tolist())
    assert calibration_error(shares, was_right) == pytest.approx(expected, abs=1e-12)


def test_the_report_calibrates_the_predicted_class_or_every_label(single, several):
    logits, labels = single
    shares = torch.tensor(logits).softmax(dim=1).numpy()
    expected = brute_calibration(shares.max(axis=1), shares.argmax(axis=1) == labels)
    assert report_on(logits, labels).calibration_error == pytest.approx(expected)
    logits, labels = several
    shares = torch.tensor(logits).sigmoid().numpy()
    expected = brute_calibration(shares.ravel(), labels.ravel())
    found = report_on(logits, labels, multi_label=True).calibration_error
    assert found == pytest.approx(expected)


def test_the_surest_mistakes_come_first_with_their_place(single):
    logits, labels = single
    report = report_on(logits, labels)
    shares = torch.tensor(logits).softmax(dim=1).numpy()
    wrong = [index for index in range(300) if shares[index].argmax() != labels[index]]
    expected = sorted(wrong, key=lambda index: -shares[index].max())[:20]
    assert len(wrong) > 20
    assert [row.where.line - 1 for row in report.wrong] == expected
    assert [row.texts[0] for row in report.wrong] == [f"text {index + 1}" for index in expected]
    assert [row.true for row in report.wrong] == [(NAMES[labels[index]],) for index in expected]
    for row, index in zip(report.wrong, expected, strict=True):
        assert row.predicted == (NAMES[shares[index].argmax()],)
        assert row.probability == pytest.approx(shares[index].max())


def test_a_mistake_about_labels_is_as_sure_as_its_surest_wrong_decision():
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    logits = np.array([[2.0, 1.0], [-3.0, -4.0], [1.0, 1.0]])
    report = report_on(logits, labels, ("a", "b"), multi_label=True)
    first, second = report.wrong
    assert (first.true, first.predicted, first.where.line) == (("b",), (), 2)
    assert first.probability == pytest.approx(1 / (1 + math.exp(-4)))
    assert (second.true, second.predicted) == (("a",), ("a", "b"))
    assert second.probability == pytest.approx(1 / (1 + math.exp(-1)))


def test_no_rows_and_broken_logits_are_refused():
    with pytest.raises(DataError, match="no rows"):
        report_on(np.zeros((0, 2)), np.zeros(0), ("a", "b"))
    for broken in (math.nan, math.inf):
        with pytest.raises(TrainingError, match="not finite"):
            report_on(np.array([[0.0, broken]]), np.array([0]), ("a", "b"))


# --- the Trainer's figures -----------------------------------------------------------------------


def test_class_metrics_are_the_figures_of_the_report(single, several):
    logits, labels = single
    report = report_on(logits, labels)
    found = class_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    assert found.keys() == {"loss", "accuracy", "macro_f1", "weighted_f1", "mcc"}
    assert found == {name: getattr(report, name) for name in found}
    logits, labels = several
    report = report_on(logits, labels, multi_label=True)
    found = class_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    assert found.keys() == {"loss", "accuracy", "macro_f1", "micro_f1"}
    assert found == {name: getattr(report, name) for name in found}
    assert all(type(value) is float for value in found.values())


def test_class_metrics_find_the_logits_in_a_tuple(single):
    logits, labels = single
    expected = class_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    wrapped = (logits.astype(np.float32), np.zeros((300, 5)))
    found = class_metrics(EvalPrediction(predictions=wrapped, label_ids=(labels,)))
    assert found == pytest.approx(expected, rel=1e-5)


def test_class_metrics_of_a_diverged_model_are_no_error():
    logits = np.full((4, 2), math.nan)
    found = class_metrics(EvalPrediction(predictions=logits, label_ids=np.array([0, 1, 0, 1])))
    assert math.isnan(found["loss"])
    assert found["accuracy"] == 0.5


# --- a real model --------------------------------------------------------------------------------


def make_bert(**fields):
    """Random BERT with emphatic weights and four labels."""
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, num_labels=4, initializer_range=0.4,
        **fields,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def make_texts(labels):
    """Rows of 1 to 30 tokens in no order of length, and their tokens."""
    draw = np.random.default_rng(9)
    rows, examples = [], []
    for line, label in enumerate(labels, start=1):
        ids = draw.integers(0, 30, size=draw.integers(1, 31)).tolist()
        where = Where("dev.tsv", line)
        rows.append(LabelledText((" ".join(map(str, ids)),), (), where))
        examples.append(LabelledExample(ids, [], label, was_cut=False, where=where))
    return rows, examples


def logits_alone(model, rows):
    """Logits (N, K) by plain transformers, from the very text of each row."""
    with torch.no_grad():
        ids = [torch.tensor([[int(word) for word in row.texts[0].split()]]) for row in rows]
        return torch.cat([model(one).logits for one in ids]).numpy()


def test_the_text_place_and_labels_of_a_wrong_answer_belong_together():
    model = make_bert()
    labels = np.random.default_rng(11).integers(0, 4, size=24)
    rows, examples = make_texts(labels.tolist())
    logits = predict_logits(model, examples, pad_token_id=0, batch_size=5)
    report = evaluate(logits, labels, rows, NAMES)
    alone = logits_alone(model, rows)
    assert report.num_wrong == (alone.argmax(axis=1) != labels).sum() > 3
    assert len({row.predicted for row in report.wrong}) > 1
    by_text = {row.texts: index for index, row in enumerate(rows)}
    for row in report.wrong:
        index = by_text[row.texts]
        assert row.where.line == index + 1
        assert row.true == (NAMES[labels[index]],)
        assert row.predicted == (NAMES[alone[index].argmax()],)
        share = torch.tensor(alone[index]).softmax(dim=0).max().item()
        assert row.probability == pytest.approx(share, abs=1e-5)


def test_the_trainers_figures_of_several_labels_are_scikit_learns(tmp_path):
    model = make_bert(problem_type="multi_label_classification")
    with torch.no_grad():
        model.classifier.bias[3] = -50.0  # a label that is never predicted, nor is it ever true
    labels = np.random.default_rng(12).integers(0, 2, size=(24, 4)) * [1, 1, 1, 0]
    rows, examples = make_texts(labels.astype(float).tolist())
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True,
            per_device_eval_batch_size=5, dataloader_pin_memory=False,
        ),
        eval_dataset=[{"input_ids": one.input_ids, "labels": one.label} for one in examples],
        data_collator=lambda batch: pad_labelled(batch, pad_token_id=0),
        compute_metrics=class_metrics,
    )  # fmt: skip
    found = trainer.evaluate()
    said = torch.tensor(logits_alone(model, rows)).sigmoid().numpy() >= 0.5
    assert said[:, :3].any(axis=0).all()
    assert not said[:, 3].any()
    for average in ("micro", "macro"):
        expected = metrics.f1_score(labels, said, average=average, zero_division=0)
        assert found[f"eval_{average}_f1"] == pytest.approx(expected)
    assert found["eval_accuracy"] == pytest.approx((labels == said).all(axis=1).mean())
