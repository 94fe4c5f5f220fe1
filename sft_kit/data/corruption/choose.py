"""From the settings of an objective to what it needs and to its corruption."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from sft_kit.data.corpus.corrupted import Corrupt
from sft_kit.data.corpus.rows import Vocabulary
from sft_kit.data.corpus.tokenized import Layout
from sft_kit.data.corpus.vocabulary import Needs
from sft_kit.data.corruption.causal import causal_lm
from sft_kit.data.corruption.confusions import load_confusions
from sft_kit.data.corruption.denoising import denoise
from sft_kit.data.corruption.infilling import infill, longest_row
from sft_kit.data.corruption.masking import default_fractions, mask_tokens
from sft_kit.data.corruption.prefix import left_to_right, prefix_lm
from sft_kit.data.corruption.spans import hide_spans
from sft_kit.data.corruption.spelling import misspell
from sft_kit.settings import (
    CausalSettings,
    DenoiseSettings,
    MaskedSettings,
    PrefixSettings,
    SpanSettings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ObjectiveSettings: TypeAlias = (
    CausalSettings | MaskedSettings | PrefixSettings | SpanSettings | DenoiseSettings
)


@dataclass(frozen=True, slots=True)
class Objective:
    """What an objective needs of texts, tokenizer and model.

    Attributes:
        name: As `run.yaml` and the card call it.
        kind: Of the model: "causal", "masked", "pairs" or "seq2seq".
        needs: Special tokens that the tokenizer must have.
        layout: How tokens become rows.
        row_length: Tokens of a row, so that it has at most `data.max_length` once it is corrupted.
        words: The rows must know which tokens make up a word.
        num_token_types: Different `token_type_ids` that the model must know.
    """

    name: str
    kind: Literal["causal", "masked", "pairs", "seq2seq"]
    needs: Needs
    layout: Layout
    row_length: int
    words: bool = False
    num_token_types: int = 1

    def describe(self) -> dict[str, object]:
        """As it goes into `run.yaml`."""
        return {"kind": self.kind, "objective": self.name}


def objective_of(settings: ObjectiveSettings, max_length: int) -> Objective:
    """Say what an objective needs.

    Args:
        settings: The section `pretrain` of a recipe.
        max_length: Tokens per example.
    """
    length = row_length(settings, max_length)
    if isinstance(settings, CausalSettings):
        return Objective("clm", "causal", "causal", "causal", length)
    if isinstance(settings, MaskedSettings):
        words = settings.objective == "wwm"
        if settings.next_sentence:
            return Objective(settings.objective, "pairs", "masked", "pairs", length, words, 2)
        return Objective(settings.objective, "masked", "masked", "masked", length, words)
    if isinstance(settings, PrefixSettings):
        # 0 outside of blanks; in them the start token is 1.
        num_types = settings.max_span_length + 2 if settings.objective == "infill" else 1
        needs: Needs = "left_to_right" if settings.objective == "causal" else "prefix"
        return Objective(
            settings.objective, "masked", needs, "masked", length, num_token_types=num_types
        )
    if isinstance(settings, SpanSettings):
        return Objective("spans", "seq2seq", "spans", "spans", length)
    return Objective("denoise", "seq2seq", "denoise", "denoise", length)


def row_length(settings: ObjectiveSettings, max_length: int) -> int:
    """Tokens of a row, so that it has at most `max_length` once it is corrupted.

    Args:
        settings: The section `pretrain` of a recipe.
        max_length: Tokens per example.
    """
    if not isinstance(settings, PrefixSettings):
        return max_length
    if settings.objective == "infill":
        return longest_row(
            max_length,
            mask_fraction=settings.mask_fraction,
            mean_span_length=settings.mean_span_length,
            max_span_length=settings.max_span_length,
        )
    return max_length - (settings.objective == "prefix")  # its prefix gets an end of its own


def corruption_of(
    settings: ObjectiveSettings, vocabulary: Vocabulary, tokenizer: "PreTrainedTokenizerBase"
) -> Corrupt:
    """Make the corruption of an objective.

    Args:
        settings: The section `pretrain` of a recipe.
        vocabulary: Of the tokenizer.
        tokenizer: Its tokens are looked at by `spell` only.

    Raises:
        DataError: The file of confusable characters can't be read.
    """
    if isinstance(settings, CausalSettings):
        return partial(causal_lm, document_mask=settings.document_mask)
    if isinstance(settings, MaskedSettings):
        return _masked(settings, vocabulary, tokenizer)
    if isinstance(settings, PrefixSettings):
        return _prefix(settings, vocabulary)
    if isinstance(settings, SpanSettings):
        return partial(
            hide_spans,
            vocabulary=vocabulary,
            mask_fraction=settings.mask_fraction,
            mean_span_length=settings.mean_span_length,
        )
    return partial(
        denoise,
        vocabulary=vocabulary,
        infill_fraction=settings.infill_fraction,
        mean_span_length=settings.mean_span_length,
        permute_sentences=settings.permute_sentences,
        delete_fraction=settings.delete_fraction,
    )


def _masked(
    settings: MaskedSettings, vocabulary: Vocabulary, tokenizer: "PreTrainedTokenizerBase"
) -> Corrupt:
    by_mask, at_random = default_fractions(settings.objective)
    if settings.mask_token_fraction is not None:
        by_mask = settings.mask_token_fraction
    if settings.random_token_fraction is not None:
        at_random = settings.random_token_fraction
    if settings.objective == "spell":
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        return partial(
            misspell,
            vocabulary=vocabulary,
            confusions=load_confusions(tokens, settings.confusions),
            mask_fraction=settings.mask_fraction,
            mask_token_fraction=by_mask,
            random_token_fraction=at_random,
        )
    return partial(
        mask_tokens,
        vocabulary=vocabulary,
        mask_fraction=settings.mask_fraction,
        mask_token_fraction=by_mask,
        random_token_fraction=at_random,
        whole_words=settings.objective == "wwm",
    )


def _prefix(settings: PrefixSettings, vocabulary: Vocabulary) -> Corrupt:
    if settings.objective == "bidirectional":
        return partial(mask_tokens, vocabulary=vocabulary, mask_fraction=settings.mask_fraction)
    if settings.objective == "causal":
        return partial(left_to_right, vocabulary=vocabulary)
    if settings.objective == "prefix":
        return partial(prefix_lm, vocabulary=vocabulary, mask_fraction=settings.mask_fraction)
    return partial(
        infill,
        vocabulary=vocabulary,
        mask_fraction=settings.mask_fraction,
        mean_span_length=settings.mean_span_length,
        max_span_length=settings.max_span_length,
    )
