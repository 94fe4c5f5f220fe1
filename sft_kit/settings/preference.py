"""Preferences: answers to one prompt of which some are better, and what a reward model learns."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MinLen

from sft_kit.settings.data import TemplateName

PreferenceFormat = Literal["auto", "chosen-rejected", "transcripts", "alpaca", "sharegpt", "ranked"]


@dataclass
class PreferenceDataSettings:
    """Where the compared answers come from, and which prompts are held out.

    Attributes:
        path: File (.json, .jsonl, .csv, .tsv, .parquet), folder of such files, or Hub data set id.
        format: Shape of a row; `auto` detects it and prints what it found.
        margin: Field with the margin by which the chosen answer is better, in units of the score;
            null where there is none.
        split: Split of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        num_rows: Use only the first rows of `path`.
        eval_path: Held-out rows in a file of their own; excludes `eval_fraction`.
        eval_fraction: Share of prompts held out with all their answers when there is no
            `eval_path`.
        split_seed: Seed of that split.
        template: Chat template; `auto` takes the tokenizer's own, else `human-assistant`.
        max_length: Tokens per answer with its prompt and stop token.
        on_long_row: What to do where one answer is longer: drop it and the comparisons it is part
            of, or cut the beginning of the prompt.
        on_bad_row: Stop with a report of all bad rows, or skip them and count.
    """

    path: Annotated[str, MinLen(1)]
    format: PreferenceFormat = "auto"
    margin: str | None = None
    split: str = "train"
    revision: str | None = None
    num_rows: Annotated[int, Ge(1)] | None = None
    eval_path: str | None = None
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    split_seed: Annotated[int, Ge(0)] = 42
    template: TemplateName = "auto"
    max_length: Annotated[int, Ge(2)] = 512
    on_long_row: Literal["drop", "cut-prompt"] = "drop"
    on_bad_row: Literal["stop", "skip"] = "stop"


@dataclass
class RewardSettings:
    """What a reward model learns from preferences.

    Attributes:
        label_smoothing: Share of the preferences that are taken to be wrong.
        center_weight: Weight of the squared sum of a pair's scores, which keeps scores around 0.
    """

    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    center_weight: Annotated[float, Ge(0)] = 0.01
