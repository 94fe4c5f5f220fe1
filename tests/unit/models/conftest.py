"""What several tests of models need."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Hub, and nobody asks whether there is one."""
    for module in ("base", "chatglm.foreign_code"):
        monkeypatch.setattr(f"sft_kit.models.{module}.hub_is_reachable", lambda: False)


TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 99, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, object]] = {
    "bert": TINY,
    "roberta": TINY | {"pad_token_id": 1},
    "electra": TINY | {"embedding_size": 32},
    "albert": TINY | {"embedding_size": 16, "inner_group_num": 1},
    "deberta-v2": TINY | {"pooler_hidden_size": 32},
    "distilbert": {
        "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 99,
        "max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0, "initializer_range": 0.3,
    },
    "modernbert": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "vocab_size": 99, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
        "sep_token_id": 2, "initializer_range": 0.3,
    },
    "gpt2": {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 98,
        "eos_token_id": 98, "initializer_range": 0.3,
    },
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 99,
        "max_position_embeddings": 64, "bos_token_id": 97, "eos_token_id": 98,
        "initializer_range": 0.3,
    },
}  # fmt: skip


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random pretrained model of an architecture, without a classification head."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    def make(architecture: str, stage: str = "pretrained", **fields: object) -> Path:
        config = AutoConfig.for_model(architecture, **(ARCHITECTURES[architecture] | fields))
        is_decoder = architecture in ("gpt2", "llama")
        auto = AutoModelForCausalLM if is_decoder else AutoModel
        if stage == "masked":
            auto = AutoModelForMaskedLM
        torch.manual_seed(11)
        folder = tmp_path / f"{architecture}-{stage}"
        auto.from_config(config).save_pretrained(folder)
        return folder

    return make
