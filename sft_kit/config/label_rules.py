"""Rules about labelled data and classifiers: what is held out, what stops early, what weighs."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.config.view import Rule, View
from sft_kit.errors import Problem

METRICS: Mapping[bool, tuple[str, ...]] = MappingProxyType(
    {
        False: ("loss", "accuracy", "macro_f1", "weighted_f1", "mcc"),
        True: ("loss", "accuracy", "micro_f1", "macro_f1"),
    }
)
"""What an evaluation of a classifier gives, by whether a text may have several labels."""

_COLUMNS = ("text", "text_pair", "label", "group")


def _column(key: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        value = view.get(key)
        for column in value if isinstance(value, list) else [value]:
            if isinstance(column, int) and column < 1:
                yield view.problem(key, f"found {column}, columns are numbered from 1")
            elif column == "":
                yield view.problem(key, "found no name, accepts a column by name or number")
        if value == []:
            yield view.problem(key, "found no columns, accepts one or more")

    return rule


def _several_label_columns(view: View) -> Iterator[Problem]:
    columns = view.get("data.label")
    if isinstance(columns, list) and len(columns) > 1 and view.get("data.multi_label") is False:
        found = f"found {len(columns)} columns, accepts one where a text has one label"
        todo = "name one, or set data.multi_label to true"
        yield view.problem("data.label", found, todo)


def _folds_and_another_split(view: View) -> Iterator[Problem]:
    if view.get("data.num_folds") is None or view.get("data.eval_path") is None:
        return
    found = f"found {view.get('data.num_folds')} together with data.eval_path"
    yield view.problem(
        "data.num_folds",
        f"{found}, and rows are held out in one way only",
        "add data.eval_path=null",
    )


def _fold_exists(view: View) -> Iterator[Problem]:
    num_folds, fold = view.get("data.num_folds"), view.number("data.fold")
    if num_folds is None and view.is_given("data.fold"):
        found = f"found {fold} without data.num_folds, which it counts up to"
        yield view.problem("data.fold", found, "add data.num_folds, or remove it")
    elif num_folds is not None and fold > view.number("data.num_folds"):
        found = f"found {fold}, accepts 1 to {num_folds} (data.num_folds)"
        yield view.problem("data.fold", found)


def _overlap_of_one_file(view: View) -> Iterator[Problem]:
    if view.is_given("data.on_overlap") and view.get("data.eval_path") is None:
        found = f"found {view.get('data.on_overlap')} without data.eval_path"
        reason = "a split of one file keeps equal texts on one side"
        yield view.problem("data.on_overlap", f"{found}: {reason}", "remove it")


def _early_stopping(view: View) -> Iterator[Problem]:
    if view.get("classify.early_stopping_patience") is None:
        return
    key = "classify.early_stopping_patience"
    found = f"found {view.get(key)}"
    if view.get("train.eval_strategy") == "no":
        message = f"{found} without evaluation: it counts evaluations"
        yield view.problem(key, message, "set train.eval_strategy, or set it to null")
    elif view.get("train.load_best_model_at_end") is not True:
        message = f"{found}, but the best model would be lost"
        yield view.problem(key, message, "set train.load_best_model_at_end to true")
    elif view.get("train.restore_callback_states_from_checkpoint") is not True:
        message = f"{found}, but --resume would begin to count anew"
        todo = "set train.restore_callback_states_from_checkpoint to true"
        yield view.problem(key, message, todo)


def _class_weights(view: View) -> Iterator[Problem]:
    weights, label_names = view.get("classify.class_weights"), view.get("data.label_names")
    if not isinstance(weights, dict):
        return
    names = list(dict.fromkeys(label_names.values())) if isinstance(label_names, dict) else []
    for name, weight in weights.items():
        if names and name not in names:
            found = f"found {name!r}, accepts {', '.join(map(repr, names))} (data.label_names)"
            todo = did_you_mean(nearest(name, names))
            yield view.problem("classify.class_weights", found, todo)
        if weight <= 0:
            found = f"found {weight:g} for {name!r}, accepts a number > 0"
            yield view.problem("classify.class_weights", found)


def _known_metric(view: View) -> Iterator[Problem]:
    metric = view.get("train.metric_for_best_model")
    known = METRICS[view.get("data.multi_label") is True]
    name = str(metric).removeprefix("eval_")
    if metric is not None and name not in known:
        found = f"found {metric!r}, accepts {', '.join(known)}"
        todo = did_you_mean(nearest(name, known))
        yield view.problem("train.metric_for_best_model", found, todo)


LABEL_RULES: Mapping[tuple[str, ...], Rule] = MappingProxyType(
    {
        **{(f"data.{key}",): _column(f"data.{key}") for key in _COLUMNS},
        ("data.label", "data.multi_label"): _several_label_columns,
        ("data.num_folds", "data.eval_path"): _folds_and_another_split,
        ("data.num_folds", "data.fold"): _fold_exists,
        ("data.on_overlap", "data.eval_path"): _overlap_of_one_file,
        (
            "classify.early_stopping_patience",
            "train.eval_strategy",
            "train.load_best_model_at_end",
            "train.restore_callback_states_from_checkpoint",
        ): _early_stopping,
        ("classify.class_weights", "data.label_names"): _class_weights,
        ("classify.lm_weight", "data.multi_label", "train.metric_for_best_model"): _known_metric,
    }
)
"""Rule by the keys it looks at, as in `sft_kit.config.rules`."""
