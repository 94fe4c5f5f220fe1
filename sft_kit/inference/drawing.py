"""How the next token is chosen from a model's scores."""

from typing import cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sft_kit.errors import CheckpointError
from sft_kit.settings import SampleSettings

# Dividing by less overflows float32; long before that, only the likeliest token can be drawn.
_COLDEST = 1e-6


def draw_processors(
    sampling: SampleSettings, num_rows: int, device: torch.device
) -> LogitsProcessorList:
    """Return what turns a model's scores into the choice of one token for every row.

    Args:
        sampling: How to draw; temperature 0 leaves the likeliest token the choice.
        num_rows: B, rows of the batch.
        device: Where the scores are.
    """
    processors = LogitsProcessorList([_RefuseNaN()])
    if sampling.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(max(sampling.temperature, _COLDEST)))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(_Draw(sampling.seed, num_rows, device))
    return processors


class _Draw(LogitsProcessor):
    """Draws every row's next token with the row's own generator, and leaves only it possible.

    `generate(do_sample=True)` would draw from torch's global generator: training that shows samples
    would continue differently, and a reply would depend on its neighbours in the batch.
    """

    def __init__(self, seed: int, num_rows: int, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for _ in range(num_rows)]

    def __call__(self, _: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Turn scores (B, V) into 0 for the token drawn and -inf for all others."""
        rows = zip(scores.softmax(dim=-1), self.generators, strict=True)
        drawn = torch.stack([torch.multinomial(row, 1, generator=source) for row, source in rows])
        only = torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)
        return cast("torch.FloatTensor", only)


class _RefuseNaN(LogitsProcessor):
    """Ends the generation of a broken model, whose likeliest token would silently be token 0."""

    def __call__(self, _: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores (B, V) unchanged."""
        if torch.isnan(scores).any():
            raise CheckpointError(
                "the model's scores are not numbers (NaN): its weights are broken, or its training "
                "has diverged; train again with a lower train.learning_rate"
            )
        return scores
