"""What was saved is compared with what is in memory, also where a second base has no room."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from sft_kit.artifacts import reading_back
from sft_kit.artifacts.reading_back import reload_difference
from sft_kit.devices import free_memory_bytes
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_causal_lm
from sft_kit.settings import ModelSettings

CPU = torch.device("cpu")


@pytest.fixture(params=["room for a second base", "no room"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no room":
        monkeypatch.setattr(reading_back, "free_memory_bytes", lambda device: 0)


@pytest.fixture
def settings(gpt2_checkpoint: Path) -> ModelSettings:
    return ModelSettings(str(gpt2_checkpoint))


@pytest.fixture
def adapted(settings: ModelSettings, tmp_path: Path):
    """An adapter with an effect and what was saved of it."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], modules_to_save=["ln_f"])
    model = attach_lora(load_causal_lm(settings), config)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    return model


def change(file: Path, part: str) -> None:
    tensors = load_file(file)
    (name,) = [name for name in tensors if part in name][:1]
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.usefixtures("room")
def test_what_was_saved_is_the_model_to_the_last_bit(adapted, settings, tmp_path: Path):
    adapted.train()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert reload_difference(adapted, tmp_path / "saved", settings) == 0
    assert adapted.training
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == trainable
    assert list(adapted.peft_config) == ["default"]
    assert before.keys() == adapted.state_dict().keys()
    assert all(torch.equal(before[name], t) for name, t in adapted.state_dict().items())


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("part", ["lora_A", "lora_B", "ln_f"])
def test_a_saved_tensor_that_differs_is_noticed(adapted, settings, tmp_path: Path, part: str):
    change(tmp_path / "saved" / "adapter_model.safetensors", part)
    assert reload_difference(adapted, tmp_path / "saved", settings) > 0


@pytest.mark.usefixtures("room")
def test_a_whole_model_is_compared_too(gpt2_model: GPT2LMHeadModel, tmp_path: Path):
    gpt2_model.save_pretrained(tmp_path)
    assert reload_difference(gpt2_model, tmp_path, None) == 0
    change(tmp_path / "model.safetensors", "ln_f.weight")
    assert reload_difference(gpt2_model, tmp_path, None) > 0


def test_no_second_base_is_loaded_where_there_is_no_room(
    adapted, settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second base was loaded")

    monkeypatch.setattr(reading_back, "load_model", refuse)
    with pytest.raises(AssertionError):
        reload_difference(adapted, tmp_path / "saved", settings)
    monkeypatch.setattr(reading_back, "free_memory_bytes", lambda device: 0)
    assert reload_difference(adapted, tmp_path / "saved", settings) == 0


def test_free_memory_is_what_the_kernel_says():
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    if not available:
        pytest.skip("no /proc/meminfo here")
    assert free_memory_bytes(CPU) == pytest.approx(available[0], rel=0.2)
