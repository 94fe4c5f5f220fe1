"""Merged = unmerged, whatever the base is stored as, and what is saved is a stock model."""

import copy
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft_kit.errors import CheckpointError
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_causal_lm
from sft_kit.models.merging import merge, to_dense
from sft_kit.models.probe import probe_logits
from sft_kit.settings import ModelSettings

STORAGES = [("none", "float32"), ("none", "bfloat16"), ("int8", "float32"), ("nf4", "float32"),
            ("nf4", "bfloat16")]  # fmt: skip


def load(folder: Path, quantization: str = "none", dtype: str = "float32") -> PreTrainedModel:
    return load_causal_lm(ModelSettings(str(folder), quantization=quantization, dtype=dtype))


def adapted(base: PreTrainedModel, targets: object = "all-linear", **options: object) -> PeftModel:
    """A LoRA that has an effect: PEFT starts B at zero."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, **options)
    model = attach_lora(base, config)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.mark.parametrize(("quantization", "dtype"), STORAGES)
def test_the_merged_model_gives_the_logits_of_the_float32_base_with_its_adapter(
    gpt2_checkpoint: Path, quantization: str, dtype: str
):
    ids = torch.arange(3, 40).unsqueeze(0)
    dense = to_dense(adapted(load(gpt2_checkpoint, quantization, dtype)))
    assert isinstance(dense, PeftModel)
    assert {parameter.dtype for parameter in dense.parameters()} == {torch.float32}
    before = logits(dense, ids)
    with dense.disable_adapter():
        assert difference(before, logits(dense, ids)) > 0.1
    merged = merge(dense)
    assert type(merged) is GPT2LMHeadModel
    assert difference(logits(merged, ids), before) < 1e-5


@pytest.mark.parametrize(("quantization", "dtype"), STORAGES)
def test_the_float32_base_holds_the_weights_the_quantized_one_computes_with(
    gpt2_checkpoint: Path, quantization: str, dtype: str
):
    model = adapted(load(gpt2_checkpoint, quantization, dtype))
    before = probe_logits(model)
    after = probe_logits(to_dense(model))
    # float32 computes the same; 8-bit also rounds what goes into a layer; bfloat16 everything.
    exact = dtype == "float32" and quantization != "int8"
    assert difference(before, after) < (1e-5 if exact else 0.05 * before.abs().max())


def test_a_4bit_base_becomes_what_bitsandbytes_reads_in_its_weights(gpt2_checkpoint: Path):
    quantized = load(gpt2_checkpoint, "nf4")
    expected = {
        name: dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        for name, layer in quantized.named_modules()
        if isinstance(layer, Linear4bit)
    }
    assert len(expected) == 8
    merged = merge(quantized)
    for name, weight in expected.items():
        layer = merged.get_submodule(name)
        assert isinstance(layer, Conv1D)
        assert torch.equal(layer.weight, weight.T)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_plain_transformers_reads_the_merged_model_back(
    gpt2_checkpoint: Path, tmp_path: Path, quantization: str
):
    merged = merge(adapted(load(gpt2_checkpoint, quantization)))
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert getattr(again.config, "quantization_config", None) is None
    assert torch.equal(probe_logits(again), probe_logits(merged))


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_llama_stays_a_llama(llama_checkpoint: Path, tmp_path: Path, quantization: str):
    model = to_dense(adapted(load(llama_checkpoint, quantization)))
    before = probe_logits(model)
    merged = merge(model)
    assert type(merged) is LlamaForCausalLM
    assert difference(probe_logits(merged), before) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(probe_logits(again), probe_logits(merged))


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True},
                                     {"modules_to_save": ["lm_head"]}])  # fmt: skip
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_other_kinds_of_lora_are_merged_too(
    llama_checkpoint: Path, tmp_path: Path, quantization: str, options: dict[str, object]
):
    model = to_dense(adapted(load(llama_checkpoint, quantization), ["q_proj"], **options))
    before = probe_logits(model)
    merged = merge(model)
    assert difference(probe_logits(merged), before) < 1e-4
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(probe_logits(again), probe_logits(merged))


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")  # PEFT's advice when it is attached
@pytest.mark.parametrize("target", ["lm_head", "wte"])
def test_only_the_adapted_one_of_two_tied_layers_changes(
    gpt2_checkpoint: Path, tmp_path: Path, target: str
):
    model = adapted(load(gpt2_checkpoint), [target])
    before = probe_logits(model)
    merged = merge(model)
    assert difference(probe_logits(merged), before) < 1e-5
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.config.tie_word_embeddings is False
    assert torch.equal(probe_logits(again), probe_logits(merged))


def test_what_pissa_changed_in_the_base_is_not_changed_again(gpt2_checkpoint: Path):
    base = load(gpt2_checkpoint, "nf4")
    model = adapted(base)
    model.peft_config["default"].init_lora_weights = "pissa"
    before = probe_logits(model)
    assert difference(probe_logits(to_dense(model)), before) < 1e-5


def test_merging_in_bfloat16_would_lose_what_float32_keeps(gpt2_checkpoint: Path):
    rounded = adapted(load(gpt2_checkpoint, "none", "bfloat16"))
    exact = probe_logits(to_dense(copy.deepcopy(rounded)))
    ours = difference(probe_logits(merge(copy.deepcopy(rounded))), exact)
    direct = rounded.merge_and_unload().to(torch.float32)
    assert ours < 1e-5
    assert difference(probe_logits(direct), exact) > 100 * ours


def test_a_model_without_adapter_becomes_dense(gpt2_checkpoint: Path):
    expected = probe_logits(load(gpt2_checkpoint))
    assert torch.equal(probe_logits(merge(load(gpt2_checkpoint))), expected)


def test_a_prefix_and_several_adapters_are_refused(gpt2_model: GPT2LMHeadModel):
    prefix = get_peft_model(
        copy.deepcopy(gpt2_model), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(CheckpointError, match="found PREFIX_TUNING, accepts one LORA"):
        merge(prefix)
    two = adapted(gpt2_model)
    two.add_adapter("second", LoraConfig(target_modules=["c_attn"]))
    with pytest.raises(CheckpointError, match="found LORA, LORA, accepts one LORA"):
        merge(two)


def test_weights_that_are_not_finite_are_refused(gpt2_model: GPT2LMHeadModel):
    model = adapted(gpt2_model)
    next(p for name, p in model.named_parameters() if "lora_B" in name).data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="can't be merged"):
        merge(model)


def test_repacked_4bit_weights_are_refused(gpt2_checkpoint: Path):
    model = load(gpt2_checkpoint, "nf4")
    model.transformer.h[0].mlp.c_fc.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(CheckpointError, match="re-packed"):
        merge(model)
