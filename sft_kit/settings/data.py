"""Where conversations and texts come from."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt, MinLen

TemplateName = Literal["auto", "human-assistant", "alpaca", "chatml", "plain"]


@dataclass
class DataSettings:
    """Where the rows come from and how they become tokens and labels.

    Attributes:
        path: File (.json, .jsonl, .csv, .tsv, .parquet, .txt), folder of such files, or Hub data
            set id.
        format: Shape of a row; `auto` detects it and prints what it found.
        split: Split of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        num_rows: Use only the first rows of `path`.
        eval_path: Held-out rows in a file of their own; excludes `eval_fraction`.
        eval_fraction: Share of rows held out for evaluation when there is no `eval_path`.
        split_seed: Seed of that split.
        template: Chat template; `auto` takes the tokenizer's own, else `human-assistant`.
        max_length: Tokens per example, all inclusive; longer examples are cut.
        loss_on: Learn the completions only, or every token after the first.
        on_bad_row: Stop with a report of all bad rows, or skip them and count.
        max_dropped_fraction: Stop when more than this share of the rows has no supervised token
            left.
        cache: Where tokenized rows are kept for the next start: a folder; `auto` is one in
            Hugging Face's cache, for data of a megabyte or more; `off` keeps them in memory only.
    """

    path: Annotated[str, MinLen(1)]
    format: Literal["auto", "alpaca", "sharegpt", "messages", "prompt-completion", "text"] = "auto"
    split: str = "train"
    revision: str | None = None
    num_rows: Annotated[int, Ge(1)] | None = None
    eval_path: str | None = None
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.05
    split_seed: Annotated[int, Ge(0)] = 42
    template: TemplateName = "auto"
    max_length: Annotated[int, Ge(2)] = 512
    loss_on: Literal["completion", "all"] = "completion"
    on_bad_row: Literal["stop", "skip"] = "stop"
    max_dropped_fraction: Annotated[float, Ge(0), Le(1)] = 0.01
    cache: Annotated[str, MinLen(1)] = "auto"
