"""Every recipe runs, leaves exactly the files it should, and what it saved is what it trained."""

import getpass
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
STEMS = sorted(path.stem for path in RECIPES.glob("*.py"))

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
WHOLE_MODEL = {"config.json", "generation_config.json", "model.safetensors"}
RECORD = {"README.md", "run.yaml", "metrics.json", "log.jsonl", "loss.png", "learning_rate.png"}
TRAINER_STATE = {
    *("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "manifest.json"),
}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def checkpoints(steps: list[int], weights: set[str]) -> set[str]:
    names = weights | TRAINER_STATE
    return {f"checkpoint-{step}/{name}" for step in steps for name in names}


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def read_record(folder: Path) -> dict:
    return yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))


def probe_logits(model):
    import torch

    ids = torch.tensor([[5, 9, 200, 17, 33, 0, 301, 44]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def check_images(folder: Path, names: set[str]) -> None:
    from matplotlib.image import imread

    for name in names:
        pixels = imread(folder / name)
        assert pixels.shape == (480, 840, 4)
        assert pixels[..., :3].std() > 0.01, f"{name} is blank"


# --- every recipe --------------------------------------------------------------------------------


def test_there_are_thirteen_recipes_each_with_its_yaml():
    expected = {
        *("classify_bert_chinese_lora", "classify_gpt2_head"),
        *("ppo_gpt2_lora", "reward_gpt2_lora"),
        *("pretrain_bart_denoise", "pretrain_bert_mlm", "pretrain_gpt2_clm"),
        *("pretrain_prefix_lm", "pretrain_t5_span", "seq2seq_t5_lora"),
        *("sft_chatglm2_int4_lora", "sft_gpt2_loop", "sft_gpt2_lora"),
    }
    assert len(expected) == 13
    assert set(STEMS) == expected
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == STEMS


def test_sft_with_the_trainer_leaves_exactly_its_files(finished_run):
    weights = ADAPTER | {"README.md"}
    expected = RECORD | TOKENIZER | ADAPTER | {"samples.md"} | checkpoints([2, 4, 6], weights)
    assert files_in(finished_run) == expected


def test_the_flat_loop_leaves_exactly_its_files_and_names_no_key_that_it_refuses(
    run_recipe, small, tmp_path, capsys
):
    folder = tmp_path / "run"
    run_recipe("sft_gpt2_loop", small | {"train.max_steps": 3, "train.output_dir": folder})
    assert files_in(folder) == RECORD | TOKENIZER | ADAPTER
    assert [line["step"] for line in read_log(folder)] == [1, 2, 3]
    assert read_record(folder)["status"] == "finished"
    check_images(folder, {"loss.png", "learning_rate.png"})
    said = " ".join(capsys.readouterr().out.split())
    assert "model.attention" in said
    assert "train.bf16" in said
    for key in ("train_sampling_strategy", "torch_compile", "activation_checkpointing"):
        assert key not in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_what_is_compiled_learns_the_same(run_recipe, small_lora, tmp_path):
    losses = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        words = {"train.torch_compile": compiled, "train.logging_steps": 1, "train.max_steps": 3}
        words |= {"train.output_dir": folder, "train.eval_strategy": "no"}
        words |= {"train.save_strategy": "no", "train.load_best_model_at_end": "false"}
        run_recipe("sft_gpt2_lora", small_lora | words)
        losses.append([line["loss"] for line in read_log(folder) if "loss" in line])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# --- what the folder says ------------------------------------------------------------------------


def test_run_yaml_says_what_the_run_was(finished_run, checkpoint, rows_file):
    import hashlib

    import torch
    import transformers

    record = read_record(finished_run)
    assert record["status"] == "finished"
    assert record["recipe"] == "sft_gpt2_lora.py"
    settings = record["settings"]
    assert settings["train"]["max_steps"] == 6
    assert settings["train"]["learning_rate"] == 2e-4
    assert settings["adapter"]["r"] == 8
    assert settings["model"] == {
        "checkpoint": str(checkpoint),
        "revision": None,
        "quantization": "none",
        "double_quantization": True,
        "dtype": "float32",
        "config": {},
        "attention": "sdpa",
        "dropout": "none",
        "fused": True,
    }
    assert record["origins"]["train.max_steps"] == "command line"
    assert record["origins"]["adapter.lora_alpha"].rpartition(":")[0].endswith("sft_gpt2_lora.yaml")
    assert record["origins"]["train.weight_decay"] == "default"
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["transformers"] == transformers.__version__
    assert record["data"]["fingerprint"] == hashlib.sha256(rows_file.read_bytes()).hexdigest()
    assert (record["data"]["num_train_rows"], record["data"]["num_eval_rows"]) == (36, 4)
    template = (finished_run / "chat_template.jinja").read_text(encoding="utf-8")
    assert record["template"]["name"] == "human-assistant"
    assert record["template"]["sha256"] == hashlib.sha256(template.encode()).hexdigest()
    assert record["template"]["stop_token"] == "<|endoftext|>"
    assert record["base"]["name"] == str(checkpoint)
    assert len(record["base"]["fingerprint"]) == 64
    adapter = (finished_run / "adapter_model.safetensors").read_bytes()
    assert record["weights"] == {"adapter_model.safetensors": hashlib.sha256(adapter).hexdigest()}


def test_metrics_and_log_hold_the_figures_of_every_step(finished_run):
    metrics = json.loads((finished_run / "metrics.json").read_text())
    log = read_log(finished_run)
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["grad_norm"] > 0 for line in steps)
    # Two steps of warm-up to 2e-4, then straight down to zero after step 6.
    rates = [0.0, 1e-4, 2e-4, 1.5e-4, 1e-4, 5e-5]
    assert [line["learning_rate"] for line in steps] == pytest.approx(rates)
    assert [line["step"] for line in log if "eval_loss" in line] == [2, 4, 6, 6]
    assert metrics["train_loss"] == pytest.approx(sum(line["loss"] for line in steps) / 6)
    assert metrics["eval_loss"] < metrics["base_loss"]
    assert metrics["eval_loss"] == log[-1]["eval_loss"]
    assert metrics["reload_max_logit_difference"] == 0
    assert metrics["num_steps"] == 6
    assert metrics["tokens_per_second"] > 0


def test_samples_show_both_answers_to_every_prompt(finished_run):
    text = (finished_run / "samples.md").read_text(encoding="utf-8")
    assert text.count("**Base model**") == text.count("**Trained model**") == 2
    assert "## What does a cow eat?" in text
    assert "## 奶牛吃什么" in text


def test_curves_are_images(finished_run):
    check_images(finished_run, {"loss.png", "learning_rate.png"})


def test_the_card_names_no_folder_user_or_machine(finished_run, checkpoint, rows_file):
    card = (finished_run / "README.md").read_text(encoding="utf-8")
    front_matter = yaml.safe_load(card.split("---\n")[1])
    assert front_matter["library_name"] == "peft"
    assert "base_model" not in front_matter, "a folder of this machine is no Hub id"
    private = [checkpoint.parent, rows_file.parent, finished_run.parent, Path.home(), Path.cwd()]
    for name in [*map(str, private), "/tmp", socket.gethostname()]:
        assert name not in card
    assert f"/{getpass.getuser()}" not in card
    assert "`tiny-gpt2`" in card


# --- what was saved is what was trained ----------------------------------------------------------


def test_the_adapter_loads_with_peft_alone_and_gives_the_same_logits(finished_run, checkpoint):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sft_kit import load_run

    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    untrained = probe_logits(base)
    plain = probe_logits(PeftModel.from_pretrained(base, str(finished_run)))
    ours = probe_logits(load_run(str(finished_run)).model)
    assert (plain - ours).abs().max() == 0
    assert (plain - untrained).abs().max() > 1e-4, "the adapter does nothing"


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_run_reloads_in_plain_peft(
    run_recipe, small_lora, checkpoint, tmp_path, quantization
):
    import bitsandbytes
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from sft_kit import load_run

    folder = tmp_path / "run"
    changes = {"model.quantization": quantization, "train.output_dir": folder}
    run_recipe("sft_gpt2_lora", small_lora | changes)

    run = load_run(str(folder))
    layer = run.model.base_model.model.transformer.h[0].attn.c_attn.base_layer
    classes = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}
    assert type(layer) is classes[quantization]
    options = {
        "int8": {"load_in_8bit": True},
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
    }[quantization]
    base = AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=BitsAndBytesConfig(**options), device_map={"": "cpu"}
    )
    plain = PeftModel.from_pretrained(base, str(folder))
    for module in plain.modules():  # a CPU with AVX512-BF16 would re-pack the weights otherwise
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    assert (probe_logits(plain) - probe_logits(run.model)).abs().max() == 0
    assert read_record(folder)["settings"]["model"]["quantization"] == quantization
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["eval_loss"] < metrics["base_loss"]


def test_without_adapter_the_whole_model_trains(run_recipe, small_lora, checkpoint, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from sft_kit import load_run

    folder = tmp_path / "run"
    changes = {"adapter": "null", "train.save_strategy": "no", "train.output_dir": folder}
    run_recipe("sft_gpt2_lora", small_lora | changes)

    assert files_in(folder) == RECORD | TOKENIZER | WHOLE_MODEL
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    unchanged = [name for name, tensor in before.items() if (tensor == after[name]).all()]
    assert not unchanged
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert (probe_logits(plain) - probe_logits(load_run(str(folder)).model)).abs().max() == 0


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_weights_without_adapter_are_refused(
    run_recipe, small_lora, tmp_path, quantization
):
    from sft_kit import ConfigError

    changes = {"adapter": "null", "model.quantization": quantization}
    with pytest.raises(ConfigError, match=f"found {quantization} without an adapter"):
        run_recipe("sft_gpt2_lora", small_lora | changes | {"train.output_dir": tmp_path / "run"})
    assert list(tmp_path.iterdir()) == []


def perturbed(original: Callable[..., None], name: str) -> Callable[..., None]:
    """Save, then change one number of one tensor in the file."""
    from safetensors.torch import load_file, save_file

    def save_model(model, tokenizer, folder):
        original(model, tokenizer, folder)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        (key,) = [key for key in tensors if name in key]
        tensors[key].view(-1)[0] += 1e-3
        save_file(tensors, path, metadata={"format": "pt"})

    return save_model


@pytest.mark.parametrize("name", ["h.1.mlp.c_proj.lora_B", "h.0.attn.c_attn.lora_A"])
def test_a_run_that_saved_something_else_is_not_called_finished(
    run_recipe, small_lora, tmp_path, monkeypatch, name
):
    from sft_kit import CheckpointError, load_run
    from sft_kit.artifacts import save

    monkeypatch.setattr(save, "save_model", perturbed(save.save_model, name))
    folder = tmp_path / "run"
    changes = {"train.save_strategy": "no", "train.output_dir": folder}
    with pytest.raises(CheckpointError, match="gives other logits than the trained one"):
        run_recipe("sft_gpt2_lora", small_lora | changes)
    assert read_record(folder)["status"] == "running"
    assert not (folder / "adapter_model.safetensors").exists()
    with pytest.raises(CheckpointError, match="did not finish"):
        load_run(str(folder))
