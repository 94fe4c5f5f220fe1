"""Run folders made without a training, as the recipes leave them."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a finished run of a checkpoint: a LoRA with an effect, or the whole model."""
    import torch
    from peft import LoraConfig

    from sft_kit.artifacts.save import save_model
    from sft_kit.data.templates import choose_template
    from sft_kit.models.adapters import attach_lora
    from sft_kit.models.base import load_causal_lm, load_tokenizer
    from sft_kit.models.fingerprint import describe_base
    from sft_kit.run_record import weight_digests, write_record
    from sft_kit.settings import ModelSettings

    def build(checkpoint: Path, *, adapter: bool = True, **model: object) -> Path:
        folder = tmp_path / f"run-{checkpoint.name}"
        settings = ModelSettings(str(checkpoint), **({"dtype": "float32"} | model))
        config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=32)
        tokenizer = load_tokenizer(settings)
        template = choose_template(tokenizer, "auto")
        trained = attach_lora(load_causal_lm(settings), config if adapter else None)
        torch.manual_seed(5)
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        save_model(trained, tokenizer, folder)
        write_record(
            folder,
            {
                "status": "finished",
                "recipe": "sft_x_lora.py",
                "settings": {"model": asdict(settings), "adapter": {"r": 8} if adapter else None},
                "template": template.describe(),
                "base": describe_base(settings),
                "weights": weight_digests(folder),
            },
        )
        return folder

    return build
