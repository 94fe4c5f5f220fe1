import copy
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GlmConfig
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.configuration import ChatGLMConfig

CHECKPOINTS = ["chatglm2_tiny_fp16", "chatglm2_tiny_int4", "chatglm3_tiny_fp16"]
SAME_MEANING = {
    "num_layers": "num_hidden_layers",
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "multi_query_group_num": "num_key_value_heads",
    "layernorm_epsilon": "rms_norm_eps",
    "seq_length": "max_position_embeddings",
    "add_qkv_bias": "attention_bias",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
NATIVE = {
    "vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 256, "max_position_embeddings": 64, "eos_token_id": 3, "pad_token_id": 1,
}  # fmt: skip
NO_EQUIVALENT = {
    "rmsnorm": False,
    "post_layer_norm": False,
    "apply_residual_connection_post_layernorm": True,
    "add_bias_linear": True,
    "multi_query_attention": False,
    "fp32_residual_connection": True,
    "pre_seq_len": 128,
    "hidden_dropout": 0.1,
    "tie_word_embeddings": True,
    "quantization_bit": 2,
}


def original(folder: Path, name: str = "chatglm2_tiny_fp16") -> dict[str, object]:
    fields: dict[str, object] = json.loads((folder / name / "config.json").read_text("utf-8"))
    return fields


def write(folder: Path, fields: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def angles(config: GlmConfig, position: int) -> torch.Tensor:
    """Angle of each rotated pair at a position, as the network uses it."""
    rotary = GlmRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1, 1, 1), torch.tensor([[position]]))
    pairs = cos.shape[-1] // 2
    return torch.atan2(sin[0, 0, :pairs], cos[0, 0, :pairs])


def closed_form(position: float, theta: float, rotary_dim: int) -> torch.Tensor:
    exact = [position * theta ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)]
    return torch.tensor([math.atan2(math.sin(angle), math.cos(angle)) for angle in exact])


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_original_field_becomes_the_one_with_its_meaning(chatglm_fixtures: Path, name: str):
    fields = original(chatglm_fixtures, name)
    config = AutoConfig.from_pretrained(chatglm_fixtures / name)
    assert type(config) is ChatGLMConfig
    for field, native in SAME_MEANING.items():
        assert getattr(config, native) == fields[field], field
        assert getattr(config, field) == fields[field], field
    assert config.dtype is torch.float16
    assert config.bos_token_id is None
    assert not hasattr(config, "auto_map")


@pytest.mark.parametrize("trust", [True, False, None])
def test_code_beside_the_config_is_never_run(
    chatglm_fixtures: Path, tmp_path: Path, trust: bool | None
):
    canary = plant_code(tmp_path, original(chatglm_fixtures))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)
    assert type(config) is ChatGLMConfig
    assert not canary.exists()


def test_the_code_above_would_run_for_a_model_type_that_nobody_registered(
    chatglm_fixtures: Path, tmp_path: Path
):
    canary = plant_code(tmp_path, original(chatglm_fixtures) | {"model_type": "unregistered"})
    AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert canary.exists()


def plant_code(folder: Path, fields: dict[str, object]) -> Path:
    write(folder, fields)
    canary = folder / "canary"
    (folder / "configuration_chatglm.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nfrom transformers import PreTrainedConfig\n"
        f"class ChatGLMConfig(PreTrainedConfig):\n    model_type = {fields['model_type']!r}\n"
    )
    return canary


def test_a_layer_without_query_key_value_bias_can_be_expressed(chatglm_fixtures: Path):
    fields = original(chatglm_fixtures) | {"add_qkv_bias": False}
    assert ChatGLMConfig(**fields).attention_bias is False


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_bits_name_the_quantizer(chatglm_fixtures: Path, bits: int):
    config = ChatGLMConfig(**original(chatglm_fixtures), quantization_bit=bits)
    assert config.quantization_config == {"quant_method": "chatglm_rowwise", "bits": bits}
    assert config.to_diff_dict()["quantization_bit"] == bits
    assert "quantization_config" not in config.to_diff_dict()


@pytest.mark.parametrize("bits", [0, None])
def test_no_quantization_bits_name_none(chatglm_fixtures: Path, bits: int | None):
    config = ChatGLMConfig(**original(chatglm_fixtures), quantization_bit=bits)
    assert not hasattr(config, "quantization_config")


def test_keywords_override_the_file_in_either_spelling(chatglm_fixtures: Path):
    folder = chatglm_fixtures / "chatglm2_tiny_fp16"
    config, unused = AutoConfig.from_pretrained(
        folder, num_hidden_layers=1, seq_length=77, other=3, return_unused_kwargs=True
    )
    assert (config.num_layers, config.max_position_embeddings) == (1, 77)
    assert unused == {"other": 3}


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", NO_EQUIVALENT)
def test_a_flag_without_native_equivalent_is_refused_by_name(
    chatglm_fixtures: Path, tmp_path: Path, field: str
):
    write(tmp_path, original(chatglm_fixtures) | {field: NO_EQUIVALENT[field]})
    with pytest.raises(CheckpointError) as caught:
        AutoConfig.from_pretrained(tmp_path)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == (f"{tmp_path}/config.json", field)
    assert f"found {json.dumps(NO_EQUIVALENT[field])}; accepts " in problem.message


def test_all_that_is_wrong_is_told_at_once(chatglm_fixtures: Path):
    fields = original(chatglm_fixtures) | NO_EQUIVALENT | {"rope_ratio": -1, "kv_channels": "x"}
    del fields["num_layers"]
    with pytest.raises(CheckpointError) as caught:
        ChatGLMConfig(**fields)
    found = {problem.key for problem in caught.value.problems}
    assert found == {*NO_EQUIVALENT, "rope_ratio", "kv_channels", "num_layers"}


@pytest.mark.parametrize(
    "field",
    [field for field in SAME_MEANING if not field.endswith("token_id")] + ["multi_query_attention"],
)
def test_a_field_that_shapes_the_model_is_not_guessed(chatglm_fixtures: Path, field: str):
    fields = original(chatglm_fixtures)
    del fields[field]
    with pytest.raises(CheckpointError) as caught:
        ChatGLMConfig(**fields)
    assert [problem.key for problem in caught.value.problems] == [field]


def test_a_file_with_nothing_but_its_type_is_refused(tmp_path: Path):
    write(tmp_path, {"model_type": "chatglm"})
    with pytest.raises(CheckpointError, match="num_layers: found nothing; the field is needed"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("num_layers", 0, "a whole number above 0"),
        ("num_layers", True, "a whole number above 0"),
        ("hidden_size", "64", "a whole number above 0"),
        ("kv_channels", 6, "a multiple of 4"),
        ("kv_channels", None, "a whole number above 0"),
        ("multi_query_group_num", 3, "a divisor of num_attention_heads=4"),
        ("layernorm_epsilon", -1e-5, "a number above 0"),
        ("add_qkv_bias", "yes", "true or false"),
        ("quantization_bit", True, "0, 4 or 8"),
        ("rope_ratio", "2", "a number above 0"),
        ("rope_mode", "yarn", "auto, theta, linear"),
        ("family", "glm4", "chatglm2 or chatglm3"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_accepted(
    chatglm_fixtures: Path, field: str, value: object, accepted: str
):
    with pytest.raises(CheckpointError) as caught:
        ChatGLMConfig(**original(chatglm_fixtures) | {field: value})
    (problem,) = caught.value.problems
    assert problem.key == field
    assert accepted in problem.message


@pytest.mark.parametrize("field", ["position_encoding_2d", "inner_hidden_size"])
def test_the_first_generation_is_refused_by_its_name(tmp_path: Path, field: str):
    """Fields of THUDM/chatglm-6b, which has the same model type."""
    write(tmp_path, {"model_type": "chatglm", "hidden_size": 4096, "num_layers": 28, field: True})
    with pytest.raises(CheckpointError, match="ChatGLM-6B, the first generation") as caught:
        AutoConfig.from_pretrained(tmp_path)
    assert len(caught.value.problems) == 1


def test_two_spellings_with_two_values_are_refused(chatglm_fixtures: Path):
    with pytest.raises(CheckpointError, match="found 2 and num_hidden_layers=3; accepts one"):
        ChatGLMConfig(**original(chatglm_fixtures), num_hidden_layers=3)


# --- rotary angles -------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 17, 1000])
@pytest.mark.parametrize(
    ("name", "ratio", "stretch", "theta"),
    [
        ("THUDM/chatglm3-6b-32k", 50, 1, 500000.0),
        ("THUDM/chatglm2-6b-32k", 16, 16, 10000.0),
        ("THUDM/chatglm2-6b", 1, 1, 10000.0),
        ("THUDM/chatglm3-6b", 1, 1, 10000.0),
    ],
)
def test_the_ratio_changes_the_base_in_chatglm3_and_the_positions_in_chatglm2(
    chatglm_fixtures: Path, name: str, ratio: int, stretch: int, theta: float, position: int
):
    fields = original(chatglm_fixtures) | {"_name_or_path": name, "rope_ratio": ratio}
    expected = closed_form(position / stretch, theta, rotary_dim=8)  # half of kv_channels 16
    torch.testing.assert_close(
        angles(ChatGLMConfig(**fields), position), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", ["THUDM/chatglm2-6b-32k", "THUDM/chatglm3-6b-32k", "mine"])
@pytest.mark.parametrize("mode", ["theta", "linear"])
def test_the_mode_can_be_given_whatever_the_name(
    chatglm_fixtures: Path, tmp_path: Path, mode: str, name: str
):
    fields = original(chatglm_fixtures) | {"_name_or_path": name, "rope_ratio": 4}
    config = AutoConfig.from_pretrained(write(tmp_path, fields), rope_mode=mode)
    expected = closed_form(5, 40000.0, 8) if mode == "theta" else closed_form(5 / 4, 10000.0, 8)
    torch.testing.assert_close(angles(config, 5), expected, atol=1e-5, rtol=0)


def test_the_family_decides_the_mode_too(chatglm_fixtures: Path, tmp_path: Path):
    fields = original(chatglm_fixtures) | {"_name_or_path": "mine", "rope_ratio": 4}
    config = AutoConfig.from_pretrained(write(tmp_path, fields), family="chatglm3")
    assert config.family == "chatglm3"
    torch.testing.assert_close(angles(config, 5), closed_form(5, 40000.0, 8), atol=1e-5, rtol=0)


def test_a_ratio_that_nothing_explains_is_refused(chatglm_fixtures: Path, tmp_path: Path):
    write(tmp_path / "mine", original(chatglm_fixtures) | {"_name_or_path": "", "rope_ratio": 4})
    with pytest.raises(
        CheckpointError, match="nothing tells whether this is ChatGLM2 or"
    ) as caught:
        AutoConfig.from_pretrained(tmp_path / "mine")
    assert "rope_mode='linear'" in caught.value.problems[0].todo


def test_the_name_of_the_folder_explains_the_ratio(chatglm_fixtures: Path, tmp_path: Path):
    fields = original(chatglm_fixtures) | {"_name_or_path": "", "rope_ratio": 4}
    folder = write(tmp_path / "chatglm3-6b-32k", fields)
    for config in (AutoConfig.from_pretrained(folder), ChatGLMConfig.from_pretrained(folder)):
        torch.testing.assert_close(angles(config, 5), closed_form(5, 40000.0, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "given",
    [
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5000.0},
    ],
)
def test_angles_that_the_original_format_cannot_hold_are_refused(given: dict[str, object]):
    with pytest.raises(CheckpointError) as caught:
        ChatGLMConfig(**NATIVE, **given)
    assert [problem.key for problem in caught.value.problems] == list(given)


# --- native names, saving ------------------------------------------------------------------------


def test_a_new_config_is_made_with_native_names_and_derives_the_size_of_a_head():
    config = AutoConfig.for_model("chatglm", **NATIVE, bos_token_id=None)
    assert {name: getattr(config, name) for name in NATIVE} == NATIVE
    assert config.head_dim == 32
    assert (config.num_key_value_heads, config.rms_norm_eps) == (2, 1e-5)


def test_the_defaults_are_those_of_the_6b_models():
    """Values of THUDM/chatglm2-6b, config.json."""
    config = ChatGLMConfig()
    expected = (65024, 4096, 28, 13696, 128, 32, 2, 32768, 1e-5, True, 2, 0)
    names = (
        "padded_vocab_size", "hidden_size", "num_layers", "ffn_hidden_size", "kv_channels",
        "num_attention_heads", "multi_query_group_num", "seq_length", "layernorm_epsilon",
        "add_qkv_bias", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    assert tuple(getattr(config, name) for name in names) == expected


def test_a_hidden_size_that_heads_do_not_divide_needs_the_size_of_a_head():
    fields = NATIVE | {"hidden_size": 130}
    with pytest.raises(CheckpointError, match="hidden_size: found 130; accepts a multiple of"):
        ChatGLMConfig(**fields)
    assert ChatGLMConfig(**fields, head_dim=16).head_dim == 16


def test_a_model_without_end_token_keeps_none():
    assert ChatGLMConfig(**NATIVE | {"eos_token_id": None}).eos_token_id is None


def test_a_new_config_is_saved_in_the_original_spelling(tmp_path: Path):
    AutoConfig.for_model("chatglm", **NATIVE, dtype="float16").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert {field: saved[field] for field in SAME_MEANING} == {
        "num_layers": 4, "padded_vocab_size": 300, "hidden_size": 128, "ffn_hidden_size": 256,
        "kv_channels": 32, "num_attention_heads": 4, "multi_query_group_num": 2,
        "layernorm_epsilon": 1e-5, "seq_length": 64, "add_qkv_bias": True, "eos_token_id": 3,
        "pad_token_id": 1,
    }  # fmt: skip
    assert saved["torch_dtype"] == "float16"
    assert saved["multi_query_attention"] is True
    assert not saved.keys() & {"num_hidden_layers", "rope_parameters", "dtype", "auto_map"}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_saved_config_differs_from_the_original_only_where_it_must(
    chatglm_fixtures: Path, tmp_path: Path, name: str
):
    fields = original(chatglm_fixtures, name)
    AutoConfig.from_pretrained(chatglm_fixtures / name).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    for dropped in ("auto_map", "_name_or_path", "transformers_version"):
        fields.pop(dropped, None)
        saved.pop(dropped, None)
    added = {"family": name[:8], "rope_ratio": 1.0, "rope_mode": "auto"}
    assert saved == fields | added


@pytest.mark.parametrize("mode", ["auto", "theta", "linear"])
@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_family_and_mode_survive_saving(
    chatglm_fixtures: Path, tmp_path: Path, family: str, mode: str
):
    fields = original(chatglm_fixtures) | {"rope_ratio": 3.0, "_name_or_path": "mine"}
    config = ChatGLMConfig(**fields, family=family, rope_mode=mode)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert (again.family, again.rope_mode) == (family, mode)
    assert again.rope_parameters == config.rope_parameters


def test_a_copy_by_fields_is_equal(chatglm_fixtures: Path):
    config = AutoConfig.from_pretrained(chatglm_fixtures / "chatglm3_tiny_fp16")
    again = ChatGLMConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()
