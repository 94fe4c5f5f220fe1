"""Misspell characters, to be corrected. T tokens of a row, K of them chosen."""

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Ids, Row, Vocabulary
from sft_kit.data.corruption.confusions import Confusions
from sft_kit.data.corruption.draws import generator_of
from sft_kit.data.corruption.masking import apply_mask, choose_tokens, default_fractions

_MASK_TOKEN_FRACTION, _RANDOM_TOKEN_FRACTION = default_fractions("spell")


def misspell(
    row: Row,
    seed: int,
    *,
    vocabulary: Vocabulary,
    confusions: Confusions,
    mask_fraction: float = 0.15,
    mask_token_fraction: float = _MASK_TOKEN_FRACTION,
    random_token_fraction: float = _RANDOM_TOKEN_FRACTION,
) -> Corrupted:
    """Replace characters by others or by the mask token; what was replaced is learnt.

    Only characters are chosen: words of an alphabet, numbers and punctuation stay. A replacement
    is never the character itself, so labels stand exactly where the input changed.

    Args:
        row: What is misspelt; special tokens stay.
        seed: A whole number below 2**64, on which alone the result depends.
        vocabulary: Knows the mask token.
        confusions: Knows the characters, and what each is mistaken for.
        mask_fraction: Probability of a character to be chosen.
        mask_token_fraction: Share of the chosen characters that become the mask token.
        random_token_fraction: Share of them that become any other character; the rest becomes a
            confusable one, or any other where a character is mistaken for none.

    Source:
        Liu et al. 2021, "PLOME: Pre-training with Misspelled Knowledge for Chinese Spelling
        Correction", section 3.1.
    """
    generator = generator_of(seed)
    is_fixed = row.is_special | ~confusions.is_character[row.input_ids]
    chosen = choose_tokens(is_fixed, mask_fraction, generator)
    originals = row.input_ids[chosen]
    misspelt = draw_misspellings(
        originals, generator, confusions, mask_token_fraction, random_token_fraction
    )
    return apply_mask(row, chosen, np.where(misspelt < 0, vocabulary.mask, misspelt))


def draw_misspellings(
    originals: Ids,
    generator: np.random.Generator,
    confusions: Confusions,
    mask_token_fraction: float,
    random_token_fraction: float,
) -> Ids:
    """Draw what stands in the place of each chosen character.

    Args:
        originals: (K,) ids of characters.
        generator: Gives the random numbers.
        confusions: What each character is mistaken for; one that is mistaken for none becomes any
            other character.
        mask_token_fraction: Probability of the mask token.
        random_token_fraction: Probability of any other character, all alike.

    Returns:
        (K,) ids, never the original; -1 for the mask token.
    """
    draws = generator.random((4, len(originals)))
    misspelt = confusions.pick_confusable(originals, draws[1], draws[2])
    is_random = draws[0] < mask_token_fraction + random_token_fraction
    others = confusions.pick_other(originals, draws[3])
    misspelt = np.where(is_random | (misspelt < 0), others, misspelt)
    misspelt[draws[0] < mask_token_fraction] = -1
    return misspelt
