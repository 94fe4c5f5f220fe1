"""The benchmark of fine-tuning: all sides train on the same rows, and figures are what they say."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DATA = BENCHMARKS.parent / "data"
TOKENIZER = DATA / "checkpoints" / "tiny-gpt2"
FILES = ["--data", str(DATA / "instructions.jsonl"), "--tokenizer", str(TOKENIZER)]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("sft_throughput")


@pytest.fixture(scope="module")
def workload() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("sft_workload")


# --- rows ----------------------------------------------------------------------------------------


def conversations(num_rows: int) -> list[Any]:
    from sft_kit.data.rows import Conversation, Message, Where

    words = ("the", "bird", "sings", "at", "night", "over", "a", "river")
    rows = []
    for row in range(num_rows):
        question = " ".join(words[: 2 + row % 5])
        answer = " ".join(words * (1 + row % 7))
        messages: tuple[Message, ...] = (
            {"role": "user", "content": f"{question} {row}"},
            {"role": "assistant", "content": answer},
        )
        rows.append(Conversation(messages, Where("rows", row + 1)))
    return rows


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


def test_a_prompt_heavy_row_keeps_the_text_and_learns_its_last_fifth(
    workload: ModuleType, tokenizer: Any
) -> None:
    rows = conversations(20)
    for row, chat in zip(
        rows, workload.make_chats(rows, "prompt-heavy", tokenizer, 64), strict=True
    ):
        prompt, completion = (message["content"] for message in chat)
        assert prompt + completion == "\n".join(one["content"] for one in row.messages)
        assert len(completion) / len(prompt + completion) == pytest.approx(0.2, abs=0.05)
        assert [message["role"] for message in chat] == ["user", "assistant"]


def test_long_rows_are_whole_conversations_in_a_row(workload: ModuleType, tokenizer: Any) -> None:
    rows = conversations(300)
    chats = list(workload.make_chats(rows, "long", tokenizer, 256))
    put_back = [message for chat in chats for message in chat]
    given = [message for row in rows for message in row.messages]
    assert put_back == given[: len(put_back)]
    assert len(given) - len(put_back) < 60
    lengths = [
        sum(len(tokenizer(message["content"])["input_ids"]) for message in chat) for chat in chats
    ]
    last = max(len(tokenizer(row.messages[1]["content"])["input_ids"]) for row in rows) + 20
    assert max(lengths) < 256 + last
    assert min(lengths) < 80
    assert max(lengths) > 200
    assert len({length // 32 for length in lengths}) >= 6  # spread over all of the range


# --- figures -------------------------------------------------------------------------------------


def test_the_operations_of_a_token_are_those_that_torch_counts(workload: ModuleType) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=3, n_head=2)
    model = GPT2LMHeadModel(config).requires_grad_(requires_grad=False)
    embedded = torch.randn(2, 5, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded).logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(counts[op] for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert products == 2 * 5 * workload.flops_per_token(config, 1.0)


def test_gpt2_costs_what_is_written_on_the_envelope(workload: ModuleType) -> None:
    from transformers import GPT2Config

    # 85 M weights in the blocks and 38.6 M in the output layer, of which 76 % count.
    assert workload.flops_per_token(GPT2Config(), 0.76) == pytest.approx(0.457e9, rel=1e-3)


# --- running -------------------------------------------------------------------------------------


def test_the_benchmark_says_what_it_lacks(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = {
        "--data: found no": ["--data", "nowhere"],
        "--tokenizer: found no": [*FILES[:3], "nowhere"],
        "--sides: found trl-worst, accepts trl-default": [*FILES, "--sides", "trl-worst"],
        "which is never quantized": [*FILES, "--sides", "bare-fp32", "--quantization", "nf4"],
        "accepts 2 to 1024": [*FILES, "--max-length", "2000"],
        "--warmup: found 0": [*FILES, "--warmup", "0"],
    }
    for message, arguments in faults.items():
        with pytest.raises(SystemExit) as ended:
            benchmark.main(arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_without_arguments_it_measures_gpt2_on_the_rows_of_the_project(
    benchmark: ModuleType, workload: ModuleType, tokenizer: Any, tmp_path: Path
) -> None:
    options = benchmark.parse([])
    assert [str(options.data), str(options.tokenizer)] == [FILES[1], FILES[3]]
    assert (options.shape, options.rows, options.quantization) == ("gpt2", "as-is", "none")
    (tmp_path / "small").mkdir()
    config = workload.write_checkpoints(tmp_path / "small", tokenizer, "tiny")
    assert config.vocab_size == len(tokenizer)
    assert workload.SHAPES["gpt2"] == (768, 12, 12, 50257)  # Radford et al. 2019, its smallest


def test_keys_of_the_recipe_become_sides_and_quantized_ones_have_no_float32(
    benchmark: ModuleType,
) -> None:
    def sides(*arguments: str) -> list[str]:
        found: list[str] = benchmark.parse([*FILES, *arguments]).sides
        return found

    everything = ["trl-default", "trl-best", "trl-fp32", "bare-fp32", "ours"]
    assert sides() == everything
    assert sides("--quantization", "int8") == ["trl-default", "trl-best", "ours"]
    changed = sides("--ours", "model.fused=false", "--sides", "ours", "trl-tuned")
    assert changed == ["ours", "trl-tuned", "ours model.fused=false"]
    assert sides("--ablate") == [*everything, *(f"ours {key}" for key in benchmark.ABLATIONS)]


def test_the_recipe_has_the_keys_that_are_changed(benchmark: ModuleType) -> None:
    from sft_kit.config.loading import read_config

    recipe = BENCHMARKS.parent / "recipes" / "sft_gpt2_lora.py"
    default = read_config(recipe, [recipe.with_suffix(".yaml")], [])
    for key in benchmark.ABLATIONS:
        name, _, value = key.partition("=")
        section, _, setting = name.partition(".")
        changed = read_config(recipe, [recipe.with_suffix(".yaml")], [key])
        assert changed.sections[section] != default.sections[section], key
        assert json.dumps(changed.sections[section][setting]).strip('"') == value


def test_too_few_rows_are_named(benchmark: ModuleType, tmp_path: Path) -> None:
    rows = [{"instruction": f"Count to {row}.", "output": f"{row}."} for row in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(SystemExit, match="found 5 rows for `--rows as-is`, accepts 24 or more"):
        benchmark.main(["--data", str(file), *FILES[2:], "--shape", "tiny", "--steps", "1"])


def test_another_loss_curve_and_other_rows_stop_the_benchmark(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {
        side: {"digests": ["a", "b", "c"], "losses": [3.0, 2.5, 2.25]}
        for side in ("trl-fp32", "trl-best", "ours")
    }
    monkeypatch.setattr(benchmark, "run_side", lambda job: found[job.side])
    job = benchmark.Job("", "", 9, 2, 8, 512, "none", 1, {})
    found["ours"]["losses"] = [3.0, 2.5, 2.25 + benchmark.MOST_MEAN_APART]
    gap = benchmark.compare_losses(job, 3)["gaps"]["ours"]
    assert gap == {
        "max": pytest.approx(benchmark.MOST_MEAN_APART),
        "mean": pytest.approx(benchmark.MOST_MEAN_APART / 3),
    }
    assert "losses of 3 steps beside trl-fp32" in capsys.readouterr().out
    for losses in ([3.0, 2.5 - 2 * benchmark.MOST_APART, 2.25], [3.0, 2.5, float("nan")]):
        found["ours"]["losses"] = losses
        with pytest.raises(SystemExit, match="learns something else"):
            benchmark.compare_losses(job, 3)
    found["ours"]["digests"] = ["a", "c", "b"]
    with pytest.raises(SystemExit, match="ours was given other rows than trl-fp32"):
        benchmark.compare_losses(job, 3)
    assert replace(job, side="ours").warmup == 2


@pytest.mark.slow
def test_the_benchmark_measures_both_sides_on_the_same_rows(tmp_path: Path) -> None:
    file, plot = tmp_path / "figures.json", tmp_path / "cost.png"
    options = ["--shape", "tiny", "--sides", "trl-default", "ours", "--batch", "4"]
    options += ["--steps", "3", "--rounds", "1", "--check-steps", "4", "--peak-flops", "1e12"]
    options += ["--threads", "1", "--json", str(file), "--plot", str(plot)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "sft_throughput.py"), *FILES, *options],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text(encoding="utf-8"))
    workload = record["workload"]
    assert workload["num_rows"] == 4 * (2 + 3)
    assert list(record["figures"]) == ["trl-default", "ours"]
    for side, row in record["figures"].items():
        assert row["tokens_per_second"] > 0
        assert row["peak_bytes"] > 1e8
        flops = row["tokens_per_second"] * workload["flops_per_token"]
        assert row["model_flops_utilisation"] == pytest.approx(flops / 1e12)
        assert row["share_of_limit"] == pytest.approx(flops / max(record["limits"].values()))
        assert f"{row['tokens_per_second']:,.0f}" in done.stdout
        (steps,) = record["steps"][side]
        seconds = sum(step["seconds"] for step in steps)
        tokens = sum(step["tokens"] for step in steps)
        assert len(steps) == 3
        assert row["tokens_per_second"] == pytest.approx(tokens / seconds)
        assert all(step["labels"] < step["tokens"] <= step["padded"] for step in steps)
    assert set(record["check"]["losses"]) == {"trl-fp32", "trl-best", "ours"}
    assert all(len(losses) == 4 for losses in record["check"]["losses"].values())
    assert plot.stat().st_size > 10_000
