"""A merged model stands for itself: plain transformers loads it, nothing is lost on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import sft_kit.artifacts.merge as merging
from sft_kit.artifacts import load_named, load_run, merge_and_save
from sft_kit.artifacts.named import LoadOptions
from sft_kit.data.templates import encode_prompt
from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.probe import probe_logits

MESSAGES = [{"role": "user", "content": "How are you today?"}]
PLAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
found = []
for folder in sys.argv[3:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(1, 33).remainder(model.config.vocab_size).unsqueeze(0)
    messages = json.loads(sys.argv[2])
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0]
    found.append({"logits": logits, "prompt": prompt, "class": type(model).__name__})
assert "sft_kit" not in sys.modules
torch.save(found, sys.argv[1])
"""


def in_plain_transformers(folders: list[Path], tmp_path: Path) -> list[dict[str, object]]:
    """Load folders in a process of its own that never hears of sft_kit."""
    result = tmp_path / "plain.pt"
    command = [sys.executable, "-c", PLAIN, str(result), json.dumps(MESSAGES), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return torch.load(result)


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what is written -----------------------------------------------------------------------------


def test_plain_transformers_gives_the_logits_and_the_prompts_of_the_runs(
    make_run, gpt2_checkpoint: Path, chatglm_fixtures: Path, tmp_path: Path
):
    bases = {
        gpt2_checkpoint: "GPT2LMHeadModel",
        chatglm_fixtures / "chatglm2_tiny_int4": "GlmForCausalLM",
        chatglm_fixtures / "chatglm3_tiny_fp16": "GlmForCausalLM",
    }
    runs = [load_run(str(make_run(base))) for base in bases]
    folders = [tmp_path / f"merged-{base.name}" for base in bases]
    for base, folder in zip(bases, folders, strict=True):
        merge_and_save(str(tmp_path / f"run-{base.name}"), folder)
    plain = in_plain_transformers(folders, tmp_path)
    assert [found["class"] for found in plain] == list(bases.values())
    for run, found in zip(runs, plain, strict=True):
        assert difference(found["logits"], probe_logits(run.model)) < 1e-4
        assert found["prompt"] == encode_prompt(run.tokenizer, run.template, MESSAGES)


def test_float32_moves_no_logit(make_run, gpt2_checkpoint: Path, tmp_path: Path):
    folder = make_run(gpt2_checkpoint)
    before = probe_logits(load_run(str(folder)).model)
    merged = merge_and_save(str(folder), tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == torch.float32
    assert difference(probe_logits(again), before) < 1e-5
    assert max(merged.by_merging, merged.by_dequantizing) < 1e-5
    assert merged.by_rounding == 0.0


def test_the_folder_holds_a_model_a_tokenizer_and_a_card_and_nothing_else(
    make_run, gpt2_checkpoint: Path, tmp_path: Path
):
    output = tmp_path / "merged"
    merge_and_save(str(make_run(gpt2_checkpoint)), output)
    assert names(output) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "README.md",
    }  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "a run of the recipe `sft_x_lora.py` on `tiny-gpt2`" in card
    assert "largest difference of a logit by merging" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_files_are_as_readable_as_the_user_lets_new_files_be(
    make_run, gpt2_checkpoint: Path, tmp_path: Path, umask: int, mode: int
):
    run, output = make_run(gpt2_checkpoint), tmp_path / "merged"
    before = os.umask(umask)
    try:
        merge_and_save(str(run), output)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in output.iterdir()} == {mode}


def test_the_merged_folder_is_a_checkpoint_to_chat_with(
    make_run, gpt2_checkpoint: Path, tmp_path: Path
):
    folder = make_run(gpt2_checkpoint)
    merge_and_save(str(folder), tmp_path / "merged")
    run = load_run(str(folder))
    loaded = load_named(str(tmp_path / "merged"), LoadOptions())
    assert loaded.template.source == run.template.source
    assert difference(probe_logits(loaded.model), probe_logits(run.model)) < 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_storing_16_bits_is_asked_for_and_its_loss_is_the_one_measured(
    make_run, gpt2_checkpoint: Path, tmp_path: Path, dtype: str, bound: float
):
    folder = make_run(gpt2_checkpoint)
    exact = probe_logits(load_run(str(folder)).model)
    merged = merge_and_save(str(folder), tmp_path / "merged", dtype=dtype)
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert 0 < merged.by_rounding < bound
    assert difference(probe_logits(again), exact) == pytest.approx(merged.by_rounding, abs=1e-5)
    assert any(f"storing {dtype}" in line for line in merged.lines())


@pytest.mark.parametrize(("quantization", "dtype"), [("nf4", "float32"), ("nf4", "bfloat16"),
                                                     ("int8", "float32")])  # fmt: skip
def test_a_run_on_a_quantized_base_is_merged_into_the_base_it_was_trained_on(
    make_run, gpt2_checkpoint: Path, tmp_path: Path, quantization: str, dtype: str
):
    folder = make_run(gpt2_checkpoint, quantization=quantization, dtype=dtype)
    before = probe_logits(load_run(str(folder)).model)
    merged = merge_and_save(str(folder), tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(probe_logits(again), before) == pytest.approx(
        merged.by_dequantizing, abs=1e-4
    )
    share = merged.by_dequantizing / before.abs().max().item()
    assert share < (1e-5 if (quantization, dtype) == ("nf4", "float32") else 0.05)
    if quantization == "nf4":  # the base it was not trained on is another model
        unquantized = load_named(str(gpt2_checkpoint), LoadOptions(adapter=folder)).model
        assert difference(probe_logits(unquantized), before) > 3 * merged.by_dequantizing


def test_an_adapter_beside_a_checkpoint_is_merged_too(
    make_run, gpt2_checkpoint: Path, tmp_path: Path
):
    folder = make_run(gpt2_checkpoint)
    merge_and_save(str(gpt2_checkpoint), tmp_path / "merged", adapter=folder)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    expected = probe_logits(load_run(str(folder)).model)
    assert difference(probe_logits(again), expected) < 1e-5
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "from tiny-gpt2." in card


# --- ChatGLM -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatglm2_tiny_fp16", "chatglm2_tiny_int4", "chatglm3_tiny_fp16"])
def test_a_chatglm_run_reloads_bit_for_bit_and_merges_into_a_stock_glm(
    make_run, chatglm_fixtures: Path, tmp_path: Path, name: str
):
    folder = make_run(chatglm_fixtures / name)
    runs = [load_run(str(folder)) for _ in range(2)]
    before, again = (probe_logits(run.model) for run in runs)
    assert torch.equal(before, again)
    merged = merge_and_save(str(folder), tmp_path / "merged")
    assert max(merged.by_dequantizing, merged.by_merging) < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert type(plain).__module__ == "transformers.models.glm.modeling_glm"
    assert difference(probe_logits(plain), before) < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    prompt = encode_prompt(runs[0].tokenizer, runs[0].template, MESSAGES)
    assert encode_prompt(tokenizer, runs[0].template, MESSAGES) == prompt
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert settings["model_type"] == "glm"
    assert not {"quantization_config", "quantization_bit", "auto_map"} & set(settings)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_storing_16_bits_rounds_weights_and_no_rotary_frequencies(
    chatglm_fixtures: Path, tmp_path: Path, dtype: str
):
    folder = chatglm_fixtures / "chatglm2_tiny_fp16"
    exact = probe_logits(load_named(str(folder), LoadOptions()).model)
    merged = merge_and_save(str(folder), tmp_path / "merged", dtype=dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(probe_logits(again), exact) == pytest.approx(merged.by_rounding, abs=1e-6)
    # These weights are float16 already.
    assert (merged.by_rounding > 0) is (dtype == "bfloat16")


@pytest.mark.parametrize(("name", "ends"), [("chatglm2_tiny_int4", [2]),
                                            ("chatglm3_tiny_fp16", [2, 466, 468])])  # fmt: skip
def test_an_exported_config_names_the_end_tokens_of_its_own_vocabulary(
    chatglm_fixtures: Path, tmp_path: Path, name: str, ends: list[int]
):
    merge_and_save(str(chatglm_fixtures / name), tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 0)
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == ends


def test_a_chatglm_without_adapter_is_exported(chatglm_fixtures: Path, tmp_path: Path):
    folder = chatglm_fixtures / "chatglm2_tiny_int4"
    expected = load_file(folder / "expected.safetensors")
    merge_and_save(str(folder), tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    with torch.no_grad():
        found = model(expected["A_input_ids"].long().view(1, -1)).logits
    assert difference(found.flatten(), expected["A_logits"].flatten()) < 1e-6
    loaded = load_named(str(tmp_path / "exported"), LoadOptions())
    original = load_named(str(folder), LoadOptions())
    assert loaded.template.source == original.template.source
    assert encode_prompt(loaded.tokenizer, loaded.template, MESSAGES) == encode_prompt(
        original.tokenizer, original.template, MESSAGES
    )


def test_an_adapter_of_the_original_layers_is_merged_into_packed_weights(
    chatglm_fixtures: Path, tmp_path: Path
):
    folder, adapter = chatglm_fixtures / "chatglm2_tiny_int4", tmp_path / "old"
    adapter.mkdir()
    key = "base_model.model.transformer.encoder.layers.1.self_attention.query_key_value"
    tensors = {
        f"{key}.lora_A.weight": torch.randn(4, 64),
        f"{key}.lora_B.weight": torch.randn(128, 4),
    }
    torch.save(tensors, adapter / "adapter_model.bin")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query_key_value"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    base = load_named(str(folder), LoadOptions()).model
    adapted = load_named(str(folder), LoadOptions(adapter=adapter)).model
    merge_and_save(str(folder), tmp_path / "merged", adapter=adapter)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(probe_logits(model), probe_logits(adapted)) < 1e-4
    assert difference(probe_logits(model), probe_logits(base)) > 0.1
    delta = 8 / 4 * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    exported = merge_and_save(str(folder), tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(exported.folder, dtype=torch.float32)
    for layer, rows in {"q_proj": (0, 64), "k_proj": (64, 96), "v_proj": (96, 128)}.items():
        name = f"model.layers.1.self_attn.{layer}"
        change = model.get_submodule(name).weight - plain.get_submodule(name).weight
        torch.testing.assert_close(change, delta[slice(*rows)], rtol=1e-5, atol=1e-5)


# --- what is refused, with nothing written -------------------------------------------------------


def test_without_an_adapter_there_is_nothing_to_merge(
    make_run, gpt2_checkpoint: Path, tmp_path: Path
):
    output = tmp_path / "merged"
    with pytest.raises(CheckpointError, match=r"nothing to merge.*\n.*add --adapter FOLDER"):
        merge_and_save(str(gpt2_checkpoint), output)
    with pytest.raises(CheckpointError, match=r"nothing to merge.*\n.*loaded as it is"):
        merge_and_save(str(make_run(gpt2_checkpoint, adapter=False)), output)
    assert not output.exists()


def test_a_run_that_did_not_finish_is_not_merged(make_run, gpt2_checkpoint: Path, tmp_path: Path):
    folder = make_run(gpt2_checkpoint)
    record = (folder / "run.yaml").read_text()
    assert "status: finished" in record
    (folder / "run.yaml").write_text(record.replace("status: finished", "status: running"))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"did not finish .*--resume"):
        merge_and_save(str(folder), tmp_path / "merged")


def test_options_that_do_not_fit_are_refused(make_run, gpt2_checkpoint: Path, tmp_path: Path):
    run = make_run(gpt2_checkpoint)
    with pytest.raises(ConfigError, match="--adapter: does not fit a run folder"):
        merge_and_save(str(run), tmp_path / "merged", adapter=run)
    with pytest.raises(ConfigError, match="--base: is the base of a run folder"):
        merge_and_save(str(gpt2_checkpoint), tmp_path / "merged", adapter=run, base="x")
    with pytest.raises(ConfigError, match="--config: does not fit a run folder"):
        merge_and_save(str(run), tmp_path / "merged", config={"n_ctx": 8})


def test_another_base_than_the_trained_one_is_refused(
    make_run, gpt2_checkpoint: Path, llama_checkpoint: Path, tmp_path: Path
):
    run = make_run(gpt2_checkpoint)
    with pytest.raises(CheckpointError, match="belongs to another base"):
        merge_and_save(str(run), tmp_path / "merged", base=str(llama_checkpoint))
    assert not (tmp_path / "merged").exists()


def test_a_used_folder_is_only_replaced_if_merging_has_written_it(
    make_run, gpt2_checkpoint: Path, tmp_path: Path
):
    run, output = make_run(gpt2_checkpoint), tmp_path / "merged"
    output.mkdir()
    merge_and_save(str(run), output)  # an empty folder is as good as none
    with pytest.raises(CheckpointError, match=r"is not empty: .*--overwrite"):
        merge_and_save(str(run), output)
    merge_and_save(str(run), output, dtype="bfloat16", overwrite=True)
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    (output / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"it holds notes\.txt"):
        merge_and_save(str(run), output, overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("output", ["tiny-gpt2", "run-tiny-gpt2", "."])
def test_a_source_is_never_overwritten(
    make_run, gpt2_checkpoint: Path, tmp_path: Path, output: str
):
    run = make_run(gpt2_checkpoint)
    with pytest.raises(CheckpointError, match="holds what is to be merged"):
        merge_and_save(str(gpt2_checkpoint), tmp_path / output, adapter=run, overwrite=True)
    assert (gpt2_checkpoint / "model.safetensors").is_file()
    assert (run / "adapter_model.safetensors").is_file()


def test_a_checkpoint_that_merging_has_not_written_is_never_overwritten(
    make_run, gpt2_checkpoint: Path, llama_checkpoint: Path
):
    before = names(llama_checkpoint)
    with pytest.raises(CheckpointError, match="was not written by `sft-kit merge`"):
        merge_and_save(str(make_run(gpt2_checkpoint)), llama_checkpoint, overwrite=True)
    assert names(llama_checkpoint) == before


def test_a_file_in_the_way_is_refused(make_run, gpt2_checkpoint: Path, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    run = make_run(gpt2_checkpoint)
    with pytest.raises(CheckpointError, match="is a file"):
        merge_and_save(str(run), tmp_path / "file", overwrite=True)
    with pytest.raises(CheckpointError, match=r"can't be written: (Not a directory|File exists)"):
        merge_and_save(str(run), tmp_path / "file" / "merged")


def test_a_full_disk_is_one_line_and_leaves_the_earlier_model(
    make_run, gpt2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, output = make_run(gpt2_checkpoint), tmp_path / "merged"
    merge_and_save(str(run), output)
    before = (output / "model.safetensors").read_bytes()

    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "write_merged_card", full)
    with pytest.raises(CheckpointError) as caught:
        merge_and_save(str(run), output, dtype="float16", overwrite=True)
    assert str(caught.value) == f"{output} can't be written: No space left on device"
    assert (output / "model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("failure", [OSError(1, "Operation not permitted"), KeyboardInterrupt()])
def test_a_new_model_that_can_not_take_its_place_leaves_the_earlier_one(
    make_run,
    gpt2_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
):
    run, output = make_run(gpt2_checkpoint), tmp_path / "merged"
    merge_and_save(str(run), output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if ".staging-" in path.name:
            assert not output.exists()  # the earlier model has made room
            raise failure
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    accepted = CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(accepted, match=r"^$|merged can't be written: Operation not permitted"):
        merge_and_save(str(run), output, dtype="float16", overwrite=True)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_too_little_memory_is_told_before_anything_is_done(
    chatglm_fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packed = chatglm_fixtures / "chatglm2_tiny_int4"
    tensors = torch.load(packed / "pytorch_model.bin")
    # int4 weights and their scales become 4 bytes a weight; the rest is loaded in float32 already.
    layers = [t for name, t in tensors.items() if f"{name}_scale" in tensors]
    scales = [t for name, t in tensors.items() if name.endswith("_scale")]
    grows_by = sum(t.numel() * 7 for t in layers) - sum(t.numel() * 4 for t in scales)
    monkeypatch.setattr(merging, "free_memory_bytes", lambda device: grows_by - 1)
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GB more memory"):
        merge_and_save(str(packed), tmp_path / "merged")
    assert names(tmp_path) == set()
    monkeypatch.setattr(merging, "free_memory_bytes", lambda device: grows_by)
    merge_and_save(str(packed), tmp_path / "merged")


def test_merged_weights_that_differ_are_not_written(
    make_run, gpt2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def lossy(model: object) -> object:
        merged = real(model)
        with torch.no_grad():
            merged.transformer.h[1].mlp.c_fc.weight.mul_(1.05)
        return merged

    real = merging.merge
    monkeypatch.setattr(merging, "merge", lossy)
    with pytest.raises(CheckpointError, match="merging changed the model: a logit moved by"):
        merge_and_save(str(make_run(gpt2_checkpoint)), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_float16_that_overflows_is_refused(make_run, gpt2_checkpoint: Path, tmp_path: Path):
    run = make_run(gpt2_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(gpt2_checkpoint)
    model.transformer.wpe.weight.data.mul_(1e6)
    tokenizer = AutoTokenizer.from_pretrained(gpt2_checkpoint)
    large = tmp_path / "large"
    model.save_pretrained(large)
    tokenizer.save_pretrained(large)
    with pytest.raises(CheckpointError, match="float16 can't hold the merged weights"):
        merge_and_save(str(large), tmp_path / "merged", adapter=run, dtype="float16")
    assert not (tmp_path / "merged").exists()
