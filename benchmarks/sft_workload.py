"""What `sft_throughput.py` trains: GPT-2's shape with random weights, rows, and what they cost."""

import json
import math
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from sft_kit.data.rows import IGNORED, Conversation
from sft_kit.data.splits import load_conversations
from sft_kit.data.templates import choose_template
from sft_kit.data.tokenization import tokenize
from sft_kit.models.adapters import quiet_peft
from sft_kit.settings import DataSettings

SHAPES = {"tiny": (64, 2, 2, 0), "gpt2": (768, 12, 12, 50257), "gpt2-xl": (1600, 48, 25, 50257)}
"""Width, layers, heads, and tokens of the vocabulary, whatever tokenizer makes the rows."""
CONTEXT = 1024
"""Positions of every shape."""
TARGETS = ["c_attn", "c_proj"]
KINDS = ("as-is", "prompt-heavy", "long")
PROMPT_SHARE = 0.8
"""Of a prompt-heavy row's characters."""
SEED = 20

_MOST_ROWS = 2048
_REPEATS = 5

Chat = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Workload:
    """Size of the rows, each of which every side trains on once.

    Attributes:
        num_rows: Rows.
        mean_tokens: Tokens of a row.
        longest: Tokens of the longest row.
        label_share: Share of the tokens that are learnt.
        flops_per_token: See `flops_per_token`.
    """

    num_rows: int
    mean_tokens: float
    longest: int
    label_share: float
    flops_per_token: float


# --- files that every side reads -----------------------------------------------------------------


def write_workload(
    work: Path, *, data: Path, tokenizer: Path, shape: str, kind: str, num_rows: int,
    max_length: int,
) -> Workload:  # fmt: skip
    """Write checkpoints, an adapter's start, and the rows as text and as tokens into a folder.

    Raises:
        SystemExit: The file has too few rows.
    """
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.pad_token = words.pad_token or words.eos_token
    settings = replace(_data_settings(data, max_length), on_bad_row="skip")
    rows = load_conversations(settings, words).train
    random.Random(SEED).shuffle(rows)
    chats = list(islice(make_chats(rows, kind, words, max_length), 2 * num_rows))
    _write_rows(work / "rows.jsonl", chats)
    pairs = _tokens(work / "rows.jsonl", words, max_length)
    kept = [place for place, (_, labels) in enumerate(pairs) if set(labels) != {IGNORED}]
    if len(kept) < num_rows:
        raise SystemExit(
            f"{data}: found {len(kept)} rows for `--rows {kind}`, accepts {num_rows} or more: "
            "lower --steps or --batch"
        )
    kept = kept[:num_rows]
    pairs = [pairs[place] for place in kept]
    _write_rows(work / "rows.jsonl", [chats[place] for place in kept])
    (work / "tokens.json").write_text(json.dumps(pairs), encoding="utf-8")
    config = write_checkpoints(work, words, shape)
    lengths = [len(ids) for ids, _ in pairs]
    share = sum(len(labels) - labels.count(IGNORED) for _, labels in pairs) / sum(lengths)
    return Workload(
        num_rows=num_rows,
        mean_tokens=sum(lengths) / num_rows,
        longest=max(lengths),
        label_share=share,
        flops_per_token=flops_per_token(config, share),
    )


def write_checkpoints(work: Path, tokenizer: PreTrainedTokenizerBase, shape: str) -> GPT2Config:
    """Save `rough`, with GPT-2's dropout, `smooth`, the same without, and `adapter.safetensors`."""
    width, layers, heads, vocabulary = SHAPES[shape]
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = GPT2Config(
        vocab_size=max(vocabulary, len(tokenizer)), n_positions=CONTEXT, n_embd=width,
        n_layer=layers, n_head=heads, pad_token_id=tokenizer.pad_token_id, **ends,
    )  # fmt: skip
    set_seed(SEED)
    model = GPT2LMHeadModel(config)
    rough, smooth = work / "rough", work / "smooth"
    disable_progress_bar()
    model.save_pretrained(rough, max_shard_size="100GB")
    tokenizer.save_pretrained(rough)
    tokenizer.save_pretrained(smooth)
    os.link(rough / "model.safetensors", smooth / "model.safetensors")
    without = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    saved = json.loads((rough / "config.json").read_text(encoding="utf-8"))
    (smooth / "config.json").write_text(json.dumps(saved | without), encoding="utf-8")
    with quiet_peft():
        adapted = get_peft_model(model, lora_config(0.0))
    save_file(get_peft_model_state_dict(adapted), work / "adapter.safetensors")
    return config


def lora_config(dropout: float, *, is_quantized: bool = False) -> LoraConfig:
    """Make the adapter's config; GPT-2's layers are `Conv1D` until they are quantized."""
    return LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=dropout,
        target_modules=TARGETS, fan_in_fan_out=not is_quantized,
    )  # fmt: skip


def make_chats(
    rows: Sequence[Conversation], kind: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Chat]:
    """Make messages of conversations.

    Args:
        rows: As read.
        kind: `as-is`; `prompt-heavy`, where the last fifth of a conversation is learnt, as the
            continuation of the rest; or `long`, where several conversations become one.
        tokenizer: Measures what is put together.
        max_length: Tokens that long rows have at most; their lengths are spread evenly below.
    """
    chats = ([{**message} for message in row.messages] for row in rows if row.messages)
    if kind == "as-is":
        yield from chats  # type: ignore[misc]
        return
    draw = random.Random(SEED)
    joined: Chat = []
    num_tokens, wanted = 0, draw.randint(1, max_length)
    for chat in chats:
        text = "\n".join(message["content"] for message in chat)
        if kind == "prompt-heavy":
            cut = int(PROMPT_SHARE * len(text))
            if text[:cut].strip() and text[cut:].strip():
                yield [
                    {"role": "user", "content": text[:cut]},
                    {"role": "assistant", "content": text[cut:]},
                ]
            continue
        joined += chat  # type: ignore[arg-type]
        num_tokens += len(tokenizer(text)["input_ids"])
        if num_tokens >= wanted:
            yield joined
            joined, num_tokens, wanted = [], 0, draw.randint(1, max_length)


def _write_rows(file: Path, chats: Sequence[Chat]) -> None:
    lines = [json.dumps({"messages": chat}) for chat in chats]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tokens(
    file: Path, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of every row, by the functions that the recipe calls."""
    settings = _data_settings(file, max_length)
    template = choose_template(tokenizer, settings.template)
    rows = load_conversations(settings).train
    found = tokenize(rows, tokenizer, template, settings)
    return [(list(map(int, row.input_ids)), list(map(int, row.labels))) for row in found]


def _data_settings(file: Path, max_length: int) -> DataSettings:
    return DataSettings(str(file), eval_fraction=0.0, max_length=max_length)


# --- what it costs -------------------------------------------------------------------------------


def flops_per_token(config: GPT2Config, label_share: float) -> float:
    """Floating-point operations that no implementation can do without.

    A block has 12 H^2 weights; a weight costs a token 2 operations forward, and 2 backward for the
    gradient of its input. Being frozen, it needs no gradient of its own. The output layer has H V
    weights, and only what has a label goes through it:

        4 * (12 L H^2 + label_share * H V)

    Attention (with 160 tokens about 2 %), the adapter (1 %) and recomputing are left out.
    """
    width = config.n_embd
    blocks = 12 * config.n_layer * width**2
    return 4 * (blocks + label_share * width * config.vocab_size)


def matmul_limit(
    config: GPT2Config, workload: Workload, batch: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Measure how fast `torch.mm` does the products of a whole step, one after the other.

    Every layer has weights of its own, as in a model, so that none is left in the cache.

    Returns:
        FLOP/s, the median of several steps.
    """
    num_tokens = min(round(batch * workload.mean_tokens), _MOST_ROWS)
    num_labels = max(1, round(num_tokens * workload.label_share))
    width = config.n_embd
    block = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    shapes = [(num_tokens, *shape) for _ in range(config.n_layer) for shape in block]
    shapes.append((num_labels, width, config.vocab_size))
    make = partial(torch.randn, dtype=dtype, device=device)
    weights = [make(inner, outer) for _, inner, outer in shapes]
    inputs = {(rows, size): make(rows, size) for rows, *sizes in shapes for size in sizes}
    seconds = []
    for _ in range(1 + _REPEATS):
        settle(device)
        start = time.perf_counter()
        for (rows, inner, _), weight in zip(shapes, weights, strict=True):
            torch.mm(inputs[rows, inner], weight)
        for (rows, _, outer), weight in zip(reversed(shapes), reversed(weights), strict=True):
            torch.mm(inputs[rows, outer], weight.t())
        settle(device)
        seconds.append(time.perf_counter() - start)
    # The first one warms up.
    return sum(4 * math.prod(shape) for shape in shapes) / statistics.median(seconds[1:])


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
