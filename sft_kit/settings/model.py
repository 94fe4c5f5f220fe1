"""Which model to load, and what to ask it before and after."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

Quantization = Literal["none", "int8", "nf4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
StoredDtype = Literal["float32", "float16", "bfloat16"]
Attention = Literal[
    "auto", "blocks", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
]
Dropout = Literal["auto", "keep", "none"]


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
        attention: Kernel of the attention: torch's (`sdpa`), our own for 16-bit training on a CPU
            (`blocks`), or another that transformers knows; `auto` picks by device and precision.
        dropout: Dropout of the model itself, which is not the adapter's: `auto` keeps it where all
            weights train; `none` is what it picks where they are frozen.
        fused: Compute LoRA layers, GELU and the loss of language models in fewer, equal steps.
    """

    checkpoint: Annotated[str, MinLen(1)]
    revision: str | None = None
    quantization: Quantization = "none"
    double_quantization: bool = True
    dtype: Dtype = "auto"
    config: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    attention: Attention = "auto"
    dropout: Dropout = "auto"
    fused: bool = True


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
    temperature: Annotated[float, Ge(0)] = 0.0
    top_k: Annotated[int, Ge(0)] = 0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    seed: Annotated[int, Ge(0)] = 0
