"""Checkpoints of ChatGLM that transformers would load with something lost, or by unpickling."""

from collections.abc import Iterable, Mapping
from typing import cast

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.configuration import ChatGLMConfig
from sft_kit.models.chatglm.original_config import QUANT_METHOD
from sft_kit.models.weight_files import download_options, has_safetensors

_SCALE = ".weight_scale"


def refuse_second_quantization(name: str, options: Mapping[str, object]) -> None:
    """Stop where packed weights shall be quantized again.

    Args:
        name: The checkpoint, as the user named it.
        options: For `from_pretrained`.

    Raises:
        CheckpointError: They shall.
    """
    wanted = options.get("quantization_config")
    stored = getattr(options.get("config"), "quantization_config", None)
    method = getattr(wanted, "quant_method", None)
    if wanted is None or stored is None or method == QUANT_METHOD:
        return
    bits = stored["bits"] if isinstance(stored, Mapping) else stored.bits
    found = f"found {type(wanted).__name__} for weights that are packed in {bits} bits already"
    todo = "leave it out: the weights stay packed; or load the checkpoint in fp16"
    raise CheckpointError(
        f"{name} can't be loaded", [Problem("", "quantization_config", found, todo)]
    )


def refuse_untold_dtype(name: str, options: Mapping[str, object]) -> None:
    """Stop where transformers 5.23 would unpickle `.bin` to learn the dtype of the weights.

    Args:
        name: Hub id or folder.
        options: For `from_pretrained`.

    Raises:
        CheckpointError: Neither they nor config.json say it, and there is nothing but `.bin`.
    """
    if (options.get("dtype") or options.get("torch_dtype") or "auto") != "auto":
        return
    config = options.get("config")
    download = download_options(options)
    if not isinstance(config, ChatGLMConfig):
        config = ChatGLMConfig.from_pretrained(cast("str", config or name), **download)
    if config.dtype is None and not has_safetensors(name, **download):
        found = "found weights in .bin and no torch_dtype in config.json, which has to say it"
        problem = Problem(name, "torch_dtype", found, "set it there to float16, or pass dtype=")
        raise CheckpointError(f"{name} can't be loaded", [problem])


def refuse_other_weights(name: str, report: Mapping[str, Iterable[str]], is_packed: bool) -> None:
    """Stop where weights were left out, or are missing.

    Args:
        name: The checkpoint, as the user named it.
        report: Of transformers: `unexpected_keys` and `missing_keys`.
        is_packed: Whether the model's layers are packed.

    Raises:
        CheckpointError: Some were, each kind named once.
    """
    unexpected, missing = sorted(report["unexpected_keys"]), sorted(report["missing_keys"])
    scales = [key for key in unexpected if key.endswith(_SCALE)]
    checks = (
        (
            [key for key in unexpected if "prefix_encoder." in key],
            "found weights of a P-tuning prefix; accepts none",
            "take the checkpoint that it was trained on, and train a LoRA adapter",
        ),
        (
            [] if is_packed else scales,
            "found quantized weights without quantization_bit; accepts 4 or 8 for them",
            "set it in config.json to what the weights were quantized to",
        ),
        (
            scales if is_packed else [],
            "found quantized weights for a layer that the model does not pack",
            "copy config.json and the weights from the same checkpoint",
        ),
        (
            [key for key in missing if key.endswith(_SCALE)],
            "found quantization_bit and weights that are not quantized",
            "take quantization_bit out of config.json",
        ),
        (
            [key for key in missing if not key.endswith(_SCALE)],
            "found no such weights",
            "copy the checkpoint anew, it is incomplete",
        ),
    )
    problems = [
        Problem(name, keys[0], f"{message} ({len(keys)} tensors)", todo)
        for keys, message, todo in checks
        if keys
    ]
    if problems:
        raise CheckpointError(f"the weights of {name} can't be used", problems)
