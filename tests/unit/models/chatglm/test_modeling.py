import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    DynamicCache,
    GlmConfig,
    GlmForCausalLM,
)

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.modeling import ChatGLMForCausalLM, default_generation, to_glm
from sft_kit.models.chatglm.quantizer import quantize
from sft_kit.models.quantization import guard_cpu_packing

CHECKPOINTS = ["chatglm2_tiny_fp16", "chatglm2_tiny_int4", "chatglm3_tiny_fp16"]
DENSE = ["chatglm2_tiny_fp16", "chatglm3_tiny_fp16"]
# Both codes are up to 6e-6 from the same model in float64: how they round depends on the CPU.
TOLERANCE = 2e-5
Tensors = dict[str, torch.Tensor]


@pytest.fixture(params=CHECKPOINTS)
def folder(request: pytest.FixtureRequest, chatglm_fixtures: Path) -> Path:
    return chatglm_fixtures / request.param


@pytest.fixture(params=DENSE)
def dense_folder(request: pytest.FixtureRequest, chatglm_fixtures: Path) -> Path:
    return chatglm_fixtures / request.param


@pytest.fixture
def int4_folder(chatglm_fixtures: Path) -> Path:
    return chatglm_fixtures / "chatglm2_tiny_int4"


def load(folder: Path, **options: object) -> ChatGLMForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32} | options)
    assert type(model) is ChatGLMForCausalLM
    return model


def expected(folder: Path) -> Tensors:
    return load_file(folder / "expected.safetensors")


def original_tensors(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.bin")):
        tensors |= torch.load(path, weights_only=True)
    return {name: tensor for name, tensor in tensors.items() if "rotary_pos_emb" not in name}


def saved_tensors(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def assert_close(found: torch.Tensor, wanted: torch.Tensor, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def edited(folder: Path, copy: Path, **fields: object) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text("utf-8")) | fields
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


# --- equal to the original code ------------------------------------------------------------------


@torch.no_grad()
def test_logits_and_hidden_states_equal_the_original_code(folder: Path):
    wanted, model = expected(folder), load(folder)
    output = model(wanted["A_input_ids"], output_hidden_states=True)
    assert_close(output.logits, wanted["A_logits"])
    for layer in range(model.config.num_layers):
        assert_close(output.hidden_states[layer], wanted[f"A_hidden_{layer}"])


@torch.no_grad()
def test_a_left_padded_batch_equals_the_original_code(folder: Path):
    wanted, model = expected(folder), load(folder)
    ids, mask = wanted["B_input_ids"], wanted["B_attention_mask"]
    real = mask.bool()
    assert (~real).any()
    logits = model(ids, attention_mask=mask, position_ids=wanted["B_position_ids"]).logits
    assert_close(logits[real], wanted["B_logits"][real])
    logits = model(ids, attention_mask=mask).logits
    assert_close(logits[real], wanted["B_logits_no_pos"][real])


def test_greedy_generation_equals_the_original_code(folder: Path):
    wanted, model = expected(folder), load(folder)
    greedy = {"do_sample": False, "max_new_tokens": 12}
    assert torch.equal(model.generate(wanted["A_input_ids"], **greedy), wanted["C_generate_A"])
    mask = wanted["B_attention_mask"]
    found = model.generate(wanted["B_input_ids"], attention_mask=mask, **greedy)
    assert torch.equal(found, wanted["C_generate_B"])


@torch.no_grad()
def test_steps_with_a_cache_equal_the_original_code(folder: Path):
    wanted, model = expected(folder), load(folder)
    cache = DynamicCache(config=model.config)
    steps = [
        model(token, past_key_values=cache).logits
        for token in wanted["A_input_ids"].split(1, dim=1)
    ]
    assert cache.get_seq_length() == 12
    assert_close(torch.cat(steps, dim=1), wanted["D_step_logits"])


def test_loss_and_gradient_equal_the_original_code(folder: Path):
    wanted, model = expected(folder), load(folder)
    embedding = model.get_input_embeddings().weight.requires_grad_()
    loss = model(wanted["A_input_ids"], labels=wanted["E_labels"]).loss
    assert_close(loss, wanted["E_loss"])
    loss.backward()
    assert embedding.grad is not None
    assert_close(embedding.grad[wanted["A_input_ids"][0]], wanted["E_embed_grad_rows"])


@torch.no_grad()
def test_700_tokens_equal_the_original_code(folder: Path):
    wanted, model = expected(folder), load(folder)
    logits = model(wanted["G_input_ids"]).logits
    assert_close(logits[:, 60:64], wanted["G_logits_64"])
    assert_close(logits[:, -4:], wanted["G_logits_tail"])


@torch.no_grad()
def test_attention_by_hand_and_fused_agree(folder: Path):
    wanted = expected(folder)
    ids, mask = wanted["B_input_ids"], wanted["B_attention_mask"]
    eager, fused = (
        load(folder, attn_implementation=name)(ids, attention_mask=mask).logits[mask.bool()]
        for name in ("eager", "sdpa")
    )
    assert_close(eager, fused, atol=1e-5)


@torch.no_grad()
def test_only_the_logits_asked_for_are_computed(dense_folder: Path):
    wanted, model = expected(dense_folder), load(dense_folder)
    logits = model(wanted["A_input_ids"], logits_to_keep=2).logits
    assert_close(logits, wanted["A_logits"][:, -2:], atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(dense_folder: Path, use_reentrant: bool):
    wanted, gradients = expected(dense_folder), []
    for is_on in (True, False):
        model = load(dense_folder).train()
        if is_on:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(wanted["A_input_ids"], labels=wanted["E_labels"]).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, gradients[1][name]), name


@torch.no_grad()
def test_without_biases_the_network_is_the_one_with_zero_biases(
    chatglm_fixtures: Path, tmp_path: Path
):
    source = chatglm_fixtures / "chatglm3_tiny_fp16"
    tensors = original_tensors(source)
    without = edited(source, tmp_path / "without", add_qkv_bias=False)
    zeroed = edited(source, tmp_path / "zeroed")
    for folder, bias in ((without, False), (zeroed, True)):
        kept = {n: t if t.dim() == 2 else t * (not n.endswith("bias")) for n, t in tensors.items()}
        kept = {name: t for name, t in kept.items() if bias or not name.endswith(".bias")}
        torch.save(kept, folder / "pytorch_model.bin")
    ids = expected(source)["A_input_ids"]
    model = load(without)
    assert model.model.layers[0].self_attn.q_proj.bias is None
    assert_close(model(ids).logits, load(zeroed)(ids).logits, atol=0)


# --- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM])
@pytest.mark.parametrize("trust", [True, False])
def test_code_in_the_folder_is_never_run(
    chatglm_fixtures: Path, tmp_path: Path, auto: type, trust: bool
):
    folder = edited(chatglm_fixtures / "chatglm2_tiny_fp16", tmp_path / "planted")
    canary = tmp_path / "canary"
    (folder / "custom_generate").mkdir()
    for name in ("configuration_chatglm", "modeling_chatglm", "custom_generate/generate"):
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    model = auto.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32)
    assert type(model) is ChatGLMForCausalLM
    ids = torch.tensor([[5, 6]])
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
    assert not canary.exists()


def test_a_generate_function_in_the_folder_would_run_for_a_stock_model(
    chatglm_fixtures: Path, tmp_path: Path
):
    load(chatglm_fixtures / "chatglm2_tiny_fp16").to_glm().save_pretrained(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "custom_generate").mkdir()
    code = f"open({str(canary)!r}, 'w').close()\ndef generate(model, **kwargs): ...\n"
    (tmp_path / "custom_generate" / "generate.py").write_text(code)
    AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert canary.exists()


def test_a_pickle_that_runs_code_is_refused(chatglm_fixtures: Path, tmp_path: Path):
    folder = edited(chatglm_fixtures / "chatglm3_tiny_fp16", tmp_path / "planted")
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(canary), "w")

    torch.save({"transformer.output_layer.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"more than tensors \(io\.open\); nothing of it"):
        load(folder, trust_remote_code=True)
    assert not canary.exists()


def test_nothing_is_missing_and_nothing_left_over(folder: Path):
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert report["missing_keys"] == set()
    assert report["unexpected_keys"] == set()
    assert report["mismatched_keys"] == set()


def test_the_type_saved_is_the_default(dense_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(dense_folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_prefix_weights_are_refused_instead_of_left_out(chatglm_fixtures: Path, tmp_path: Path):
    folder = edited(chatglm_fixtures / "chatglm3_tiny_fp16", tmp_path / "prefix")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["transformer.prefix_encoder.embedding.weight"] = torch.zeros(4, 12)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="P-tuning") as caught:
        load(folder)
    assert [p.key for p in caught.value.problems] == ["transformer.prefix_encoder.embedding.weight"]


def test_quantized_weights_need_a_config_that_says_so(chatglm_fixtures: Path, tmp_path: Path):
    """Their shape is that of dense ones in int8, so that nothing else would notice."""
    folder = edited(chatglm_fixtures / "chatglm3_tiny_fp16", tmp_path / "int8")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    name = "transformer.encoder.layers.0.self_attention.dense.weight"
    tensors[f"{name}_scale"] = torch.ones(len(tensors[name]))
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="without quantization_bit; accepts 4 or 8"):
        load(folder)


def test_dense_weights_need_a_config_without_quantization(chatglm_fixtures: Path, tmp_path: Path):
    folder = edited(chatglm_fixtures / "chatglm3_tiny_fp16", tmp_path / "x", quantization_bit=8)
    with pytest.raises(CheckpointError, match="take quantization_bit out of"):
        load(folder)


@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers tells of it once more
@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("chatglm3_tiny_fp16", "transformer.output_layer.weight"),
        ("chatglm3_tiny_fp16", "transformer.encoder.final_layernorm.weight"),
        ("chatglm3_tiny_fp16", "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"),
        ("chatglm2_tiny_int4", "transformer.embedding.word_embeddings.weight"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(
    chatglm_fixtures: Path, tmp_path: Path, checkpoint: str, name: str
):
    folder = edited(chatglm_fixtures / checkpoint, tmp_path / "cut")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del tensors[name]
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="found no such weights") as caught:
        load(folder)
    assert len(caught.value.problems) == 1


def test_scales_of_a_layer_that_is_not_packed_are_refused_as_such(
    int4_folder: Path, tmp_path: Path
):
    folder = edited(int4_folder, tmp_path / "x")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["transformer.embedding.word_embeddings.weight_scale"] = torch.ones(8)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="that the model does not pack") as caught:
        load(folder)
    assert "without quantization_bit" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("place", ["../elsewhere.bin", "below/elsewhere.bin"])
def test_weights_outside_of_the_folder_are_refused(
    dense_folder: Path, tmp_path: Path, kind: str, place: str
):
    folder = edited(dense_folder, tmp_path / "x")
    target = folder / place
    target.parent.mkdir(exist_ok=True)
    tensors = original_tensors(folder)
    torch.save(tensors, target)
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, place)}
    (folder / f"{kind}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside of its folder") as caught:
        load(folder)
    assert caught.value.problems[0].where == str(folder / f"{kind}.index.json")


@torch.no_grad()
def test_the_rope_mode_reaches_the_network(chatglm_fixtures: Path, tmp_path: Path):
    source = chatglm_fixtures / "chatglm2_tiny_fp16"
    folder = edited(source, tmp_path / "long", rope_ratio=4)
    rotary_dim, exponents = 8, torch.arange(0, 8, 2) / 8
    for mode, theta, divisor in (("theta", 40000.0, 1), ("linear", 10000.0, 4)):
        rotary = load(folder, rope_mode=mode).model.rotary_emb
        assert rotary.inv_freq.shape == (rotary_dim // 2,)
        assert_close(rotary.inv_freq, theta**-exponents / divisor)


# --- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}], ids=["one file", "shards"])
def test_saved_tensors_are_the_original_ones(folder: Path, tmp_path: Path, options: dict[str, str]):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is bool(options)
    assert_same(saved_tensors(tmp_path), original_tensors(folder))


@torch.no_grad()
def test_a_saved_model_reloads_bit_identical(folder: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(folder, rope_mode="linear")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(again.state_dict(), model.state_dict())
    assert (again.config.family, again.config.rope_mode) == (model.config.family, "linear")
    assert again.generation_config.to_dict() == model.generation_config.to_dict()


@torch.no_grad()
def test_an_adapter_saved_on_its_own_finds_its_base(folder: Path, tmp_path: Path):
    ids = expected(folder)["A_input_ids"]
    model = get_peft_model(load(folder), LoraConfig(target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.01)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.generation_config.to_dict() == load(folder).generation_config.to_dict()
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert (again(ids).logits - expected(folder)["A_logits"]).abs().max() > 1e-3


@torch.no_grad()
def test_a_save_with_native_names_reloads_and_is_saved_with_original_ones(
    folder: Path, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "native", save_original_format=False)
    assert "model.embed_tokens.weight" in saved_tensors(tmp_path / "native")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert_same(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "original")
    assert_same(saved_tensors(tmp_path / "original"), original_tensors(folder))


def test_a_model_quantized_in_memory_is_saved_as_the_original_quantizer_did(
    chatglm_fixtures: Path, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(chatglm_fixtures / "chatglm2_tiny_fp16")
    quantize(model, bits=4)
    model.save_pretrained(tmp_path)
    assert_same(saved_tensors(tmp_path), original_tensors(chatglm_fixtures / "chatglm2_tiny_int4"))
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["quantization_bit"] == 4


def test_a_new_model_is_saved_in_the_original_format(tmp_path: Path):
    config = AutoConfig.for_model(
        "chatglm", vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, eos_token_id=3, pad_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    layer = "transformer.encoder.layers.0."
    assert {name: tuple(t.shape) for name, t in saved_tensors(tmp_path).items()} == {
        "transformer.embedding.word_embeddings.weight": (40, 16),
        f"{layer}input_layernorm.weight": (16,),
        f"{layer}self_attention.query_key_value.weight": (16 + 2 * 16, 16),
        f"{layer}self_attention.query_key_value.bias": (16 + 2 * 16,),
        f"{layer}self_attention.dense.weight": (16, 16),
        f"{layer}post_attention_layernorm.weight": (16,),
        f"{layer}mlp.dense_h_to_4h.weight": (48, 16),
        f"{layer}mlp.dense_4h_to_h.weight": (16, 24),
        "transformer.encoder.final_layernorm.weight": (16,),
        "transformer.output_layer.weight": (40, 16),
    }
    assert_same(load(tmp_path).state_dict(), model.state_dict())


def test_saving_leaves_the_dtype_of_the_config_a_dtype(folder: Path, tmp_path: Path):
    model = load(folder)
    model.save_pretrained(tmp_path)
    assert model.config.dtype is torch.float32


@torch.no_grad()
@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_quantized_by_bitsandbytes_survives_saving(
    dense_folder: Path, tmp_path: Path, bits: int
):
    wanted = expected(dense_folder)
    quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = load(dense_folder, quantization_config=quantization)
    guard_cpu_packing(model)
    before = model(wanted["A_input_ids"]).logits
    assert (before - wanted["A_logits"]).abs().max() > TOLERANCE
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    guard_cpu_packing(again)
    assert torch.equal(again(wanted["A_input_ids"]).logits, before)


# --- casts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["half", "float", "bfloat16"])
def test_the_casts_of_published_scripts_work(folder: Path, name: str):
    dtype = {"half": torch.float16, "float": torch.float32, "bfloat16": torch.bfloat16}[name]
    model = AutoModelForCausalLM.from_pretrained(folder)
    packed = {n: p for n, p in model.state_dict().items() if p.dtype == torch.int8}
    scales = {n: p for n, p in model.state_dict().items() if n.endswith("weight_scale")}
    assert bool(packed) is bool(scales) is ("int4" in folder.name)
    assert getattr(model, name)() is model
    after = model.state_dict()
    assert_same({n: after[n] for n in packed | scales}, packed | scales)
    assert {t.dtype for n, t in after.items() if n not in packed | scales} == {dtype}


@torch.no_grad()
def test_a_cast_leaves_the_rotary_angles_exact(folder: Path):
    """Rounded to float16 the angles would be off by 0.1 rad and more at position 700."""
    ids = expected(folder)["G_input_ids"]
    cast = load(folder).half()
    exponents = torch.arange(0, cast.config.head_dim // 2, 2) / (cast.config.head_dim // 2)
    assert_close(cast.model.rotary_emb.inv_freq, 10000.0**-exponents)
    assert torch.equal(cast(ids).logits, load(folder, dtype=torch.float16)(ids).logits)


@torch.no_grad()
def test_a_packed_model_cast_to_float_equals_the_original_code(int4_folder: Path):
    wanted = expected(int4_folder)
    model = AutoModelForCausalLM.from_pretrained(int4_folder).float()
    assert_close(model(wanted["A_input_ids"]).logits, wanted["A_logits"])


def test_casts_of_bitsandbytes_models_stay_refused(dense_folder: Path):
    model = load(dense_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    for cast in (model.half, model.float):
        with pytest.raises(ValueError, match="not supported for quantized model"):
            cast()


@torch.no_grad()
def test_dequantizing_works_after_saving(int4_folder: Path, tmp_path: Path):
    wanted, model = expected(int4_folder), load(int4_folder)
    model.save_pretrained(tmp_path)
    for dtype in (None, "float32", torch.float32):
        dense = load(int4_folder).dequantize(dtype) if dtype else model.dequantize()
        assert not any(tensor.dtype == torch.int8 for tensor in dense.state_dict().values())
        assert_close(dense(wanted["A_input_ids"]).logits, wanted["A_logits"])


# --- generation defaults -------------------------------------------------------------------------


def test_generation_defaults_are_those_of_the_original_chat(folder: Path):
    defaults = load(folder).generation_config
    assert (defaults.do_sample, defaults.top_p, defaults.temperature) == (True, 0.8, 0.8)
    assert (defaults.max_length, defaults.pad_token_id) == (1024, 0)
    special = json.loads((folder / "expected_tokenizer.json").read_text("utf-8"))["specials"]
    roles = ["<|user|>", "<|observation|>"] if folder.name.startswith("chatglm3") else []
    assert defaults.eos_token_id == [2, *(special[role] for role in roles)]


def test_published_checkpoints_without_tokenizer_have_the_published_end_tokens():
    config = AutoConfig.for_model("chatglm", family="chatglm3")
    assert default_generation(config).eos_token_id == [2, 64795, 64797]
    assert default_generation(config, num_pieces=460).eos_token_id == [2, 466, 468]
    config = AutoConfig.for_model("chatglm", family="chatglm2")
    assert default_generation(config, num_pieces=460).eos_token_id == [2]


def test_an_unknown_vocabulary_without_tokenizer_ends_with_the_end_token(
    chatglm_fixtures: Path, tmp_path: Path
):
    folder = edited(chatglm_fixtures / "chatglm3_tiny_fp16", tmp_path / "bare")
    (folder / "tokenizer.model").unlink()
    assert load(folder).generation_config.eos_token_id == [2]


def test_end_tokens_that_the_config_lists_are_kept(chatglm_fixtures: Path, tmp_path: Path):
    source = chatglm_fixtures / "chatglm3_tiny_fp16"
    folder = edited(source, tmp_path / "listed", eos_token_id=[2, 7])
    assert load(folder).generation_config.eos_token_id == [2, 7]


def test_a_generation_config_in_the_folder_wins(dense_folder: Path, tmp_path: Path):
    folder = edited(dense_folder, tmp_path / "own")
    (folder / "generation_config.json").write_text('{"eos_token_id": 9, "max_length": 50}')
    found = load(folder).generation_config
    assert (found.eos_token_id, found.max_length, found.do_sample) == (9, 50, None)


def test_a_checkpoint_of_the_hub_gets_the_same_defaults(chatglm_fixtures: Path, tmp_path: Path):
    """From a cache laid out as huggingface_hub does, without network."""
    commit = "0" * 40
    repository = tmp_path / "models--THUDM--chatglm3-tiny"
    source = chatglm_fixtures / "chatglm3_tiny_fp16"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(source, repository / "snapshots" / commit)
    model = AutoModelForCausalLM.from_pretrained(
        "THUDM/chatglm3-tiny", cache_dir=tmp_path, local_files_only=True
    )
    assert model.config.family == "chatglm3"
    assert model.generation_config.eos_token_id == [2, 466, 468]


# --- export --------------------------------------------------------------------------------------

PLAIN = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
wanted = load_file(sys.argv[2])
with torch.no_grad():
    difference = (model(wanted["A_input_ids"]).logits - wanted["A_logits"]).abs().max().item()
assert not [name for name in sys.modules if name.startswith("sft_kit")]
print(type(model).__module__, type(model).__name__, model.generation_config.eos_token_id)
print(difference)
"""


@pytest.mark.slow  # another process imports transformers
def test_an_exported_model_needs_plain_transformers_only(chatglm_fixtures: Path, tmp_path: Path):
    source = chatglm_fixtures / "chatglm3_tiny_fp16"
    model = load(source, rope_mode="theta").to_glm()
    model.save_pretrained(tmp_path)
    assert "sft_kit" not in (tmp_path / "config.json").read_text("utf-8")
    command = [sys.executable, "-c", PLAIN, str(tmp_path), str(source / "expected.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, difference = done.stdout.strip().splitlines()[-2:]
    assert name == "transformers.models.glm.modeling_glm GlmForCausalLM [2, 466, 468]"
    assert float(difference) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_exported_model_is_stock_glm_with_the_same_output(
    dense_folder: Path, tmp_path: Path, dtype: torch.dtype
):
    wanted, model = expected(dense_folder), load(dense_folder, dtype=dtype)
    glm = to_glm(model)
    assert (type(glm), type(glm.config)) == (GlmForCausalLM, GlmConfig)
    assert not glm.training
    assert not glm.config.to_dict().keys() & {"family", "rope_mode", "rope_ratio", "rmsnorm"}
    before = model(wanted["A_input_ids"]).logits
    assert torch.equal(glm(wanted["A_input_ids"]).logits, before)
    glm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is GlmForCausalLM
    assert again.dtype == dtype
    assert torch.equal(again(wanted["A_input_ids"]).logits, before)


@pytest.mark.parametrize("mode", ["theta", "linear"])
@torch.no_grad()
def test_an_exported_model_keeps_its_long_context(
    chatglm_fixtures: Path, tmp_path: Path, mode: str
):
    source = chatglm_fixtures / "chatglm2_tiny_fp16"
    model = load(edited(source, tmp_path / "long", rope_ratio=4), rope_mode=mode)
    ids = expected(source)["G_input_ids"]
    glm = model.to_glm()
    assert torch.equal(glm(ids).logits, model(ids).logits)
    glm.save_pretrained(tmp_path / "glm")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "glm", dtype=torch.float32)
    assert torch.equal(again(ids).logits, model(ids).logits)
    unscaled = expected(source)["G_logits_tail"]
    assert (model(ids).logits[:, -4:] - unscaled).abs().max() > 0.1


def test_a_packed_model_is_not_exported(int4_folder: Path):
    with pytest.raises(CheckpointError, match=r"call model\.dequantize\(\) before"):
        load(int4_folder).to_glm()


def test_a_model_with_an_adapter_is_not_exported(dense_folder: Path):
    model = load(dense_folder)
    get_peft_model(model, LoraConfig(target_modules=["o_proj"]))
    with pytest.raises(CheckpointError, match="an adapter that is not merged"):
        model.to_glm()


@torch.no_grad()
def test_a_dequantized_model_is_exported(int4_folder: Path):
    wanted = expected(int4_folder)
    glm = load(int4_folder).dequantize().to_glm()
    assert_close(glm(wanted["A_input_ids"]).logits, wanted["A_logits"])


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_bitsandbytes_on_top_of_packed_weights_is_refused(
    chatglm_fixtures: Path, bits: dict[str, bool]
):
    folder = chatglm_fixtures / "chatglm2_tiny_int4"
    with pytest.raises(CheckpointError, match="packed in 4 bits already"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**bits))
