"""Hide tokens or whole words, to be learnt from both sides. T tokens of a row, K of them chosen."""

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Flags, Ids, Row, Vocabulary
from sft_kit.data.corruption.draws import generator_of
from sft_kit.data.rows import IGNORED
from sft_kit.settings.pretraining import MaskedObjective


def default_fractions(objective: MaskedObjective) -> tuple[float, float]:
    """Give the usual shares of mask tokens and of random tokens among the chosen tokens.

    Source:
        `mlm`, `wwm`: Devlin et al. 2018, "BERT", section 3.1. `spell`: Cui et al. 2020, "Revisiting
        Pre-trained Models for Chinese Natural Language Processing" (MacBERT), section 3: 80 %
        similar, 10 % random, 10 % kept. What is kept is not learnt here, so the mask token takes
        its place.
    """
    return (0.1, 0.1) if objective == "spell" else (0.8, 0.1)


def mask_tokens(
    row: Row,
    seed: int,
    *,
    vocabulary: Vocabulary,
    mask_fraction: float = 0.15,
    mask_token_fraction: float = 0.8,
    random_token_fraction: float = 0.1,
    whole_words: bool = False,
) -> Corrupted:
    """Choose tokens or words at random; each is learnt where it stands.

    What replaces a chosen token is drawn for each token on its own, also within a word.

    Args:
        row: What is masked; special tokens stay.
        seed: A whole number below 2**64, on which alone the result depends.
        vocabulary: Knows the mask token and the ordinary tokens.
        mask_fraction: Probability of a token, or of a word, to be chosen.
        mask_token_fraction: Share of the chosen tokens that become the mask token.
        random_token_fraction: Share of them that become any ordinary token, be it the same; the
            rest is kept.
        whole_words: Choose all tokens of a word or none.

    Source:
        Devlin et al. 2018, "BERT", section 3.1 and appendix A.1; whole words: Cui et al. 2019,
        "Pre-Training with Whole Word Masking for Chinese BERT", and google-research/bert,
        `create_masked_lm_predictions`. Those mask a fixed number of tokens of a row, here each is
        drawn on its own.
    """
    generator = generator_of(seed)
    if whole_words:
        chosen = choose_words(row.words, row.is_special, mask_fraction, generator)
    else:
        chosen = choose_tokens(row.is_special, mask_fraction, generator)
    replacements = draw_replacements(
        row.input_ids[chosen],
        generator,
        vocabulary=vocabulary,
        mask_token_fraction=mask_token_fraction,
        random_token_fraction=random_token_fraction,
    )
    return apply_mask(row, chosen, replacements)


def choose_tokens(is_special: Flags, fraction: float, generator: np.random.Generator) -> Flags:
    """Choose each token with the probability `fraction`, special tokens (T,) never.

    Returns:
        (T,) True at the chosen tokens.
    """
    chosen: Flags = (generator.random(len(is_special)) < fraction) & ~is_special
    return chosen


def choose_words(
    words: Ids, is_special: Flags, fraction: float, generator: np.random.Generator
) -> Flags:
    """Choose each word with the probability `fraction`, special tokens never.

    Args:
        words: (T,) number of each token's word; tokens of one word stand together.
        is_special: (T,) True where a special token stands.
        fraction: Probability of a word, and so of each of its tokens.
        generator: Gives one number for each word.

    Returns:
        (T,) True at all tokens of the chosen words.
    """
    begins = np.empty(len(words), dtype=np.int64)
    begins[:1] = 0
    np.not_equal(words[1:], words[:-1], out=begins[1:])
    of_word = np.cumsum(begins)
    draws = generator.random(len(words))
    chosen: Flags = (draws < fraction)[of_word] & ~is_special
    return chosen


def draw_replacements(
    originals: Ids,
    generator: np.random.Generator,
    *,
    vocabulary: Vocabulary,
    mask_token_fraction: float,
    random_token_fraction: float,
) -> Ids:
    """Draw what stands in the place of each chosen token.

    Args:
        originals: (K,) ids of the chosen tokens.
        generator: Gives the random numbers.
        vocabulary: Knows the mask token and the ordinary tokens.
        mask_token_fraction: Probability of the mask token.
        random_token_fraction: Probability of an ordinary token, all alike; else the original stays.

    Returns:
        (K,) ids.
    """
    draws = generator.random(len(originals))
    randoms = vocabulary.ordinary[generator.integers(len(vocabulary.ordinary), size=len(originals))]
    is_changed = draws < mask_token_fraction + random_token_fraction
    replacements = np.where(is_changed, randoms, originals)
    replacements[draws < mask_token_fraction] = vocabulary.mask
    return replacements


def apply_mask(row: Row, chosen: Flags, replacements: Ids) -> Corrupted:
    """Put the replacements in place and make the chosen tokens the labels.

    Args:
        row: As it was.
        chosen: (T,) True at the tokens that are learnt.
        replacements: (K,) what stands at the chosen tokens, from left to right.

    Returns:
        `input_ids` (T,), `labels` (T,): the original id at each chosen token; what else the row
        says of its parts.
    """
    input_ids = row.input_ids.copy()
    input_ids[chosen] = replacements
    labels = np.where(chosen, row.input_ids, IGNORED)
    corrupted = Corrupted(input_ids=input_ids, labels=labels)
    if row.token_type_ids is not None:
        corrupted["token_type_ids"] = row.token_type_ids
    if row.next_sentence_label is not None:
        corrupted["next_sentence_label"] = row.next_sentence_label
    return corrupted
