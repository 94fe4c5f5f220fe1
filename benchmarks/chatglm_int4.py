"""Packed ChatGLM2 layers beside dense and NF4 ones: memory, decoding and a LoRA training step.

    python benchmarks/chatglm_int4.py                       # one layer of the 6B model on the CPU
    python benchmarks/chatglm_int4.py --device cuda         # all 28 layers
    python benchmarks/chatglm_int4.py --hidden 128 --ffn 256 --rounds 1     # does it run?

All variants hold the same random weights; their outputs are compared before anything is timed. On
a CPU they are timed in turn, round by round, so that a busy machine is unfair to none; elsewhere
one after the other, so that each has its own peak of memory. Figures are medians.

`int4` is packed, `fast` the same with torch's int4 kernel (decoding in bfloat16 on a CPU only),
`dense` a plain linear layer, `nf4` bitsandbytes on top of the dense weights.
"""

import argparse
import gc
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from sft_kit.models.adapters import quiet_peft
from sft_kit.models.chatglm import ChatGLMConfig, ChatGLMForCausalLM
from sft_kit.models.chatglm.fast_int4 import use_fast_int4
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.chatglm.quantizer import RowwiseQuantConfig, RowwiseQuantizer
from sft_kit.models.quantization import guard_cpu_packing

HEAD_DIM, KEY_VALUE_HEADS = 128, 2
ON_CPU = "int4:float32 dense:float32 int4:bfloat16 dense:bfloat16 fast:bfloat16"
ON_DEVICE = "int4:float16 nf4:float16 dense:float16"
WEIGHTS = ("int4", "fast", "dense", "nf4")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
NF4_TOLERANCE = 0.15  # of the weights, since it rounds them anew; 0.1 on the uniform ones here
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass
class Figures:
    """What was measured of one variant; times in milliseconds, None where it has no part."""

    variant: str
    layer_bytes: int
    error: float
    decode_ms: float | None = None
    step_ms: float | None = None
    step_tokens_per_second: float | None = None
    step_peak_bytes: int | None = None


def main(arguments: Sequence[str] | None = None) -> list[Figures]:
    """Measure, print the table, write the JSON."""
    options = parse(arguments)
    variants = options.variants
    groups = [variants] if options.device == "cpu" else [[variant] for variant in variants]
    figures: list[Figures] = []
    reference: torch.Tensor | None = None
    for group in groups:
        models = {variant: build(variant, options) for variant in group}
        for variant, model in models.items():
            logits = model(prompt(options, model)).logits.detach().float().cpu()
            reference = logits if reference is None else reference
            figures.append(Figures(variant, layer_bytes(model), check(variant, logits, reference)))
        measure(models, {f.variant: f for f in figures}, options)
        del models, model
        gc.collect()
        if options.device != "cpu":
            getattr(torch, torch.device(options.device).type).empty_cache()
    show(figures, options)
    if options.json:
        record = {
            "options": {name: str(value) for name, value in vars(options).items()},
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in PACKAGES},
            "figures": [asdict(row) for row in figures],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return figures


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; defaults depend on the device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--hidden", type=int, default=4096, help="a multiple of 128")
    parser.add_argument("--ffn", type=int, default=13696)
    parser.add_argument("--layers", type=int, help="default: 1 on a CPU, 28 elsewhere")
    parser.add_argument("--vocabulary", type=int, help="default: 512 on a CPU, 65024 elsewhere")
    parser.add_argument("--tokens", type=int, default=64, help="of a training step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", help=f"weights:dtype, such as {ON_CPU}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    if options.device == "auto":
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        options.device = found.type if found else "cpu"
    on_cpu = options.device == "cpu"
    options.layers = options.layers or (1 if on_cpu else 28)
    options.vocabulary = options.vocabulary or (512 if on_cpu else 65024)
    options.variants = options.variants or (ON_CPU if on_cpu else ON_DEVICE).split()
    if options.hidden % HEAD_DIM:
        parser.error(f"--hidden: found {options.hidden}; accepts multiples of {HEAD_DIM}")
    for variant in options.variants:
        weights, _, dtype = variant.partition(":")
        if weights not in WEIGHTS or dtype not in TOLERANCE:
            accepted = f"one of {', '.join(WEIGHTS)}, a colon and one of {', '.join(TOLERANCE)}"
            parser.error(f"--variants: found {variant!r}; accepts {accepted}")
    return options


# --- models --------------------------------------------------------------------------------------


def build(variant: str, options: argparse.Namespace) -> ChatGLMForCausalLM:
    """Make the model of a variant, with the weights that all have."""
    weights, _, name = variant.partition(":")
    dtype = getattr(torch, name)
    model = packed_model(options, dtype)
    if weights == "fast":
        use_fast_int4(model)
    elif weights == "dense":
        model.dequantize(dtype)
    elif weights == "nf4":
        for path, layer in list(model.named_modules()):
            if isinstance(layer, RowwiseQuantLinear):
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, nf4_layer(layer, dtype))
        guard_cpu_packing(model)
    return model.requires_grad_(False).eval()


def packed_model(options: argparse.Namespace, dtype: torch.dtype) -> ChatGLMForCausalLM:
    """Make a packed model with random weights, without ever holding the dense ones."""
    config = ChatGLMConfig(
        hidden_size=options.hidden, ffn_hidden_size=options.ffn, num_layers=options.layers,
        num_attention_heads=options.hidden // HEAD_DIM, kv_channels=HEAD_DIM,
        multi_query_group_num=min(KEY_VALUE_HEADS, options.hidden // HEAD_DIM),
        multi_query_attention=True, add_qkv_bias=True, padded_vocab_size=options.vocabulary,
        seq_length=2048, layernorm_epsilon=1e-5, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    quantizer = RowwiseQuantizer(RowwiseQuantConfig(4), pre_quantized=True)
    with torch.device("meta"):
        model = ChatGLMForCausalLM(config)
        quantizer.preprocess_model(model)
    model.to(dtype).to_empty(device=options.device)
    model.model.rotary_emb = GlmRotaryEmbedding(config).to(options.device)
    draw = torch.Generator(options.device).manual_seed(0)
    for path, tensor in model.named_parameters():
        if tensor.dtype == torch.int8:
            tensor.random_(-128, 128, generator=draw)
        elif path.endswith("weight_scale"):
            tensor.detach().fill_(0.004)  # times integers of +-7.5: weights with deviation 0.02
        elif "norm" in path:
            tensor.detach().fill_(1.0)
        else:
            values = torch.empty(tensor.shape, device=options.device)
            tensor.data = values.normal_(0, 0.02, generator=draw).to(dtype)
    model.hf_quantizer = quantizer
    return model


def nf4_layer(layer: RowwiseQuantLinear, dtype: torch.dtype) -> Linear4bit:
    """Round a packed layer's weights to NF4."""
    with torch.device("meta"):
        linear = Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None,
            compute_dtype=dtype, quant_type="nf4",
        )  # fmt: skip
    dense = layer.dequantize(dtype)
    weight = Params4bit(dense.cpu(), requires_grad=False, quant_type="nf4")
    linear.weight = weight.to(dense.device)
    linear.bias = layer.bias
    restored = dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()
    error = (restored - dense.float()).norm() / dense.float().norm()
    if not error <= NF4_TOLERANCE:
        raise SystemExit(f"nf4 holds something else: relative error of the weights {error:.2g}")
    return linear


def layer_bytes(model: ChatGLMForCausalLM) -> int:
    """Bytes of the decoder layers' weights, with the fast kernel's own."""
    total = sum(parameter.nbytes for parameter in model.model.layers.parameters())
    for module in model.modules():
        product = getattr(module, "no_grad_product", None)
        if product is not None:
            total += product.packed.nbytes + product.scales.nbytes
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes
    return total


def prompt(options: argparse.Namespace, model: nn.Module) -> torch.Tensor:
    """Ids of the tokens that all variants see."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, options.vocabulary, (1, options.tokens), generator=draw)
    return ids.to(next(model.parameters()).device)


def check(variant: str, logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the relative error, and stop where it is more than rounding explains.

    NF4 holds other weights; they were compared one by one.
    """
    weights, _, dtype = variant.partition(":")
    error = float((logits - reference).norm() / reference.norm())
    if weights != "nf4" and not error <= TOLERANCE[dtype]:
        raise SystemExit(f"{variant} computes something else: relative error {error:.2g}")
    return error


# --- measuring -----------------------------------------------------------------------------------


def measure(
    models: dict[str, ChatGLMForCausalLM],
    figures: dict[str, Figures],
    options: argparse.Namespace,
) -> None:
    """Fill in the figures of a group of models, timed in turn."""
    decoding = {name: decode(model, options) for name, model in models.items()}
    for name, milliseconds in in_turn(decoding, options).items():
        figures[name].decode_ms = milliseconds
    trained = {name: model for name, model in models.items() if not name.startswith("fast")}
    steps = {name: train_step(model, options) for name, model in trained.items()}
    for name, milliseconds in in_turn(steps, options).items():
        figures[name].step_ms = milliseconds
        figures[name].step_tokens_per_second = options.tokens / milliseconds * 1e3
        figures[name].step_peak_bytes = peak_bytes(steps[name], options.device)


def decode(model: ChatGLMForCausalLM, options: argparse.Namespace) -> Callable[[], object]:
    """Forward of one token."""
    ids = prompt(options, model)[:, :1]

    @torch.no_grad()
    def run() -> object:
        return model(ids, use_cache=False).logits

    return run


def train_step(model: ChatGLMForCausalLM, options: argparse.Namespace) -> Callable[[], object]:
    """Forward, backward and update of a LoRA on all linear layers."""
    torch.manual_seed(0)
    with quiet_peft():
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=TARGETS))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4)
    ids = prompt(options, model)

    def run() -> object:
        loss = adapted(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def in_turn(runs: dict[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of each, one warm-up before."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            wait(options.device)
            start = time.perf_counter()
            run()
            wait(options.device)
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def wait(device: str) -> None:
    """Let an accelerator finish what it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Most bytes held at once: with the model on an accelerator, on top of it on a CPU."""
    if device != "cpu":
        memory = getattr(torch, torch.device(device).type)
        memory.reset_peak_memory_stats()
        run()
        return int(memory.max_memory_allocated())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    assert record.profiler is not None
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


def show(figures: Sequence[Figures], options: argparse.Namespace) -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    where = options.device if options.device != "cpu" else f"CPU with {threads} thread(s)"
    what = "without" if options.device == "cpu" else "with"
    table = Table(
        title=f"{options.layers} ChatGLM2 layer(s) of {options.hidden}/{options.ffn} on {where}",
        caption=f"medians of {options.rounds} rounds; one token is decoded, a step trains a LoRA "
        f"on {options.tokens} tokens; its peak is {what} the model's own weights",
    )
    for column in (
        "weights",
        "layers MB",
        "error",
        "token ms",
        "step ms",
        "tokens/s",
        "peak MB",
    ):
        justify: Literal["left", "right"] = "left" if column == "weights" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in figures:
        table.add_row(
            row.variant, number(row.layer_bytes, 1e6), f"{row.error:.0e}", number(row.decode_ms),
            number(row.step_ms), number(row.step_tokens_per_second),
            number(row.step_peak_bytes, 1e6),
        )  # fmt: skip
    Console().print(table)


def number(value: float | None, unit: float = 1.0) -> str:
    """Write a figure in a unit, or a dash."""
    if value is None:
        return "-"
    return f"{value / unit:,.{0 if value / unit >= 1000 else 1}f}"


if __name__ == "__main__":
    main()
