import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, MultitaskPromptTuningConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.adapters import ParameterCount, attach_lora, count_parameters, load_adapter
from sft_kit.models.base import load_causal_lm
from sft_kit.settings import ModelSettings

IDS = torch.arange(1, 25).unsqueeze(0)
ALL_LINEAR = 4  # of a GPT-2 block: c_attn, attn.c_proj, c_fc, mlp.c_proj


def lora(targets: object = "all-linear", **options: object) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, **options)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def wake(model: nn.Module) -> None:
    """Give the adapter an effect: PEFT starts B at zero."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def load(folder: Path, quantization: str = "none", **options: object):
    return load_causal_lm(ModelSettings(str(folder), quantization=quantization, **options))


# --- where adapters go ---------------------------------------------------------------------------


def test_all_linear_finds_every_conv1d_layer_of_gpt2_and_not_the_output_layer(
    gpt2_model: GPT2LMHeadModel,
):
    expected = {
        f"base_model.model.{name}"
        for name, layer in gpt2_model.named_modules()
        if isinstance(layer, Conv1D)
    }
    layers = lora_layers(attach_lora(gpt2_model, lora()))
    assert set(layers) == expected
    assert len(layers) == ALL_LINEAR * gpt2_model.config.n_layer


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_all_linear_finds_the_same_layers_in_a_quantized_gpt2(
    gpt2_checkpoint: Path, quantization: str
):
    layers = lora_layers(attach_lora(load(gpt2_checkpoint, quantization), lora()))
    assert len(layers) == ALL_LINEAR * 2
    assert not any("lm_head" in name for name in layers)


def test_conv1d_layers_are_flagged_as_transposed(gpt2_model: GPT2LMHeadModel):
    model = attach_lora(gpt2_model, lora())
    assert model.peft_config["default"].fan_in_fan_out is True
    assert all(layer.fan_in_fan_out for layer in lora_layers(model).values())


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_gpt2_layers_are_not_flagged_as_transposed(
    gpt2_checkpoint: Path, quantization: str
):
    model = attach_lora(load(gpt2_checkpoint, quantization), lora(fan_in_fan_out=True))
    assert model.peft_config["default"].fan_in_fan_out is False


def test_linear_layers_of_llama_are_not_flagged_as_transposed(llama_model: LlamaForCausalLM):
    model = attach_lora(llama_model, lora(["q_proj", "down_proj"]))
    assert model.peft_config["default"].fan_in_fan_out is False
    assert len(lora_layers(model)) == 2 * 2


@pytest.mark.parametrize("target", ["c_attn", "c_proj", "c_fc"])
def test_the_merged_model_gives_the_logits_of_the_adapter(gpt2_model: GPT2LMHeadModel, target: str):
    base = logits(gpt2_model)
    model = attach_lora(gpt2_model, lora([target]))
    wake(model)
    adapted = logits(model)
    assert (adapted - base).abs().max() > 1e-2
    difference = (logits(model.merge_and_unload()) - adapted).abs()
    assert difference.max() < 1e-5
    assert difference.mean() < 1e-6


def test_layers_of_both_kinds_can_be_adapted_together(gpt2_model: GPT2LMHeadModel):
    gpt2_model.lm_head.weight = nn.Parameter(gpt2_model.lm_head.weight.detach().clone())
    gpt2_model.config.tie_word_embeddings = False
    model = attach_lora(gpt2_model, lora(["c_attn", "lm_head"]))
    wake(model)
    adapted = logits(model)
    assert len(lora_layers(model)) == 3
    assert (logits(model.merge_and_unload()) - adapted).abs().max() < 1e-5


def test_an_expression_selects_layers_by_their_whole_name(gpt2_model: GPT2LMHeadModel):
    model = attach_lora(gpt2_model, lora(r"transformer\.h\.1\..*c_(attn|fc)"))
    assert len(lora_layers(model)) == 2


def test_without_target_modules_peft_chooses_by_architecture(gpt2_model: GPT2LMHeadModel):
    model = attach_lora(gpt2_model, lora(None))
    assert {name.rsplit(".", 1)[1] for name in lora_layers(model)} == {"c_attn"}


def test_embeddings_can_be_adapted(gpt2_model: GPT2LMHeadModel):
    assert len(lora_layers(attach_lora(gpt2_model, lora(["wpe"])))) == 1


def test_no_adapter_leaves_the_whole_model_trainable(gpt2_model: GPT2LMHeadModel):
    model = attach_lora(gpt2_model, None)
    assert model is gpt2_model
    count = count_parameters(model)
    assert count.trainable == count.total == gpt2_model.num_parameters()


# --- names that match nothing --------------------------------------------------------------------


def test_every_wrong_target_is_named_on_its_own(gpt2_model: GPT2LMHeadModel):
    with pytest.raises(ConfigError, match="3 target modules match no layer") as caught:
        attach_lora(gpt2_model, lora(["c_attn", "q_proj", "c_atn", "ttn"]))
    messages = [problem.message for problem in caught.value.problems]
    assert [message.split(",")[0] for message in messages] == [
        "found 'c_atn'",
        "found 'q_proj'",
        "found 'ttn'",
    ]
    assert "did you mean 'c_attn'?" in messages[0]
    assert all("accepts all-linear or c_attn, c_fc, c_proj" in message for message in messages)


@pytest.mark.parametrize("target", ["attn", "h", "transformer", "ln_1", "act", "c_attn.weight"])
def test_a_module_that_is_no_layer_is_refused(gpt2_model: GPT2LMHeadModel, target: str):
    with pytest.raises(ConfigError, match="1 target module matches no layer"):
        attach_lora(gpt2_model, lora(["c_fc", target]))


def test_a_single_name_given_as_text_is_explained(gpt2_model: GPT2LMHeadModel):
    with pytest.raises(ConfigError, match=r"write \[c_attn\]"):
        attach_lora(gpt2_model, lora("c_attn"))


@pytest.mark.parametrize("targets", ["(", ".*nothing.*"])
def test_an_expression_that_matches_nothing_is_refused(gpt2_model: GPT2LMHeadModel, targets: str):
    with pytest.raises(ConfigError, match="1 target module matches no layer"):
        attach_lora(gpt2_model, lora(targets))


@pytest.mark.parametrize("options", [{"exclude_modules": ["c_attn"]}, {"layers_to_transform": [7]}])
def test_what_peft_refuses_is_a_config_error(
    gpt2_model: GPT2LMHeadModel, options: dict[str, object]
):
    with pytest.raises(ConfigError, match="the adapter does not fit the model"):
        attach_lora(gpt2_model, lora(["c_attn"], **options))


# --- what trains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_only_the_adapter_trains_and_it_is_float32(gpt2_checkpoint: Path, quantization: str):
    base = load(gpt2_checkpoint, quantization, dtype="bfloat16")
    model = attach_lora(base, lora())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, _ in model.named_parameters() if "lora_" in name} == set(trainable)
    assert len(trainable) == 2 * ALL_LINEAR * 2
    assert {parameter.dtype for parameter in trainable.values()} == {torch.float32}


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_parameters_are_counted_as_what_they_stand_for(
    gpt2_checkpoint: Path, gpt2_model: GPT2LMHeadModel, quantization: str
):
    base = gpt2_model.num_parameters()
    hidden = gpt2_model.config.n_embd
    # r x (in + out) for c_attn, attn.c_proj, c_fc and mlp.c_proj of two blocks
    adapter = 2 * 4 * ((1 + 3) + (1 + 1) + (1 + 4) + (4 + 1)) * hidden
    model = attach_lora(load(gpt2_checkpoint, quantization), lora())
    assert count_parameters(model) == ParameterCount(adapter, base + adapter)


def test_a_count_reads_as_a_sentence():
    assert str(ParameterCount(1_500, 200_000)) == "1,500 of 200,000 parameters train (0.75%)"


def test_the_adapter_is_drawn_from_the_global_random_state(gpt2_checkpoint: Path):
    drawn = []
    for seed in (1, 1, 2):
        base = load(gpt2_checkpoint)
        torch.manual_seed(seed)
        model = attach_lora(base, lora())
        drawn.append(torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# --- equivalences --------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_disabled_adapter_gives_the_base_bit_for_bit(gpt2_checkpoint: Path, quantization: str):
    base = logits(load(gpt2_checkpoint, quantization))
    model = attach_lora(load(gpt2_checkpoint, quantization), lora())
    wake(model)
    assert not torch.equal(logits(model), base)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_saved_adapter_gives_the_logits_of_the_one_in_memory(
    gpt2_checkpoint: Path, tmp_path: Path, quantization: str
):
    model = attach_lora(load(gpt2_checkpoint, quantization), lora())
    wake(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    base = load(gpt2_checkpoint, quantization)
    unadapted = logits(base)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert (expected - unadapted).abs().max() > 1e-2
    assert torch.equal(logits(reloaded), expected)


def test_quantized_layers_stay_near_the_full_precision_model(gpt2_checkpoint: Path):
    full = logits(load(gpt2_checkpoint))
    errors = {
        quantization: (logits(load(gpt2_checkpoint, quantization)) - full).abs().mean().item()
        for quantization in ("int8", "nf4")
    }
    assert 0 < errors["int8"] < errors["nf4"] < 0.1 * full.std().item()


# --- saved adapters on their base ----------------------------------------------------------------


@pytest.fixture
def saved(gpt2_checkpoint: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A saved adapter with an effect, and its logits."""
    model = attach_lora(load(gpt2_checkpoint), lora())
    wake(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    return tmp_path / "adapter", logits(model)


def test_a_loaded_adapter_answers_and_does_not_train(
    gpt2_checkpoint: Path, saved: tuple[Path, torch.Tensor]
):
    folder, expected = saved
    model = load_adapter(load(gpt2_checkpoint), folder)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model), expected)


def test_an_adapter_with_the_settings_of_an_old_version_is_loaded(
    gpt2_checkpoint: Path, saved: tuple[Path, torch.Tensor]
):
    folder, expected = saved
    known = ("base_model_name_or_path", "bias", "fan_in_fan_out", "lora_alpha", "lora_dropout", "r",
             "peft_type", "target_modules", "task_type")  # fmt: skip
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({name: settings[name] for name in known}))
    assert torch.equal(logits(load_adapter(load(gpt2_checkpoint), folder)), expected)


def test_an_adapter_in_a_pickle_is_refused_and_how_to_convert_it_is_said(
    gpt2_checkpoint: Path, saved: tuple[Path, torch.Tensor]
):
    folder, _ = saved
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is a pickle, which is never read.*save it again"):
        load_adapter(load(gpt2_checkpoint), folder)


def test_an_adapter_that_names_a_file_to_start_from_is_refused_and_the_file_is_not_read(
    gpt2_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, num_tasks=1, num_ranks=1
    )
    get_peft_model(load(gpt2_checkpoint), config).save_pretrained(tmp_path / "prompt")
    path = tmp_path / "prompt" / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["prompt_tuning_init"] = "ONLY_SOURCE_SHARED"
    settings["prompt_tuning_init_state_dict_path"] = str(tmp_path / "start.bin")
    path.write_text(json.dumps(settings))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    with pytest.raises(CheckpointError, match="a file to start from, which PEFT may unpickle"):
        load_adapter(load(gpt2_checkpoint), tmp_path / "prompt")


def test_an_adapter_that_lacks_tensors_is_refused_instead_of_half_loaded(
    gpt2_checkpoint: Path, saved: tuple[Path, torch.Tensor]
):
    folder, _ = saved
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(key for key in tensors if "c_fc.lora_B" in key))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing adapter keys.*c_fc.*give the base"):
        load_adapter(load(gpt2_checkpoint), folder)


def test_an_adapter_of_another_base_is_refused(
    gpt2_checkpoint: Path, llama_checkpoint: Path, saved: tuple[Path, torch.Tensor]
):
    folder, _ = saved
    with pytest.raises(CheckpointError, match=r"does not fit the model.*\n.*not found in the base"):
        load_adapter(load(llama_checkpoint), folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", r"holds no adapter.*\n.*it has no adapter_config\.json"),
        ("adapter_model.safetensors", r"holds no adapter.*\n.*no adapter_model\.safetensors \("),
    ],
)
def test_a_folder_without_an_adapter_is_refused(
    gpt2_checkpoint: Path, saved: tuple[Path, torch.Tensor], name: str, message: str
):
    folder, _ = saved
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_adapter(load(gpt2_checkpoint), folder)


def test_a_damaged_adapter_is_an_error_in_words(
    gpt2_checkpoint: Path, saved: tuple[Path, torch.Tensor]
):
    folder, _ = saved
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="or is damaged"):
        load_adapter(load(gpt2_checkpoint), folder)
