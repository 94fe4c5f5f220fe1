"""What an encoder says about a text: its scores, and the choice of a token from them.

Shapes: T tokens of a text, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sft_kit.data.corpus.rows import Vocabulary
from sft_kit.inference.drawing import draw_processors
from sft_kit.models.base import context_length
from sft_kit.settings import SampleSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder with a head for tokens, and what belongs to it.

    Attributes:
        model: In evaluation mode; its forward takes token ids and an attention mask.
        tokenizer: The run's tokenizer.
        vocabulary: Its special and ordinary tokens.
    """

    model: "PreTrainedModel | PeftModel"
    tokenizer: "PreTrainedTokenizerBase"
    vocabulary: Vocabulary

    @property
    def context(self) -> int:
        """Most tokens of a text, special tokens included."""
        longest = context_length(self.model.config)
        # RoBERTa counts positions from 2 on: its tokenizer knows how many are left.
        named = self.tokenizer.model_max_length
        return int(named if longest is None else min(named, longest))

    def scores(self, ids: Sequence[int], **inputs: torch.Tensor) -> torch.Tensor:
        """Compute the scores (T, V) of every position, in float32.

        Args:
            ids: T token ids.
            **inputs: More of what the model takes; without an attention mask every token sees all.
        """
        device = self.model.device
        given = {name: value.to(device) for name, value in inputs.items()}
        input_ids = torch.tensor([list(ids)], device=device)
        given.setdefault("attention_mask", torch.ones_like(input_ids))
        output = cast("Any", self.model)(input_ids=input_ids, **given)
        # With a second head, for next sentences, the scores of the tokens have another name.
        found = output.prediction_logits if "prediction_logits" in output else output.logits
        return cast("torch.Tensor", found[0].float())


class Choice:
    """Chooses the tokens of one text, one after another.

    Args:
        sampling: How to draw.
        allowed: Ids to choose from.
        device: Where the scores are.
    """

    def __init__(
        self, sampling: SampleSettings, allowed: Sequence[int] | np.ndarray, device: torch.device
    ) -> None:
        self._allowed = torch.as_tensor(np.asarray(allowed), device=device)
        self._processors = draw_processors(sampling, 1, device)

    def of(self, scores: torch.Tensor) -> int:
        """Choose one token by its scores (V,)."""
        of_allowed = scores[self._allowed][None]
        no_ids = torch.empty((1, 0), dtype=torch.long, device=scores.device)
        drawn = self._processors(no_ids, of_allowed)  # type: ignore[arg-type]
        return int(self._allowed[drawn.argmax(dim=-1)])


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch off dropout and gradients, then put every module back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
