"""Source and target texts, and how what a model writes is measured against the targets."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MinLen

CountBy = Literal["auto", "words", "characters", "jieba"]


@dataclass
class PairDataSettings:
    """Where pairs of texts come from: text and summary, sentence and translation, ...

    Attributes:
        path: File (.json, .jsonl, .csv, .tsv, .parquet), folder of such files, or Hub data set id.
        source: Field of the text that is read, such as `article`, or `translation.en` within an
            object; `auto` finds it by its name, and of a chat takes all before the last answer.
        target: Field of the text that is written; `auto` finds it by its name, and of a chat takes
            the last answer.
        prefix: Put before every source, such as "summarize: ".
        split: Split of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        num_rows: Use only the first rows of `path`.
        eval_path: Held-out pairs in a file of their own; excludes `eval_fraction`.
        eval_fraction: Share of sources held out when there is no `eval_path`.
        split_seed: Seed of that split.
        max_source_length: Tokens per source, all inclusive; longer ones are cut.
        max_target_length: Tokens per target, all inclusive; longer ones are cut.
        on_bad_row: Stop with a report of all bad rows, or skip them and count.
    """

    path: Annotated[str, MinLen(1)]
    source: str = "auto"
    target: str = "auto"
    prefix: str = ""
    split: str = "train"
    revision: str | None = None
    num_rows: Annotated[int, Ge(1)] | None = None
    eval_path: str | None = None
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    split_seed: Annotated[int, Ge(0)] = 42
    max_source_length: Annotated[int, Ge(2)] = 256
    max_target_length: Annotated[int, Ge(2)] = 128
    on_bad_row: Literal["stop", "skip"] = "stop"


@dataclass
class WritingSettings:
    """What a sequence-to-sequence model writes for held-out sources, and how it is measured.

    Attributes:
        num_rows: Held-out sources to write for at the end of a run; 0 is none.
        num_samples: Of those, how many are shown before and after training.
        max_new_tokens: Longest text in tokens.
        num_beams: 1 is greedy; more is beam search.
        count_by: What ROUGE and BLEU count: words; Chinese characters, with the words of other
            languages whole; or jieba's words. `auto` takes characters where a tenth or more of
            these are Chinese characters, and words elsewhere.
    """

    num_rows: Annotated[int, Ge(0)] = 200
    num_samples: Annotated[int, Ge(0)] = 4
    max_new_tokens: Annotated[int, Ge(1)] = 64
    num_beams: Annotated[int, Ge(1)] = 1
    count_by: CountBy = "auto"
