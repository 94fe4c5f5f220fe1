"""Pairs of texts to token ids and labels.

The labels are the target as it stands: the collator puts it one place to the right for what the
decoder reads, so position t predicts `labels[t]`.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from sft_kit.data.corpus.rows import Corrupted
from sft_kit.data.inspection import counted, name_places
from sft_kit.data.pairs.rows import Pair, PairExample
from sft_kit.data.rows import Where
from sft_kit.errors import DataError, Problem
from sft_kit.settings import PairDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_UNKNOWN_FRACTION = 0.01


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: "PreTrainedTokenizerBase", settings: PairDataSettings
) -> list[PairExample]:
    """Encode sources and targets as the tokenizer begins and ends a text.

    A source that is too long is cut at its end and keeps the special tokens around it. A target
    that is cut loses its end token: it does not end there.

    Args:
        pairs: Rows as read.
        tokenizer: Its `model_max_length` bounds both lengths.
        settings: `prefix`, and both lengths in tokens.

    Returns:
        One example per pair, in order.

    Raises:
        DataError: The tokenizer has no token that ends a text, or a text spells a special token.
    """
    end = end_token_id(tokenizer)
    sources, cut_sources = encode_sources([pair.source for pair in pairs], tokenizer, settings)
    targets = _encode(tokenizer, text_target=[pair.target for pair in pairs])
    problems = _special_token_problems(pairs, sources, targets, tokenizer)
    if problems:
        raise DataError("these rows can't be read as text:", problems)
    room = min(settings.max_target_length, tokenizer.model_max_length)
    examples = []
    for pair, source, was_cut, target in zip(pairs, sources, cut_sources, targets, strict=True):
        labels = target if target[-1:] == [end] else [*target, end]
        examples.append(
            PairExample(
                input_ids=source,
                labels=labels[:room],
                was_source_cut=was_cut,
                was_target_cut=len(labels) > room,
                where=pair.where,
            )
        )
    return examples


def encode_sources(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", settings: PairDataSettings
) -> tuple[list[list[int]], list[bool]]:
    """Encode texts that are read, behind `data.prefix`, cut to `data.max_source_length`.

    Args:
        texts: Without the prefix.
        tokenizer: Its `model_max_length` bounds the length.
        settings: `prefix` and `max_source_length`.

    Returns:
        Token ids of each text, and whether it was cut.
    """
    room = min(settings.max_source_length, tokenizer.model_max_length)
    prefixed = [settings.prefix + text for text in texts]
    ids = _encode(tokenizer, text=prefixed)
    was_cut = [len(one) > room for one in ids]
    too_long = [text for text, is_long in zip(prefixed, was_cut, strict=True) if is_long]
    shorter = iter(_encode(tokenizer, text=too_long, truncation=True, max_length=room))
    return [next(shorter) if cut else one for one, cut in zip(ids, was_cut, strict=True)], was_cut


def end_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the token that ends a text: the tokenizer's `eos_token`, else `sep_token`.

    Raises:
        DataError: There is none.
    """
    for found in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if found is not None:
            return cast("int", found)
    raise DataError(
        "the tokenizer has no token that ends a text, so a model could never stop (give it an "
        "eos_token, or choose another model.checkpoint)"
    )


@dataclass(frozen=True, slots=True)
class PairRows:
    """Pairs as the map-style data set that a trainer takes.

    Attributes:
        rows: `input_ids` and `labels`, of different lengths.
        places: The row that each came from.
    """

    rows: list[Corrupted]
    places: list[Where]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Corrupted:
        return self.rows[index]

    def place(self, index: int) -> str:
        """Say where a row stood in the data."""
        return str(self.places[index])


def to_pair_dataset(examples: Sequence[PairExample]) -> PairRows:
    """Make the data set a trainer takes: `input_ids` and `labels`, of different lengths."""
    rows = [
        Corrupted(
            input_ids=np.asarray(example.input_ids, np.int64),
            labels=np.asarray(example.labels, np.int64),
        )
        for example in examples
    ]
    return PairRows(rows, [example.where for example in examples])


def check_pairs(
    examples: Sequence[PairExample],
    tokenizer: "PreTrainedTokenizerBase",
    settings: PairDataSettings,
) -> list[str]:
    """Refuse examples that can't teach, and say what looks unintended in those that can.

    Returns:
        Warnings, each a sentence.

    Raises:
        DataError: A source or a target has no token of its own.
    """
    special = {*tokenizer.all_special_ids} - {_unknown_id(tokenizer)}
    for name in ("input_ids", "labels"):
        empty = [one.where for one in examples if special.issuperset(getattr(one, name))]
        if empty:
            what = "source" if name == "input_ids" else "target"
            raise DataError(
                f"{counted(len(empty), what)} of {len(examples):,} have no token "
                f"{name_places(empty)}: the tokenizer knows none of their characters (remove them, "
                "or choose another model.checkpoint)"
            )
    return [
        *_lowered("max_source_length", settings.max_source_length, tokenizer),
        *_lowered("max_target_length", settings.max_target_length, tokenizer),
        *_cut(examples, tokenizer, settings),
        *_unknown(examples, tokenizer),
    ]


def spelled_pairs(
    pairs: Sequence[Pair], tokenizer: "PreTrainedTokenizerBase", settings: PairDataSettings
) -> list[Problem]:
    """Find pairs in which the tokenizer would read a special token.

    Only pairs whose characters spell one, as they stand or normalised, are encoded for that.

    Args:
        pairs: Rows as read.
        tokenizer: Of the model.
        settings: `prefix`, and both lengths in tokens.

    Returns:
        Problems in the order of the pairs' sources, then of their targets.
    """
    tokens = [token for token in tokenizer.all_special_tokens if token]

    def may_spell(text: str) -> bool:
        forms = (text, unicodedata.normalize("NFKC", text))
        return any(token in form for token in tokens for form in forms)

    doubtful = [pair for pair in pairs if may_spell(pair.source) or may_spell(pair.target)]
    sources, _ = encode_sources([pair.source for pair in doubtful], tokenizer, settings)
    targets = _encode(tokenizer, text_target=[pair.target for pair in doubtful])
    return _special_token_problems(doubtful, sources, targets, tokenizer)


def _special_token_problems(
    pairs: Sequence[Pair],
    sources: Sequence[list[int]],
    targets: Sequence[list[int]],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Problem]:
    """Find text that the tokenizer reads as a control token, such as an end in mid-text.

    SentencePiece models do so even where they are asked to read the characters.
    """
    special = {*tokenizer.all_special_ids} - {_unknown_id(tokenizer)}
    problems = []
    for name, rows in (("source", sources), ("target", targets)):
        (plain,) = _encode(tokenizer, **{"text" if name == "source" else "text_target": ["a"]})
        num_around = sum(token_id in special for token_id in plain)
        for pair, ids in zip(pairs, rows, strict=True):
            found = [token_id for token_id in ids if token_id in special]
            if len(found) > num_around:
                token = max(found, key=lambda one: found.count(one) - plain.count(one))
                spelled = cast("str", tokenizer.convert_ids_to_tokens(token))
                message = f"spells the special token {spelled!r}, which the model reads as one"
                todo = "remove or rewrite it in the row"
                problems.append(Problem(str(pair.where), name, message, todo))
    return problems


def _lowered(key: str, length: int, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    context = tokenizer.model_max_length
    if context >= length:
        return []
    return [f"data.{key}={length} was lowered to {context}, the context length."]


def _cut(
    examples: Sequence[PairExample],
    tokenizer: "PreTrainedTokenizerBase",
    settings: PairDataSettings,
) -> list[str]:
    warnings = []
    for name, length, effect in (
        ("source", settings.max_source_length, ""),
        ("target", settings.max_target_length, ", and the model does not learn to end them"),
    ):
        places = [one.where for one in examples if getattr(one, f"was_{name}_cut")]
        if places:
            room = min(length, tokenizer.model_max_length)
            warnings.append(
                f"{len(places):,} of {len(examples):,} {name}s are cut at {room} tokens "
                f"{name_places(places)}{effect}; data.max_{name}_length says where."
            )
    return warnings


def _unknown(examples: Sequence[PairExample], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Say where texts are not what they were: a model can't write what its tokenizer can't."""
    unknown = _unknown_id(tokenizer)
    if unknown is None:
        return []
    places = [one.where for one in examples if unknown in one.labels]
    if len(places) <= _MAX_UNKNOWN_FRACTION * len(examples):
        return []
    return [
        f"{len(places):,} of {len(examples):,} targets have characters that the tokenizer does not "
        f"know {name_places(places)}: the model learns to write {tokenizer.unk_token} in their "
        "place. Choose a model.checkpoint for the language of the data."
    ]


def _unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    unknown = cast("int | None", tokenizer.unk_token_id)
    # GPT-2's byte-level tokenizer calls its end-of-text token the unknown one, too.
    return None if unknown == tokenizer.eos_token_id else unknown


def _encode(tokenizer: "PreTrainedTokenizerBase", **arguments: object) -> list[list[int]]:
    texts = arguments.get("text") or arguments.get("text_target")
    if not texts:
        return []
    options = {"truncation": False, **arguments}
    encoded = tokenizer(split_special_tokens=True, verbose=False, **options)
    return cast("list[list[int]]", encoded["input_ids"])
