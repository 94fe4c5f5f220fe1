"""Plain text, new models, and what is hidden from a model that is pretrained."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from sft_kit.settings.model import Attention, Dropout, Dtype, Quantization

TextUnit = Literal["line", "paragraph", "document", "file"]
MaskedObjective = Literal["mlm", "wwm", "spell"]
PrefixObjective = Literal["bidirectional", "causal", "prefix", "infill"]


@dataclass
class PretrainModelSettings:
    """A new model with random weights, or a checkpoint to go on with: one of the two.

    Attributes:
        checkpoint: Hub id or folder of a checkpoint to continue; null makes a new model.
        tokenizer: Hub id or folder of the tokenizer of a new model.
        architecture: Model type of a new model, as in `transformers.AutoConfig` ("bert", "t5",
            ...); null takes the recipe's.
        revision: Branch, tag or commit of the checkpoint on the Hub.
        quantization: Storage of a checkpoint's frozen linear layers; needs an adapter.
        double_quantization: Quantize the 4-bit scales too; saves about 0.4 bit per weight.
        dtype: Type of a checkpoint's weights as loaded; `auto` picks by device and prints what it
            picked.
        config: Fields of the architecture's config; a new model's vocabulary is the tokenizer's.
        attention: Kernel of the attention, as for `ModelSettings`.
        dropout: Dropout of the model itself: `auto` keeps it where all weights train.
        fused: Compute LoRA layers and GELU in fewer, equal steps.
    """

    checkpoint: str | None = None
    tokenizer: str | None = None
    architecture: str | None = None
    revision: str | None = None
    quantization: Quantization = "none"
    double_quantization: bool = True
    dtype: Dtype = "auto"
    config: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    attention: Attention = "auto"
    dropout: Dropout = "auto"
    fused: bool = True


@dataclass
class TextDataSettings:
    """Where plain texts come from, and how they become examples.

    Attributes:
        path: File (.txt, .json, .jsonl, .csv, .tsv, .parquet), folder of such files, or Hub data
            set id.
        text: Field of the text, which may hold a list of texts; `auto` finds it by its name.
        unit: What is one text in a .txt file: a line; a paragraph, which ends at a blank line; a
            document, which ends there too and whose lines are its sentences; or the file.
        split: Split of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        num_rows: Use only the first texts of `path`.
        eval_path: Held-out texts in a file of their own; excludes `eval_fraction`.
        eval_fraction: Share held out when there is no `eval_path`.
        hold_out: Hold out whole texts, drawn at random, or the end of all text.
        split_seed: Seed of that draw.
        pack: Join texts and cut them into full windows; else each text begins an example of its
            own.
        max_length: Tokens per example, special tokens included.
        streaming: Read, tokenize and shuffle while training, for texts that don't fit in memory;
            needs `train.max_steps`.
        shuffle_buffer: Examples kept to draw the next from, while streaming.
        on_bad_row: Stop with a report of all bad rows, or skip them and count.
    """

    path: Annotated[str, MinLen(1)]
    text: str = "auto"
    unit: TextUnit = "document"
    split: str = "train"
    revision: str | None = None
    num_rows: Annotated[int, Ge(1)] | None = None
    eval_path: str | None = None
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.05
    hold_out: Literal["random", "end"] = "random"
    split_seed: Annotated[int, Ge(0)] = 42
    pack: bool = True
    max_length: Annotated[int, Ge(4)] = 128
    streaming: bool = False
    shuffle_buffer: Annotated[int, Ge(1)] = 10_000
    on_bad_row: Literal["stop", "skip"] = "stop"


@dataclass
class CausalSettings:
    """Causal language modelling (Radford et al. 2018).

    Attributes:
        document_mask: Tokens attend only to their own document, and positions begin anew with each;
            else a window is one text.
    """

    document_mask: bool = False


@dataclass
class MaskedSettings:
    """Masked language modelling and its relatives (Devlin et al. 2018, Cui et al. 2019).

    Attributes:
        objective: Hide tokens (mlm), hide whole words (wwm), or misspell characters and learn to
            correct them (spell).
        mask_fraction: Share of the tokens that are learnt.
        mask_token_fraction: Of those, the share that the mask token replaces.
        random_token_fraction: Of those, the share that a random token replaces; the rest of `mlm`
            and `wwm` stays as it is, of `spell` it becomes a confusable character.
        confusions: For `spell`: JSON file of character -> characters it is mistaken for; null takes
            characters that sound alike and a table of look-alikes.
        next_sentence: Also learn whether the second part of an example follows the first, which it
            does in half of them; the two losses are added.
    """

    objective: MaskedObjective = "mlm"
    mask_fraction: Annotated[float, Gt(0), Le(0.5)] = 0.15
    mask_token_fraction: Annotated[float, Ge(0), Le(1)] | None = None
    random_token_fraction: Annotated[float, Ge(0), Le(1)] | None = None
    confusions: str | None = None
    next_sentence: bool = False


@dataclass
class PrefixSettings:
    """One Transformer under different attention masks (Dong et al. 2019, Du et al. 2021).

    Attributes:
        objective: Masked tokens seen from both sides, left to right, a prefix seen from both sides
            and the rest left to right, or blank infilling.
        mask_fraction: Share of the tokens that is hidden: of all (bidirectional, infill), or of
            the prefix (prefix).
        mean_span_length: Tokens per blank (infill), drawn from a Poisson distribution.
        max_span_length: Longest blank (infill). The model numbers the tokens in a blank by its
            `token_type_ids`, of which it needs two more: `model.config.type_vocab_size`.
    """

    objective: PrefixObjective = "prefix"
    mask_fraction: Annotated[float, Ge(0), Le(0.5)] = 0.15
    mean_span_length: Annotated[float, Ge(1)] = 3.0
    max_span_length: Annotated[int, Ge(1)] = 14


@dataclass
class SpanSettings:
    """Span corruption with sentinels (Raffel et al. 2019).

    Attributes:
        mask_fraction: Share of the tokens that spans hide.
        mean_span_length: Tokens per span.
    """

    mask_fraction: Annotated[float, Gt(0), Le(0.5)] = 0.15
    mean_span_length: Annotated[float, Ge(1)] = 3.0


@dataclass
class DenoiseSettings:
    """Denoising of whole texts (Lewis et al. 2019).

    Attributes:
        infill_fraction: Share of the tokens in spans, each of which one mask token replaces.
        mean_span_length: Tokens per span, drawn from a Poisson distribution; a span of none puts a
            mask token between two tokens.
        permute_sentences: Shuffle the sentences of an example.
        delete_fraction: Share of the tokens that are left out without a trace.
    """

    infill_fraction: Annotated[float, Ge(0), Le(0.5)] = 0.3
    mean_span_length: Annotated[float, Ge(1)] = 3.0
    permute_sentences: bool = True
    delete_fraction: Annotated[float, Ge(0), Le(0.5)] = 0.0
