"""The quantization method against the original's files and outputs, PEFT and dense models."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.modeling import ChatGLMForCausalLM
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.chatglm.packing import dequantize
from sft_kit.models.chatglm.quantizer import RowwiseQuantConfig, quantize

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
UNREAD = {"transformer.rotary_pos_emb.inv_freq"}


@pytest.fixture
def int4_folder(chatglm_fixtures: Path) -> Path:
    return chatglm_fixtures / "chatglm2_tiny_int4"


@pytest.fixture
def int4_state(int4_folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(int4_folder / "pytorch_model.bin", weights_only=True)


@pytest.fixture
def expected(int4_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(int4_folder / "expected.safetensors")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ChatGLMForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def lora(**options: object) -> LoraConfig:
    # Matrices B of zeros would hide a wrong gradient of A.
    return LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **options)


def attach(model: nn.Module, config: LoraConfig) -> PeftModel:
    torch.manual_seed(5)
    return get_peft_model(model, config)


# --- loading, saving -----------------------------------------------------------------------------


def test_every_linear_layer_but_the_head_stays_packed(int4_folder):
    model = load(int4_folder)
    kinds = {
        name: type(module)
        for name, module in model.named_modules()
        if hasattr(module, "in_features")
    }
    assert kinds.pop("lm_head") is nn.Linear
    assert len(kinds) == 2 * len(TARGETS)
    assert set(kinds.values()) == {RowwiseQuantLinear}
    assert model.is_quantized
    assert model.config.quantization_config.bits == 4


def test_logits_are_those_of_the_original_code(int4_folder, expected):
    with torch.no_grad():
        logits = load(int4_folder)(expected["A_input_ids"]).logits
    assert (logits - expected["A_logits"]).abs().max() <= 2e-5  # float32's rounding


def test_packed_weights_and_scales_do_not_train_after_loading(int4_folder):
    layers = [m for m in load(int4_folder).modules() if isinstance(m, RowwiseQuantLinear)]
    assert not any(
        layer.weight.requires_grad or layer.weight_scale.requires_grad for layer in layers
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scales_are_float32_whatever_the_model_is(int4_folder, int4_state, dtype):
    model = load(int4_folder, dtype)
    layer = model.model.layers[1].mlp.down_proj
    assert model.dtype == dtype
    assert layer.weight_scale.dtype == torch.float32
    scale = int4_state["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight_scale"]
    assert torch.equal(layer.weight_scale, scale.float())


def test_what_is_saved_is_the_original_file_bit_for_bit(int4_folder, int4_state, tmp_path):
    load(int4_folder, torch.float16).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == int4_state.keys() - UNREAD
    for name, tensor in saved.items():
        assert tensor.dtype == int4_state[name].dtype, name
        assert torch.equal(tensor, int4_state[name]), name
    assert json.loads((tmp_path / "config.json").read_text())["quantization_bit"] == 4
    again = load(tmp_path, torch.float16).state_dict()
    first = load(int4_folder, torch.float16).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_a_scale_that_float16_can_not_hold_is_saved_in_float32(int4_folder, tmp_path):
    model = load(int4_folder)
    layer = model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        layer.weight_scale.fill_(1 / 3)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    scale = saved["transformer.encoder.layers.0.mlp.dense_4h_to_h.weight_scale"]
    assert scale.dtype == torch.float32
    reloaded = load(tmp_path).model.layers[0].mlp.down_proj.weight_scale
    assert torch.equal(reloaded, layer.weight_scale)


@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers tells of it once more
def test_a_checkpoint_without_a_packed_weight_is_refused(int4_folder, int4_state, tmp_path):
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "config.json").write_bytes((int4_folder / "config.json").read_bytes())
    del int4_state["transformer.encoder.layers.0.self_attention.query_key_value.weight"]
    torch.save(int4_state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"q_proj\.weight: found no packed .*3 layers"):
        load(folder)


# --- quantizing ----------------------------------------------------------------------------------


def test_quantizing_the_float16_checkpoint_gives_the_original_int4_file(
    chatglm_fixtures, int4_state, tmp_path
):
    model = load(chatglm_fixtures / "chatglm2_tiny_fp16", torch.float16)
    quantize(model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == int4_state.keys() - UNREAD
    for name, tensor in saved.items():
        assert torch.equal(tensor, int4_state[name]), name
        assert tensor.dtype == int4_state[name].dtype, name


def test_a_float32_model_quantizes_to_the_same_integers(chatglm_fixtures, int4_folder):
    model = load(chatglm_fixtures / "chatglm2_tiny_fp16", torch.float32)
    quantize(model)
    reference = load(int4_folder).state_dict()
    assert model.dtype == torch.float32
    assert all(torch.equal(model.state_dict()[name], value) for name, value in reference.items())


def test_eight_bits_are_saved_and_loaded_like_four(chatglm_fixtures, tmp_path):
    dense = load(chatglm_fixtures / "chatglm3_tiny_fp16", torch.float16)
    fused = torch.cat([getattr(dense.model.layers[2].self_attn, f"{k}_proj").weight for k in "qkv"])
    quantize(dense, bits=8)
    dense.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    name = "transformer.encoder.layers.2.self_attention.query_key_value"
    # The original's formula, in numpy's float16.
    values = fused.detach().numpy()
    scale = abs(values).max(axis=1) / values.dtype.type(127)
    assert (saved[f"{name}.weight_scale"].numpy() == scale).all()
    assert (saved[f"{name}.weight"].numpy() == (values / scale[:, None]).round()).all()
    assert json.loads((tmp_path / "config.json").read_text())["quantization_bit"] == 8
    again = load(tmp_path, torch.float16)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, dense(ids).logits)


def test_only_dense_whole_and_finite_models_are_quantized(chatglm_fixtures, int4_folder):
    with pytest.raises(CheckpointError, match="found a quantized model"):
        quantize(load(int4_folder))
    model = load(chatglm_fixtures / "chatglm2_tiny_fp16")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = 1e6
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight: .*float16"):
        quantize(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    get_peft_model(model, lora())
    with pytest.raises(CheckpointError, match="found an adapter"):
        quantize(model)


def test_bits_and_checkpoints_that_do_not_fit_are_refused(chatglm_fixtures):
    with pytest.raises(CheckpointError, match="found 2; accepts 4 and 8"):
        RowwiseQuantConfig(bits=2)
    with pytest.raises(CheckpointError, match="call quantize"):
        AutoModelForCausalLM.from_pretrained(
            chatglm_fixtures / "chatglm2_tiny_fp16", quantization_config=RowwiseQuantConfig(4)
        )


# --- dequantizing --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_dequantized_model_holds_integers_times_scales(int4_folder, int4_state, dtype):
    model = load(int4_folder, dtype)
    model.dequantize()
    name = "transformer.encoder.layers.0.self_attention.query_key_value"
    fused = dequantize(
        int4_state[f"{name}.weight"], int4_state[f"{name}.weight_scale"].float(), 4, dtype
    )
    attention = model.model.layers[0].self_attn
    dense = torch.cat([getattr(attention, f"{k}_proj").weight for k in "qkv"])
    assert dense.dtype == dtype
    assert torch.equal(dense, fused)
    assert not model.is_quantized
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_saved_model_can_still_be_dequantized_and_saved_dense(int4_folder, expected, tmp_path):
    model = load(int4_folder)
    model.save_pretrained(tmp_path / "packed")
    model.dequantize()
    model.save_pretrained(tmp_path / "dense")
    assert (
        AutoConfig.from_pretrained(tmp_path / "dense").to_dict().get("quantization_config") is None
    )
    with torch.no_grad():
        logits = load(tmp_path / "dense")(expected["A_input_ids"]).logits
    assert (logits - expected["A_logits"]).abs().max() <= 2e-5  # float32's rounding


# --- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_on_packed_weights_is_lora_on_dense_weights(int4_folder, expected, use_dora):
    packed = attach(load(int4_folder), lora(use_dora=use_dora))
    dense = attach(load(int4_folder).dequantize(), lora(use_dora=use_dora))
    losses, gradients = [], []
    for model in (packed, dense):
        loss = model(expected["A_input_ids"], labels=expected["E_labels"]).loss
        loss.backward()
        losses.append(loss.item())
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        assert len(trained) == 2 * len(TARGETS) * (3 if use_dora else 2)
        gradients.append({name: p.grad for name, p in trained})
    assert losses[0] == losses[1]
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_all_linear_finds_the_packed_layers(int4_folder):
    config = LoraConfig(r=2, target_modules="all-linear")
    model = get_peft_model(load(int4_folder), config)
    assert {name.rsplit(".", 1)[-1] for name in config.target_modules} == set(TARGETS)
    assert sum(isinstance(module, LoraLayer) for module in model.modules()) == 2 * len(TARGETS)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_an_adapter_is_reloaded_by_peft_and_by_transformers(int4_folder, expected, tmp_path):
    ids = expected["A_input_ids"]
    model = attach(load(int4_folder), lora())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            off = model(ids).logits
        base = load(int4_folder)
        assert torch.equal(off, base(ids).logits)
        assert (adapted - off).abs().max() > 0.1
        base.load_adapter(str(tmp_path))
        assert torch.equal(base(ids).logits, adapted)
        by_peft = PeftModel.from_pretrained(load(int4_folder), tmp_path)
        assert torch.equal(by_peft(ids).logits, adapted)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_into_packed_weights_fails_and_changes_nothing(
    chatglm_fixtures, bits, use_dora, safe_merge
):
    base = load(chatglm_fixtures / "chatglm2_tiny_fp16")
    quantize(base, bits)
    before = base.model.layers[0].self_attn.q_proj.weight.clone()
    model = attach(base, lora(use_dora=use_dora))
    guarded = (bits, use_dora, safe_merge) in {
        (4, True, True), (8, False, True), (8, True, False), (8, True, True)
    }  # fmt: skip
    of_torch = "The size of tensor a" if bits == 4 else "result type Float can't be cast"
    with pytest.raises(
        CheckpointError if guarded else RuntimeError,
        match="call model.dequantize" if guarded else of_torch,
    ):
        model.merge_and_unload(safe_merge=safe_merge)
    layer = base.model.layers[0].self_attn.q_proj.get_base_layer()
    assert torch.equal(layer.weight, before)


def test_merging_after_dequantizing_is_exact(int4_folder, expected):
    model = attach(load(int4_folder), lora())
    with torch.no_grad():
        adapted = model(expected["A_input_ids"]).logits
    model.get_base_model().dequantize()
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)
    merged = model.merge_and_unload(safe_merge=True)
    with torch.no_grad():
        logits = merged(expected["A_input_ids"]).logits
    assert (logits - adapted).abs().max() <= 1e-4  # sums in another order; the adapter does 100 x


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("inputs_require_grads", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    int4_folder, expected, use_reentrant, inputs_require_grads
):
    gradients = []
    for checkpointing in (False, True):
        base = load(int4_folder)
        if checkpointing:
            options = {"use_reentrant": use_reentrant}
            base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        if inputs_require_grads:
            base.enable_input_require_grads()
        model = attach(base, lora()).train()
        assert model.get_base_model().model.layers[0].gradient_checkpointing == checkpointing
        model(expected["A_input_ids"], labels=expected["E_labels"], use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[1][name], g) for name, g in gradients[0].items())
    assert all(g.abs().max() > 0 for g in gradients[1].values())


# --- the Trainer ---------------------------------------------------------------------------------


def trainer(model: nn.Module, folder: Path, **options: object) -> Trainer:
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(3, 400, (8, 10)).tolist()]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, learning_rate=1e-2, seed=1,
        max_steps=4, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        **options,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows)


def test_the_trainer_refuses_the_model_without_an_adapter(int4_folder, tmp_path):
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(load(int4_folder), tmp_path)


def test_a_resumed_run_is_the_straight_run(int4_folder, tmp_path):
    runs = {}
    for name, options in (
        ("straight", {"save_strategy": "no"}),
        ("stopped", {"save_strategy": "steps", "save_steps": 2}),
    ):
        torch.manual_seed(3)
        run = trainer(attach(load(int4_folder), lora()), tmp_path / name, **options)
        run.train()
        runs[name] = run
    torch.manual_seed(3)
    resumed = trainer(attach(load(int4_folder), lora()), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    losses = [entry["loss"] for entry in runs["straight"].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    straight = dict(runs["straight"].model.named_parameters())
    trained = [(n, p) for n, p in resumed.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(torch.equal(parameter, straight[name]) for name, parameter in trained)
