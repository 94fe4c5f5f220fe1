"""Whether a checkpoint is the one that an adapter was trained on: weights, settings, vocabulary.

Weights alone don't tell: with fewer layers, another activation or other rotary angles in
config.json the same files load without a word and compute something else.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from sft_kit.errors import SftKitError
from sft_kit.models.base import load_config_of, load_tokenizer
from sft_kit.settings import ModelSettings

_MAX_SHOWN = 5
_SAYS_NOTHING = re.compile(
    r"_?name_or_path|transformers_version|(torch_)?dtype|architectures|auto_map|\w+_class|family|"
    r"id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|"
    r"use_cache|return_dict|output_(attentions|hidden_states)|chunk_size_feed_forward|"
    r"\w+_token_ids?|summary_\w+|classifier_\w+"
)
"""Fields of a config that saving writes anew, that belong to a head, or that weights show."""
_TRAINS_ONLY = re.compile(r"\w*(drop|initializer|init_std|initialization)\w*|layerdrop")
"""Fields that change a training and never an answer."""


def base_facts(settings: ModelSettings) -> dict[str, object]:
    """Collect what tells a base from another one with the same weights.

    Returns:
        `config`: fields of its config, the defaults among them; `num_tokens` and `vocabulary`
        (sha256 over the tokens and their ids) of its tokenizer. What can't be read is left out.
    """
    facts: dict[str, object] = {}
    if (config := _config_fields(settings)) is not None:
        facts["config"] = config
    try:
        vocabulary = load_tokenizer(settings).get_vocab()
    except SftKitError:  # a run has a tokenizer of its own
        return facts
    tokens = json.dumps(sorted(vocabulary.items()), ensure_ascii=True)
    digest = hashlib.sha256(tokens.encode()).hexdigest()
    return facts | {"num_tokens": len(vocabulary), "vocabulary": digest}


def base_differences(
    saved: Mapping[str, object], found: Mapping[str, object], *, for_training: bool = False
) -> list[str]:
    """Say in which ways a base is another one than that of a run.

    Args:
        saved: `base` of `run.yaml`; what an older version did not write is not compared.
        found: `describe_base` of the base that is there.
        for_training: What matters to training only, such as dropout, counts too.

    Returns:
        Half a sentence each ("the weights differ"); empty where it is the same.
    """
    differences = []
    if saved.get("fingerprint") != found.get("fingerprint"):
        differences.append("the weights differ")
    before, now = (cast("Mapping[str, object]", one.get("config") or {}) for one in (saved, found))
    fields = list(_other_fields(before, now, for_training=for_training))
    if fields:
        more = ", ..." if len(fields) > _MAX_SHOWN else ""
        differences.append(f"its config.json has {', '.join(fields[:_MAX_SHOWN])}{more}")
    if _is_other(saved, found, "num_tokens"):
        counts = f"{found['num_tokens']:,} tokens instead of {saved['num_tokens']:,}"
        differences.append(f"its tokenizer has {counts}")
    elif _is_other(saved, found, "vocabulary"):
        differences.append("its tokenizer has other tokens")
    return differences


def _config_fields(settings: ModelSettings) -> dict[str, object] | None:
    """Fields of a checkpoint's own config; where it needs those of `model.config`, with them."""
    for source in (replace(settings, config={}), settings):
        try:
            config = load_config_of(source)
        except SftKitError:
            continue
        whole = json.loads(config.to_json_string(use_diff=False))
        return cast("dict[str, object]", _telling(whole))
    return None


def _telling(value: object) -> object:
    if isinstance(value, dict):
        kept = sorted(name for name in value if not _SAYS_NOTHING.fullmatch(str(name)))
        return {name: _telling(value[name]) for name in kept}
    return [_telling(one) for one in value] if isinstance(value, list) else value


def _other_fields(
    before: Mapping[str, object], now: Mapping[str, object], *, for_training: bool
) -> Iterator[str]:
    """Name what differs; what one of the two versions of transformers does not know is no fact."""
    for name in sorted(before.keys() & now.keys()):
        if not for_training and _TRAINS_ONLY.fullmatch(name):
            continue
        old, new = before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            inner = _other_fields(old, new, for_training=for_training)
            yield from (f"{name}.{line}" for line in inner)
        elif old != new:
            yield f"{name}={json.dumps(new)} instead of {json.dumps(old)}"


def _is_other(saved: Mapping[str, object], found: Mapping[str, object], name: str) -> bool:
    return name in saved and name in found and saved[name] != found[name]
