"""Labelled texts, and what a classifier learns from them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MinLen

Column = str | int
"""A column by name, or by number from 1."""


@dataclass
class LabelledDataSettings:
    """Where labelled texts come from, how their columns are called, and what is held out.

    Columns are given by name, or by number from 1. Several columns are joined by a blank.

    Attributes:
        path: File (.json, .jsonl, .csv, .tsv, .parquet, .txt), folder of such files, or Hub data
            set id.
        text: Column of the text; `auto` finds it by its name and prints what it found.
        text_pair: Column of the second text of a pair; null where there is none.
        label: Column of the label; with `multi_label` also several columns of 0 and 1.
        label_names: Label as in the file -> name of the class, in the order of the class ids.
        multi_label: A text may have any number of labels.
        label_separator: What stands between the labels of a text, where one field holds several.
        group: Column whose equal values stay on one side of a split.
        encoding: Python's name of the encoding; `auto` detects UTF-8, UTF-16, GB18030 and Latin-1,
            prints what it found, and asks where it can't tell.
        header: Whether a table begins with the names of its columns; `auto` looks.
        separator: What stands between text and label in a .txt file, such as `@`, or between the
            fields of a table; `auto` looks.
        split: Split of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        num_rows: Use only the first rows of `path`.
        eval_path: Held-out rows in a file of their own; excludes `eval_fraction`.
        eval_fraction: Share of rows held out for evaluation, class by class, when there is no
            `eval_path`.
        num_folds: Cross-validation: deal the rows into that many folds, whatever `eval_fraction`.
        fold: The fold that is held out, from 1.
        split_seed: Seed of the split.
        deduplicate: Keep one of equal texts, and none of those whose labels contradict each other.
        on_overlap: What to do with texts, and with groups, that stand in `path` and in `eval_path`.
        max_length: Tokens per example, all inclusive; longer examples are cut.
        on_bad_row: Stop with a report of all bad rows, or skip them and count.
    """

    path: Annotated[str, MinLen(1)]
    text: Column | list[Column] = "auto"
    text_pair: Column | list[Column] | None = "auto"
    label: Column | list[Column] = "auto"
    label_names: dict[str, str] = field(default_factory=dict)
    multi_label: bool = False
    label_separator: Annotated[str, MinLen(1)] = ","
    group: Column | None = None
    encoding: Annotated[str, MinLen(1)] = "auto"
    header: bool | Literal["auto"] = "auto"
    separator: Annotated[str, MinLen(1)] = "auto"
    split: str = "train"
    revision: str | None = None
    num_rows: Annotated[int, Ge(1)] | None = None
    eval_path: str | None = None
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    num_folds: Annotated[int, Ge(2)] | None = None
    fold: Annotated[int, Ge(1)] = 1
    split_seed: Annotated[int, Ge(0)] = 42
    deduplicate: bool = False
    on_overlap: Literal["drop-train", "drop-eval", "keep"] = "drop-train"
    max_length: Annotated[int, Ge(2)] = 128
    on_bad_row: Literal["stop", "skip"] = "stop"


@dataclass
class ClassifySettings:
    """What a classifier learns from its labels.

    Attributes:
        class_weights: Weight of each class in the loss: equal, balanced (the rarer the heavier), or
            by name. Rescaled so that the mean over the training rows is 1. With `multi_label` the
            weight of a label's yes.
        label_smoothing: Share of each label that is spread over all classes.
        early_stopping_patience: Stop after that many evaluations without a better
            `train.metric_for_best_model`.
        lm_weight: Weight of the language-model loss that is learnt beside the labels (lambda of the
            GPT paper); decoders only.
    """

    class_weights: Literal["equal", "balanced"] | dict[str, float] = "equal"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    early_stopping_patience: Annotated[int, Ge(1)] | None = None
    lm_weight: Annotated[float, Ge(0)] = 0.0
