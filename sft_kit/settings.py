"""The YAML sections that this project owns: plain dataclasses that need no torch.

The sections `adapter` and `train` are `peft.LoraConfig` and `transformers.TrainingArguments`
themselves. The bounds in `Annotated` are enforced by `sft_kit.config` and written into the JSON
schema.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

TemplateName = Literal["auto", "human-assistant", "alpaca", "chatml", "plain"]
Quantization = Literal["none", "int8", "nf4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
StoredDtype = Literal["float32", "float16", "bfloat16"]


@dataclass
class ModelSettings:
    """Which checkpoint to load and in what precision.

    Attributes:
        checkpoint: Hub id or folder of a checkpoint and its tokenizer: safetensors, and ChatGLM's
            `.bin` files.
        revision: Branch, tag or commit on the Hub.
        quantization: Storage of the frozen linear layers: as in the checkpoint, 8-bit (LLM.int8) or
            4-bit (NF4).
        double_quantization: Quantize the 4-bit scales too; saves about 0.4 bit per weight.
        dtype: Type of the weights as loaded; `auto` picks by device and prints what it picked.
        config: Fields of the checkpoint's config to replace on loading.
    """

    checkpoint: Annotated[str, MinLen(1)]
    revision: str | None = None
    quantization: Quantization = "none"
    double_quantization: bool = True
    dtype: Dtype = "auto"
    config: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass
class ScratchModelSettings:
    """A new model with random weights, for pretraining.

    Attributes:
        tokenizer: Hub id or folder of the tokenizer.
        architecture: Model type as in `transformers.AutoConfig` ("gpt2", "llama", ...).
        config: Fields of that architecture's config; the vocabulary size comes from the tokenizer.
    """

    tokenizer: Annotated[str, MinLen(1)]
    architecture: Annotated[str, MinLen(1)] = "gpt2"
    config: dict[str, str | int | float | bool | None] = field(default_factory=dict)


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
    """

    path: Annotated[str, MinLen(1)]
    format: Literal["auto", "alpaca", "sharegpt", "messages", "prompt-completion", "text"] = "auto"
    split: str = "train"
    revision: str | None = None
    num_rows: Annotated[int, Ge(1)] | None = None
    eval_path: str | None = None
    eval_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.05
    split_seed: Annotated[int, Ge(0)] = 42
    template: TemplateName = "auto"
    max_length: Annotated[int, Ge(2)] = 512
    loss_on: Literal["completion", "all"] = "completion"
    on_bad_row: Literal["stop", "skip"] = "stop"
    max_dropped_fraction: Annotated[float, Ge(0.0), Le(1.0)] = 0.01


@dataclass
class SampleSettings:
    """Prompts answered before and after training, side by side in `samples.md`.

    Attributes:
        prompts: What to ask.
        max_new_tokens: Longest reply in tokens.
        temperature: 0 is greedy; higher is more random.
        top_k: Draw from the k likeliest tokens only; 0 is off.
        top_p: Draw from the smallest set of tokens with this total probability; 1 is off.
        seed: Seed of the draw.
    """

    prompts: list[str] = field(default_factory=list)
    max_new_tokens: Annotated[int, Ge(1)] = 64
    temperature: Annotated[float, Ge(0.0)] = 0.0
    top_k: Annotated[int, Ge(0)] = 0
    top_p: Annotated[float, Gt(0.0), Le(1.0)] = 1.0
    seed: Annotated[int, Ge(0)] = 0
