"""Labelled texts to token ids and class ids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from sft_kit.data.inspection import name_places
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.rows import IGNORED
from sft_kit.errors import DataError
from sft_kit.settings import LabelledDataSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_PAIR_SEPARATOR = "\n"
"""Between the two texts of a pair, for tokenizers that put no token of their own there (GPT-2)."""


def tokenize_labelled(
    rows: Sequence[LabelledText],
    tokenizer: "PreTrainedTokenizerBase",
    label_names: Sequence[str],
    settings: LabelledDataSettings,
) -> list[LabelledExample]:
    """Encode texts and pairs as the tokenizer's own model was pretrained on them.

    A text that spells a special token ("[SEP]") is read as the characters it consists of. What is
    too long is cut at its end, a pair at the end of its longer text; the special tokens stay.

    Args:
        rows: All with one text, or all with two.
        tokenizer: Its `model_max_length` bounds `settings.max_length`.
        label_names: Class id -> name.
        settings: `max_length` in tokens, `multi_label`.

    Returns:
        One example per row, in order. A row without label has the label `IGNORED`.
    """
    max_length = min(settings.max_length, tokenizer.model_max_length)
    ids, types = _encode(rows, tokenizer, None)
    too_long = [index for index, row_ids in enumerate(ids) if len(row_ids) > max_length]
    cut_ids, cut_types = _encode([rows[index] for index in too_long], tokenizer, max_length)
    for place, index in enumerate(too_long):
        ids[index], types[index] = cut_ids[place], cut_types[place]
    was_cut = set(too_long)
    class_ids = {name: index for index, name in enumerate(label_names)}
    return [
        LabelledExample(
            input_ids=ids[index],
            token_type_ids=types[index],
            label=_label(row, class_ids, multi_label=settings.multi_label),
            was_cut=index in was_cut,
            where=row.where,
        )
        for index, row in enumerate(rows)
    ]


def to_labelled_dataset(examples: Sequence[LabelledExample]) -> "Dataset":
    """Make the data set a trainer takes.

    Returns:
        Columns `input_ids`, `labels`, where the model knows segments `token_type_ids`, and, for
        messages only, `where` in which file a row stood.
    """
    from datasets import Dataset

    columns: dict[str, list[object]] = {
        "input_ids": [example.input_ids for example in examples],
        "labels": [example.label for example in examples],
        "where": [str(example.where) for example in examples],
    }
    if any(example.token_type_ids for example in examples):
        columns["token_type_ids"] = [example.token_type_ids for example in examples]
    return Dataset.from_dict(columns)


def check_labelled(
    examples: Sequence[LabelledExample],
    tokenizer: "PreTrainedTokenizerBase",
    settings: LabelledDataSettings,
) -> list[str]:
    """Refuse examples that can't teach, and say what looks unintended in those that can.

    Returns:
        Warnings, each a sentence.

    Raises:
        DataError: A text has no token.
    """
    empty = [example.where for example in examples if not example.input_ids]
    if empty:
        raise DataError(
            f"{len(empty):,} of {len(examples):,} texts have no token {name_places(empty)}: the "
            "tokenizer knows none of their characters (remove them, or choose another "
            "model.checkpoint)"
        )
    warnings = []
    context = tokenizer.model_max_length
    if context < settings.max_length:
        warnings.append(
            f"data.max_length={settings.max_length} was lowered to {context}, the context length."
        )
    cut = [example.where for example in examples if example.was_cut]
    if cut:
        warnings.append(
            f"{len(cut):,} of {len(examples):,} texts are cut at "
            f"{min(context, settings.max_length)} tokens {name_places(cut)}."
        )
    return warnings


def _encode(
    rows: Sequence[LabelledText], tokenizer: "PreTrainedTokenizerBase", max_length: int | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Encode rows; `max_length` None leaves them whole."""
    if not rows:
        return [], []
    first, second = [row.texts[0] for row in rows], None
    if len(rows[0].texts) == 2:
        if _separates_pairs(tokenizer):
            second = [row.texts[1] for row in rows]
        else:
            first = [_PAIR_SEPARATOR.join(row.texts) for row in rows]
    encoded = tokenizer(
        first,
        second,
        truncation="do_not_truncate" if max_length is None else "longest_first",
        max_length=max_length,
        split_special_tokens=True,
        verbose=False,
    )
    ids = cast("list[list[int]]", encoded["input_ids"])
    types = cast("list[list[int]]", encoded.get("token_type_ids") or [[] for _ in ids])
    return ids, types


def _separates_pairs(tokenizer: "PreTrainedTokenizerBase") -> bool:
    one, two = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
    return two > one


def _label(row: LabelledText, class_ids: dict[str, int], *, multi_label: bool) -> int | list[float]:
    if multi_label:
        return [float(name in row.labels) for name in class_ids]
    return class_ids[row.labels[0]] if row.labels else IGNORED
