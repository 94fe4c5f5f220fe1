"""Each benchmark runs as its help says, and what it compares computes the same."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..recipes.conftest import save_bert

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# hidden 128 is one head of 128 for queries, keys and values; the rest from ChatGLM2's layer:
# four square matrices, three of them with bias, 2 * 256 rows up, 256 columns down, two norms.
SQUARES, BIASES, MLP, NORMS = 4 * 128 * 128, 3 * 128, 3 * 128 * 256, 2 * 128
ROWS = 4 * 128 + 2 * 256 + 128


def layer_bytes(weights: str, num_bytes: int) -> int:
    """Count by hand; int4 packs two weights into a byte; a row has a float32 scale."""
    if weights == "dense":
        return (SQUARES + BIASES + MLP + NORMS) * num_bytes
    return (SQUARES + MLP) // 2 + ROWS * 4 + (BIASES + NORMS) * num_bytes


def test_every_benchmark_is_run_here() -> None:
    found = {path.name for path in BENCHMARKS.glob("*.py")}
    worlds = {"ppo_worlds.py", "ppo_exact_optimum.py", "ppo_vs_trl.py", "ppo_trl_side.py"}
    spelling = {"spelling.py", "spelling_model.py", "spelling_scores.py"}
    pretraining = {"masked_lm.py", "pretraining_runs.py"} | spelling
    pretraining |= {"masking_speed.py", "pretraining_throughput.py", "tiny_shakespeare.py"}
    tuning = {"sft_throughput.py", "sft_sides.py", "sft_workload.py"}  # test_sft_throughput.py
    others = {"chatglm_int4.py", "classification.py", "plan_accuracy.py"}
    others |= {"data_preparation.py", "start_time.py", "stage_throughput.py"}
    assert found == others | worlds | pretraining | tuning


@pytest.mark.slow
def test_the_int4_benchmark_measures_every_variant_and_finds_them_alike(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    sizes = ["--device", "cpu", "--hidden", "128", "--ffn", "256", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "chatglm_int4.py"), *sizes, "--json", str(file)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text(encoding="utf-8"))
    assert set(record) == {"options", "threads", "processor", "versions", "figures"}
    assert set(record["versions"]) == {"torch", "transformers", "peft", "bitsandbytes"}
    figures = {figure.pop("variant"): figure for figure in record["figures"]}
    assert list(figures) == [
        "int4:float32", "dense:float32", "int4:bfloat16", "dense:bfloat16", "fast:bfloat16",
    ]  # fmt: skip
    for variant, figure in figures.items():
        weights, dtype = variant.split(":")
        assert variant in done.stdout
        assert set(figure) == {
            "layer_bytes", "error", "decode_ms", "step_ms", "step_tokens_per_second",
            "step_peak_bytes",
        }  # fmt: skip
        # bfloat16 rounds to 1 part in 2^9, a few times over; the first float32 is the reference.
        low, high = (0, 1e-4) if dtype == "float32" else (1e-4, 5e-2)
        assert low <= figure["error"] <= high
        if weights == "fast":  # it is for decoding only, and adds its own layout of the weights
            assert figure["layer_bytes"] > figures["int4:bfloat16"]["layer_bytes"]
            assert figure.pop("step_ms") is figure.pop("step_tokens_per_second") is None
            assert figure.pop("step_peak_bytes") is None
        else:
            expected = layer_bytes(weights, 4 if dtype == "float32" else 2)
            assert figure["layer_bytes"] == expected
        assert all(value > 0 for name, value in figure.items() if name != "error")


@pytest.mark.slow
def test_the_optimum_benchmark_prints_what_it_writes(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "ppo_exact_optimum.py")]
    options = ["--beta", "0.2", "--seed", "1", "--reward-token", "5", "--stop-bonus", "0"]
    sizes = ["--minibatches", "2", "--episodes", "16", "--updates", "2", "--epochs", "3"]
    file = tmp_path / "figures.json"
    tables = subprocess.run(
        [*script, *options, *sizes, "--json", str(file)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert tables.returncode == 0, tables.stderr
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["optimizer_steps"] == 2 * 3 * 2
    assert record["task"]["reward_token"] == 5
    assert record["j"] == pytest.approx(record["expected_reward"] - 0.2 * record["kl"])
    room = record["best_j"] - record["reference_j"]
    assert record["norm"] == pytest.approx((record["j"] - record["reference_j"]) / room)
    for name in ("norm", "expected_reward", "kl", "j", "best_j"):
        assert f"{record[name]:.4f}" in tables.stdout
    printed = subprocess.run(
        [*script, *options, *sizes, "--json"], capture_output=True, text=True, timeout=300
    )
    again = json.loads(printed.stdout)
    assert {**again, "cpu_seconds_per_update": 0} == {**record, "cpu_seconds_per_update": 0}


def test_the_comparison_with_trl_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    comparison = importlib.import_module("ppo_vs_trl")
    for arguments in ([], ["--trl", str(tmp_path)], ["--install", str(BENCHMARKS / "env")]):
        assert comparison.main(arguments) == 0
        said = capsys.readouterr().out
        assert said.startswith("skipped: ")
        assert "--install" in said or "choose another folder" in said
    assert not list(tmp_path.iterdir())
    assert not (BENCHMARKS / "env").exists()


@pytest.mark.slow
def test_the_classification_benchmark_collects_what_its_run_has_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sst2").mkdir(parents=True)
    for name, num_rows in (("train", 64), ("dev", 16)):
        rows = [
            f"{number} {('bad', 'good')[number % 2]} {name}\t{number % 2}"
            for number in range(num_rows)
        ]
        (data / "sst2" / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (data / "checkpoints").mkdir()
    (data / "checkpoints" / "minilm_l6_fp16").symlink_to(save_bert(tmp_path / "bert", 0.1))
    folders = ["--work", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    command = [sys.executable, str(BENCHMARKS / "classification.py"), "--data", str(data), *folders]
    done = subprocess.run([*command, "sst2_lora"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "sst2_lora.json").read_text(encoding="utf-8"))
    metrics = json.loads((tmp_path / "runs" / "sst2_lora_0" / "metrics.json").read_text())
    assert result["figures"]["eval_accuracy"] == round(metrics["eval_accuracy"], 4)
    assert result["majority"] == {
        "majority_accuracy": 0.5,
        "majority_macro_f1": pytest.approx(1 / 3, abs=5e-5),  # four digits are written
    }
    assert str(tmp_path) not in json.dumps(result)


# --- pretraining ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 300 short lines in blocks of six, with Chinese for what needs it."""
    words = ("rose", "moon", "river", "stone", "bird", "snow", "light", "night")
    lines = [
        f"The {words[number % 8]} and the {words[number * 5 % 7]} sing {words[number // 8 % 8]}."
        for number in range(300)
    ]
    lines[::6] = ["他和她再在河里，得到它的花。"] * 50
    blocks = ["\n".join(lines[first : first + 6]) for first in range(0, len(lines), 6)]
    path = tmp_path_factory.mktemp("verses") / "verses.txt"
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_recipe_learns_tiny_shakespeare_as_a_plain_loop_does(
    verses: Path, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    script = [sys.executable, str(BENCHMARKS / "tiny_shakespeare.py"), "--data", str(verses)]
    done = subprocess.run(
        [*script, "--steps", "50", "--rounds", "1", "--json", str(file)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    assert list(figures) == ["recipe", "plain", "fused"]
    for side, row in figures.items():
        assert row["loss"] == pytest.approx(figures["plain"]["loss"], abs=2e-3), side
        assert row["losses"] == [row["loss"]]
        assert row["loss"] < 2.5  # nats of about 30 different characters: 3.4
        assert min(row["seconds"], row["cpu_seconds"]) > 0
        assert f"{row['loss']:.4f}" in done.stdout


def test_tiny_shakespeare_says_which_text_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SFT_KIT_REAL_DATA", raising=False)
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("tiny_shakespeare")
    with pytest.raises(SystemExit):
        benchmark.main([])
    assert "--data: found nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_throughput_benchmark_finds_both_pipelines_alike_and_measures_them(
    verses: Path, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    checkpoints = BENCHMARKS.parent / "data" / "checkpoints"
    tokenizers = ["--bert", str(checkpoints / "tiny-bert-chinese")]
    tokenizers += ["--gpt2", str(checkpoints / "tiny-gpt2")]
    script = [sys.executable, str(BENCHMARKS / "pretraining_throughput.py"), "--text", str(verses)]
    done = subprocess.run(
        [*script, *tokenizers, "--shape", "tiny", "--steps", "3", "--rounds", "1", "--json", file],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    assert {name: list(sides) for name, sides in figures.items()} == {
        "mlm": ["ours", "theirs"],
        "clm": ["ours", "theirs"],
    }
    for sides in figures.values():
        for row in sides.values():
            assert min(row.values()) > 0
            assert f"{row['tokens_per_second']:,.0f}" in done.stdout


@pytest.mark.slow
def test_the_masking_benchmark_measures_every_corruption(verses: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    script = [sys.executable, str(BENCHMARKS / "masking_speed.py"), "--text", str(verses)]
    done = subprocess.run(
        [*script, "--rows", "32", "--rounds", "1", "--json", str(file)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    speeds = json.loads(file.read_text(encoding="utf-8"))["tokens_per_second"]
    ours = {name for name in speeds if not name.startswith("transformers")}
    assert len(ours) == 10
    for name, row in speeds.items():
        assert set(row) == ({"corrupt", "batch"} if name in ours else {"batch"})
        assert min(row.values()) > 0
        assert f"{row['batch'] / 1e6:.2f}" in done.stdout


@pytest.mark.slow
def test_the_plan_benchmark_plans_a_recipe_and_is_within_its_promise(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "plan_accuracy.py"), "classify_gpt2_head"]
    done = subprocess.run(
        [*command, "--clock", "cpu_seconds", "--json", str(file)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "classify_gpt2_head" in done.stdout
    (row,) = json.loads(file.read_text(encoding="utf-8"))["recipes"]
    assert row["memory_planned"] == pytest.approx(row["memory_taken"], rel=0.15)
    assert row["seconds_planned"] == pytest.approx(row["seconds_taken"], rel=0.25)
    assert row["disk_planned"] == pytest.approx(row["disk_taken"], rel=0.15)


@pytest.mark.slow
def test_the_preparation_benchmark_finds_both_sides_alike_and_measures_them(tmp_path: Path) -> None:
    turns = [
        [("human", f"What is {number}?"), ("gpt", f"The number {number}.\nIt is even." * 3)]
        for number in range(40)
    ]
    rows = [{"items": [{"from": who, "value": text} for who, text in row]} for row in turns]
    data, file = tmp_path / "rows.json", tmp_path / "figures.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    tokenizer = BENCHMARKS.parent / "data" / "checkpoints" / "tiny-gpt2"
    command = [sys.executable, str(BENCHMARKS / "data_preparation.py"), "--data", str(data)]
    command += ["--tokenizer", str(tokenizer), "--rounds", "1", "--grow", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["equal_rows"] == 1
    assert {side: row["num_rows"] for side, row in record["figures"].items()} == {
        "ours": 40,
        "theirs": 40,
    }
    (memory,) = record["memory"]
    # As many bytes as asked for either way, and a list has one more between two rows.
    assert 40 < memory["list_rows"] < memory["lines_rows"] < 1.01 * memory["list_rows"]
    assert f"{record['figures']['theirs']['first_rows_per_second']:,.0f}" in done.stdout


@pytest.mark.slow
def test_the_start_benchmark_tells_three_times(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "start_time.py"), "--rounds", "1"]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    assert list(figures) == ["imports", "first step", "check"]
    assert figures["check"]["cpu_seconds"] < figures["imports"]["cpu_seconds"]
    assert figures["imports"]["cpu_seconds"] < figures["first step"]["cpu_seconds"]
