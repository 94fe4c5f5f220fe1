"""Which batches of a run are tried out, and in which order."""

import random
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils.data import Subset

from sft_kit.models.padding_free import has_much_padding, size_without_padding
from sft_kit.objectives.language import IGNORED
from sft_kit.plan.shapes import Shape

Batch = MutableMapping[str, Any]
_NUM_SAMPLED = 48
_NUM_RISING = 4
_EVALUATED_BATCHES = 6


@dataclass(slots=True)
class Sampled:
    """The batches of an epoch as they go by: all shapes, and a few batches.

    Attributes:
        is_padding_free: The model leaves out padding where there is much.
        shapes: Of every batch, in their order.
        batches: Drawn with equal chances from all.
        narrowest: The batch with the fewest tokens, padding included.
        widest: The one with the most.
    """

    is_padding_free: bool = False
    shapes: list[Shape] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    narrowest: Batch | None = None
    widest: Batch | None = None
    _draw: random.Random = field(default_factory=lambda: random.Random(0))

    def see(self, batch: Batch) -> None:
        """Count a batch, and perhaps keep it."""
        shape = self.shape_of(batch)
        if self.widest is None or shape.padded > self.shape_of(self.widest).padded:
            self.widest = batch
        if self.narrowest is None or shape.padded < self.shape_of(self.narrowest).padded:
            self.narrowest = batch
        self.shapes.append(shape)
        place = self._draw.randrange(len(self.shapes))
        if len(self.batches) < _NUM_SAMPLED:
            self.batches.append(batch)
        elif place < _NUM_SAMPLED:
            self.batches[place] = batch

    def shape_of(self, batch: Batch) -> Shape:
        """Read the shape of a batch as the model takes it."""
        return shape_of(batch, is_padding_free=self.is_padding_free)

    def rising(self) -> list[Batch]:
        """Batches from the narrowest, which comes twice to warm up, to the widest.

        In this order the peak of each is its own: what a wide one has freed may stay with the
        process. Pieces of the widest are among them, which tell what smaller micro-batches cost
        where all batches are alike.
        """
        assert self.narrowest is not None
        assert self.widest is not None
        inner = sorted(self.batches, key=self._size)
        chosen = [inner[len(inner) * index // _NUM_RISING] for index in range(1, _NUM_RISING)]
        chosen += [self.narrowest, *_pieces(self.widest)]
        chosen.sort(key=self._size)
        return [chosen[0], *chosen, self.widest]

    def closing(self) -> list[Batch]:
        """The widest batch, where others that are unlike it came between."""
        assert self.widest is not None
        are_alike = len({shape.kind for shape in self.shapes}) == 1
        return [] if are_alike else [self.widest]

    def _size(self, batch: Batch) -> int:
        return self.shape_of(batch).padded

    def mixed(self) -> Iterator[Batch]:
        """Batches in a random order, again and again."""
        while True:
            yield from self._draw.sample(self.batches, len(self.batches))


def spread_batches(rows: Any, batch_size: int) -> Any:  # noqa: ANN401 - a Trainer takes any kind
    """Choose a few whole batches of a data set, spread over it; all rows where there are few."""
    if isinstance(rows, dict) or not hasattr(rows, "__len__"):
        return rows
    num_batches = -(-len(rows) // batch_size)
    if num_batches <= _EVALUATED_BATCHES:
        return rows
    starts = [num_batches * index // _EVALUATED_BATCHES for index in range(_EVALUATED_BATCHES)]
    chosen = [
        row
        for start in starts
        for row in range(start * batch_size, min((start + 1) * batch_size, len(rows)))
    ]
    return rows.select(chosen) if hasattr(rows, "select") else Subset(rows, chosen)


def shape_of(batch: Mapping[str, Any], *, is_padding_free: bool = False) -> Shape:
    """Read the shape of a batch as a model takes it.

    Args:
        batch: `input_ids` (B, T); `attention_mask` and `labels` where there are some.
        is_padding_free: The model leaves out padding where there is much.
    """
    ids = cast("torch.Tensor", batch["input_ids"])
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    lengths = torch.full(ids.shape[:1], ids.shape[-1])
    width, padded, labelled = ids.shape[-1], ids.numel(), len(ids)
    is_flat = False
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        lengths = mask.sum(dim=-1)
        is_flat = is_padding_free and has_much_padding(mask)
        padded = size_without_padding(mask) if is_flat else padded
    if isinstance(labels, torch.Tensor) and labels.dim() == 2 and not labels.is_floating_point():
        supervised = labels.ne(IGNORED)
        labelled = int(supervised.sum())
        if "decoder_input_ids" in batch:
            lengths = lengths + supervised.sum(dim=-1)
            width, padded = max(width, labels.shape[-1]), padded + labels.numel()
    return Shape(tuple(lengths.tolist()), width, padded, labelled, is_flat)


def _pieces(batch: Batch) -> list[Batch]:
    """A quarter and a half of a batch's rows; none where its parts are not all one a row."""
    num_rows = len(batch["input_ids"])
    if not all(isinstance(part, torch.Tensor) and len(part) == num_rows for part in batch.values()):
        return []
    sizes = {max(1, num_rows // 4), max(1, num_rows // 2)} - {num_rows}
    return [{name: part[:size] for name, part in batch.items()} for size in sizes]
