"""Fields of the original config.json to fields of GLM, and back; what can't be is refused.

Source of the fields and of what they do: THUDM/chatglm2-6b and THUDM/chatglm3-6b,
configuration_chatglm.py and modeling_chatglm.py.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.family import (
    DEFAULT_FAMILY,
    Family,
    default_family,
    known_family,
    published_names,
)

RopeMode = Literal["auto", "theta", "linear"]

QUANT_METHOD = "chatglm_rowwise"

ORIGINAL_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "num_layers": "num_hidden_layers",
        "padded_vocab_size": "vocab_size",
        "ffn_hidden_size": "intermediate_size",
        "kv_channels": "head_dim",
        "multi_query_group_num": "num_key_value_heads",
        "layernorm_epsilon": "rms_norm_eps",
        "seq_length": "max_position_embeddings",
        "add_qkv_bias": "attention_bias",
    }
)
"""Original field -> field of GlmConfig, where the two differ."""

ORIGINAL_NAMES: Mapping[str, str] = MappingProxyType(
    {native: original for original, native in ORIGINAL_FIELDS.items()}
)
_REQUIRED = (*ORIGINAL_FIELDS, "hidden_size", "num_attention_heads", "multi_query_attention")
_ONLY: Mapping[str, object] = MappingProxyType(
    {  # all that the GLM architecture of transformers can express
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "add_bias_linear": False,
        "multi_query_attention": True,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "tie_word_embeddings": False,
        "pre_seq_len": None,
    }
)
OVERRIDABLE = frozenset((*_REQUIRED, *ORIGINAL_FIELDS.values(), *_ONLY)) | {
    "quantization_bit", "family", "rope_ratio", "rope_mode"
}  # fmt: skip
"""Fields whose meaning or check depends on others, so that they can't be set afterwards."""

_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "pre_seq_len": "P-tuning prefixes are not supported: take the checkpoint that the prefix "
        "was trained on, and train a LoRA adapter",
        "hidden_dropout": "it acts in training only: set it to 0",
    }
)
_DEFAULTS: Mapping[str, object] = MappingProxyType(
    {  # of the 6B models; where a file is read, nothing that shapes the model is left to them
        "vocab_size": 65024,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 28,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "rope_ratio": 1.0,
        "rope_mode": "auto",
    }
)
_DEFAULT_HEAD_DIM = 128
_SIZES = (
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_CONSUMED = frozenset({"auto_map", "_name_or_path", "quantization_bit"})
_NOT_ORIGINAL = ("rope_parameters", "hidden_act", "initializer_range", "tokenizer_class")
_SUMMARY = "this ChatGLM config can't be used"


def to_native(raw: Mapping[str, object]) -> dict[str, Any]:
    """Translate the fields of a config.json, in either spelling, to those of GlmConfig.

    Args:
        raw: The fields, with `name_or_path` where they were read from a folder.

    Returns:
        The fields, with `family`, `rope_parameters` and `quantization_config` derived; without
        `auto_map`, which points to the checkpoint's own code.

    Raises:
        CheckpointError: All that is missing, contradictory or without an equivalent.
    """
    where = _place(raw)
    if "position_encoding_2d" in raw or "inner_hidden_size" in raw:
        # The same model_type; Source: THUDM/chatglm-6b, config.json.
        message = "found ChatGLM-6B, the first generation; accepts ChatGLM2 and ChatGLM3"
        todo = "choose THUDM/chatglm2-6b or THUDM/chatglm3-6b"
        raise CheckpointError(_SUMMARY, [Problem(where, "model_type", message, todo)])
    given = {key: value for key, value in raw.items() if key not in _CONSUMED}
    if raw.get("_name_or_path"):
        given.setdefault("name_or_path", raw["_name_or_path"])
    native = {**_DEFAULTS, **{ORIGINAL_FIELDS.get(key, key): given[key] for key in given}}
    if "kv_channels" not in raw and native.get("head_dim") is None:
        native["head_dim"] = _derived_head_dim(native)
    derived, problems = _derived(native, raw)
    problems = [
        *_missing(raw),
        *_contradictions(raw),
        *_flags(raw),
        *_sizes(native, raw),
        *problems,
    ]
    if problems:
        raise CheckpointError(_SUMMARY, [replace(problem, where=where) for problem in problems])
    return native | derived


def to_original(native: Mapping[str, Any]) -> dict[str, Any]:
    """Spell the fields of a saved config as the original does; the inverse of `to_native`."""
    fields = {ORIGINAL_NAMES.get(key, key): value for key, value in native.items()}
    if "dtype" in fields:  # read by transformers 4, and by 5 as well
        fields["torch_dtype"] = fields.pop("dtype")
    quantization = fields.get("quantization_config")
    if quantization is not None and quantization.get("quant_method") == QUANT_METHOD:
        fields["quantization_bit"] = fields.pop("quantization_config")["bits"]
    flags = {name: only for name, only in _ONLY.items() if only is not None}
    written = fields | flags | {"architectures": ["ChatGLMModel"]}
    empty = [name for name in ("bos_token_id", "quantization_config") if written.get(name) is None]
    return {name: written[name] for name in written if name not in {*_NOT_ORIGINAL, *empty}}


def rope_parameters(ratio: float, mode: Literal["theta", "linear"]) -> dict[str, Any]:
    """Say in transformers' words what `rope_ratio` does to the rotary angles.

    Half of each head is rotated, from a base of 10000.

    Args:
        ratio: 1 leaves the angles alone.
        mode: As `rope_mode`.

    Source:
        THUDM/chatglm3-6b-32k and THUDM/chatglm2-6b-32k, modeling_chatglm.py, `RotaryEmbedding`.
    """
    theta = 10000.0 * ratio if mode == "theta" else 10000.0
    scaled = {"rope_type": "linear", "factor": ratio} if mode == "linear" and ratio != 1 else {}
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5} | scaled


def _place(raw: Mapping[str, object]) -> str:
    name = str(raw.get("name_or_path") or "")
    if not name:
        return "config.json" if "model_type" in raw else ""
    return name if name.endswith(".json") else f"{name}/config.json"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


# --- what is given -------------------------------------------------------------------------------


def _missing(raw: Mapping[str, object]) -> list[Problem]:
    is_file_without_sizes = "model_type" in raw and "num_hidden_layers" not in raw
    if not is_file_without_sizes and not raw.keys() & ORIGINAL_FIELDS.keys():
        return []  # GLM's spelling, where what is not given has a default
    todo = "take config.json from where the weights come from"
    return [
        Problem("", name, "found nothing; the field is needed", todo)
        for name in _REQUIRED
        if name not in raw and ORIGINAL_FIELDS.get(name) not in raw
    ]


def _contradictions(raw: Mapping[str, object]) -> list[Problem]:
    return [
        Problem(
            "", name, f"found {_json(raw[name])} and {native}={_json(raw[native])}; accepts one"
        )
        for name, native in ORIGINAL_FIELDS.items()
        if name in raw and native in raw and raw[name] != raw[native]
    ]


def _flags(raw: Mapping[str, object]) -> list[Problem]:
    todo = "the GLM architecture has no equivalent: choose another checkpoint"
    return [
        Problem(
            "", name, f"found {_json(raw[name])}; accepts {_json(only)}", _ADVICE.get(name, todo)
        )
        for name, only in _ONLY.items()
        if name in raw and raw[name] != only
    ]


def _sizes(native: Mapping[str, Any], raw: Mapping[str, object]) -> list[Problem]:
    def problem(field: str, accepted: str) -> Problem:
        original = ORIGINAL_NAMES.get(field, field)
        name = original if original in raw else field
        return Problem("", name, f"found {_json(native[field])}; accepts {accepted}")

    problems = [
        problem(field, "a whole number above 0") for field in _SIZES if not _is_size(native[field])
    ]
    if not _is_above_zero(native["rms_norm_eps"]):
        problems.append(problem("rms_norm_eps", "a number above 0"))
    if not isinstance(native["attention_bias"], bool):
        problems.append(problem("attention_bias", "true or false"))
    if problems:
        return problems
    heads, groups = native["num_attention_heads"], native["num_key_value_heads"]
    if heads % groups:
        problems.append(problem("num_key_value_heads", f"a divisor of num_attention_heads={heads}"))
    if not {"kv_channels", "head_dim"} & raw.keys() and native["hidden_size"] % heads:
        accepted = f"a multiple of num_attention_heads={heads} where there is no head_dim"
        problems.append(problem("hidden_size", accepted))
    elif native["head_dim"] % 4:  # half of it is rotated, in pairs
        problems.append(problem("head_dim", "a multiple of 4"))
    return problems


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


# --- what is derived -----------------------------------------------------------------------------


def _derived_head_dim(native: Mapping[str, object]) -> int:
    hidden, heads = native["hidden_size"], native["num_attention_heads"]
    if not (isinstance(hidden, int) and isinstance(heads, int) and hidden >= heads > 0):
        return _DEFAULT_HEAD_DIM  # the size that is wrong is told by itself
    return hidden // heads


def _derived(
    native: Mapping[str, Any], raw: Mapping[str, object]
) -> tuple[dict[str, Any], list[Problem]]:
    derived: dict[str, Any] = {}
    problems: list[Problem] = []
    bits = raw.get("quantization_bit") or 0
    if bits in (4, 8):
        derived["quantization_config"] = {"quant_method": QUANT_METHOD, "bits": bits}
    elif bits:
        problems.append(Problem("", "quantization_bit", f"found {_json(bits)}; accepts 0, 4 or 8"))
    try:
        known = _known_family(raw)
    except CheckpointError as error:
        return derived, [*problems, *error.problems]
    ratio, mode = native["rope_ratio"], native["rope_mode"]
    if rope_problems := _rope_problems(ratio, mode, known):
        return derived, [*problems, *rope_problems]
    place = raw.get("name_or_path")  # absent where a config is made, not read
    derived["family"] = known or (default_family(str(place)) if place else DEFAULT_FAMILY)
    if mode == "auto":
        mode = "theta" if known == "chatglm3" else "linear"
    derived["rope_parameters"] = rope_parameters(float(ratio), mode)
    return derived, [*problems, *_other_rope(raw, derived["rope_parameters"])]


def _known_family(raw: Mapping[str, object]) -> Family | None:
    place = Path(str(raw["name_or_path"])) if raw.get("name_or_path") else None
    folder = place.parent if place is not None and place.suffix == ".json" else place
    explicit = raw.get("family")
    name = " ".join(published_names(raw))
    return known_family(folder, name, None if explicit is None else str(explicit))


def _rope_problems(ratio: object, mode: object, known: Family | None) -> list[Problem]:
    if mode not in get_args(RopeMode):
        accepted = ", ".join(get_args(RopeMode))
        return [Problem("", "rope_mode", f"found {_json(mode)}; accepts {accepted}")]
    if not _is_above_zero(ratio):
        return [Problem("", "rope_ratio", f"found {_json(ratio)}; accepts a number above 0")]
    if mode == "auto" and ratio != 1 and known is None:
        # Wrong angles make no error, only a bad model; the field alone can't tell.
        message = f"found {_json(ratio)}, and nothing tells whether this is ChatGLM2 or ChatGLM3"
        todo = (
            "set rope_mode='linear' (as chatglm2-6b-32k) or rope_mode='theta' (chatglm3-6b-32k): "
            "model.config.rope_mode=... in a recipe, --config rope_mode=... in a command"
        )
        return [Problem("", "rope_ratio", message, todo)]
    return []


def _other_rope(raw: Mapping[str, Any], derived: Mapping[str, Any]) -> list[Problem]:
    """Refuse angles given in transformers' words that are others than `rope_ratio` gives."""
    given = {key: raw[key] for key in ("rope_parameters", "rope_scaling") if raw.get(key)}
    if raw.get("rope_theta") is not None:
        given["rope_theta"] = {"rope_theta": raw["rope_theta"]}
    return [
        Problem("", key, f"found {_json(value)}; accepts none", "set rope_ratio and rope_mode")
        for key, value in given.items()
        if not all(derived.get(name) == value[name] for name in value)
    ]
