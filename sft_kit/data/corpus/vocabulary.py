"""Which tokens of a tokenizer corruption may touch, and which ones it needs."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from sft_kit.data.corpus.rows import Vocabulary
from sft_kit.errors import DataError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Needs = Literal["causal", "masked", "left_to_right", "prefix", "spans", "denoise"]

_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_ENDED_BY_EOS = ("causal", "spans")
_NEEDED: Mapping[Needs, tuple[str, ...]] = MappingProxyType(
    {
        "causal": ("end",),
        "masked": ("mask", "start", "end", "pad"),
        "left_to_right": ("start", "end", "pad"),
        "prefix": ("mask", "start", "end", "pad"),
        "spans": ("sentinels", "end", "pad"),
        "denoise": ("mask", "start", "end", "pad"),
    }
)
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "mask": "mask token (mask_token)",
        "start": "token that begins a text (cls_token or bos_token)",
        "end": "token that ends a text (sep_token or eos_token)",
        "pad": "padding token (pad_token)",
        "sentinels": "sentinels (<extra_id_0>, <extra_id_1>, ...)",
    }
)
_FAMILIES: Mapping[Needs, str] = MappingProxyType(
    {
        "causal": "gpt2",
        "masked": "bert",
        "left_to_right": "bert",
        "prefix": "bert",
        "spans": "t5",
        "denoise": "bart",
    }
)


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", needs: Needs) -> Vocabulary:
    """Look up the tokens that an objective needs.

    A text ends with `sep_token`, else `eos_token`; the other way round for `causal` and `spans`,
    whose models write the end themselves.

    Args:
        tokenizer: Fast or slow.
        needs: Kind of the objective.

    Raises:
        DataError: The tokenizer lacks one of them.
    """
    known = tokenizer.get_vocab()
    by_number = {
        int(match.group(1)): id_ for token, id_ in known.items() if (match := _sentinel(token))
    }
    sentinels = tuple(by_number[number] for number in sorted(by_number))
    ends = (tokenizer.sep_token_id, tokenizer.eos_token_id)
    start = _first(tokenizer.cls_token_id, tokenizer.bos_token_id)
    end = _first(*(reversed(ends) if needs in _ENDED_BY_EOS else ends))
    pad, mask = _first(tokenizer.pad_token_id), _first(tokenizer.mask_token_id)
    special = {*_special_ids(tokenizer), *sentinels, start, end, pad, mask}
    found = {"mask": mask, "start": start, "end": end, "pad": pad}
    missing = [
        name
        for name in _NEEDED[needs]
        if (not sentinels if name == "sentinels" else found[name] < 0)
    ]
    if missing:
        raise _lacks(tokenizer, missing, needs)
    ids = set(known.values())
    return Vocabulary(
        size=max(len(known), max(ids, default=-1) + 1),
        pad=pad,
        mask=mask,
        start=start,
        end=end,
        sentinels=sentinels,
        ordinary=np.array(sorted(ids - special), dtype=np.int64),
    )


def _sentinel(token: str) -> "re.Match[str] | None":
    return _SENTINEL.fullmatch(token)


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids of the named special tokens, and of those that are only added as special."""
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)}


def _first(*ids: object) -> int:
    return next((id_ for id_ in ids if isinstance(id_, int)), -1)


def _lacks(tokenizer: "PreTrainedTokenizerBase", missing: list[str], needs: Needs) -> DataError:
    todo = (
        f"train one with `sft-kit tokenizer train --family {_FAMILIES[needs]}`, or name another "
        "checkpoint"
    )
    where = f"the tokenizer {tokenizer.name_or_path}".rstrip()
    problems = [Problem(where, "", f"found no {_NAMES[name]}", todo) for name in missing]
    return DataError(f"the tokenizer lacks what this objective needs ({needs}):", problems)
