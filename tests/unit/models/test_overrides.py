"""Fields of `model.config` on a checkpoint: those its weights allow, and those they do not."""

from pathlib import Path

import pytest
import torch

from sft_kit.errors import ConfigError
from sft_kit.models.base import load_causal_lm
from sft_kit.models.pretraining import load_of_kind
from sft_kit.settings import ModelSettings


def load(folder: Path, fields: dict[str, object]) -> torch.nn.Module:
    if folder.name.startswith(("gpt2", "llama", "chatglm")):
        return load_causal_lm(ModelSettings(str(folder), config=fields))
    return load_of_kind(ModelSettings(str(folder), config=fields), "masked")


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("bert", {"num_hidden_layers": 1}),
        ("bert", {"num_hidden_layers": 3}),
        ("bert", {"num_attention_heads": 2}),
        ("bert", {"hidden_size": 64, "intermediate_size": 64}),
        ("bert", {"hidden_size": 30}),
        ("bert", {"vocab_size": 98}),
        ("bert", {"max_position_embeddings": 128}),
        ("albert", {"num_hidden_layers": 4}),
        ("distilbert", {"n_layers": 1, "n_heads": 2}),
        ("gpt2", {"n_layer": 1}),
        ("gpt2", {"num_hidden_layers": 1}),
        ("gpt2", {"n_head": 2}),
        ("gpt2", {"n_positions": 32}),
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    ],
)
def test_other_layers_heads_and_sizes_are_refused_by_name(make_checkpoint, architecture, fields):
    masked = () if architecture in ("gpt2", "llama") else ("masked",)
    folder = make_checkpoint(architecture, *masked)
    harmless = {"initializer_range": 0.5}
    with pytest.raises(ConfigError, match="these fields do not fit the checkpoint") as caught:
        load(folder, harmless | fields)
    problems = caught.value.problems
    assert [(one.where, one.key) for one in problems] == [("model", f"config.{f}") for f in fields]


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("bert", {"hidden_dropout_prob": 0.5, "num_hidden_layers": 2, "layer_norm_eps": 1e-5}),
        ("gpt2", {"attn_pdrop": 0.5, "n_head": 4, "use_cache": False}),
        ("llama", {"max_position_embeddings": 256}),  # rotary positions have no weights
    ],
)
def test_fields_that_leave_the_weights_alone_are_taken(make_checkpoint, architecture, fields):
    folder = make_checkpoint(architecture, *(("masked",) if architecture == "bert" else ()))
    state = torch.get_rng_state()
    model = load(folder, fields)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: getattr(model.config, name) for name in fields} == fields
    whole = load(folder, {}).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


def test_a_packed_checkpoint_takes_them_too(chatglm_fixtures: Path):
    folder = chatglm_fixtures / "chatglm2_tiny_int4"
    assert load(folder, {"attention_dropout": 0.1}).config.attention_dropout == 0.1
    with pytest.raises(ConfigError, match=r"config\.num_hidden_layers: found 1, and the weights"):
        load(folder, {"num_hidden_layers": 1})
