"""The pieces of a unigram language model and their scores, the same ones from the same texts.

`tokenizers` trains unigram models too, but adds their expected counts up in a random order, so that
no two runs agree. Here counts are whole numbers: pieces come from merges, counts from best cuts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BLANK = "▁"
"""Stands for the blank before a word."""
LONGEST_PIECE = 16
_CANDIDATES_PER_PIECE = 2
_NUM_ROUNDS = 2
_WORDS_AT_ONCE = 10_000
_UNKNOWN = ("<unk>", 0.0)

Piece = tuple[str, float]


def unigram_pieces(
    texts: Sequence[str],
    alphabet: Sequence[str],
    num_pieces: int,
    *,
    min_count: int = 2,
    max_length: int | None = None,
) -> list[Piece]:
    """Choose pieces and score them by how often the best cut of the texts uses them.

    Merging pairs gives twice as many candidates as are wanted. The texts are cut where the product
    of the pieces' probabilities is largest, and the probabilities counted anew, in turn; then the
    candidates in least use go, and those that stay are counted once more.

    Args:
        texts: What to learn from.
        alphabet: Characters, `BLANK` among them, that are pieces whatever their count.
        num_pieces: Pieces wanted, the alphabet among them; there are fewer where merging ends
            earlier.
        min_count: Occurrences that a merge needs.
        max_length: Characters of a piece, 2 or more; null is `LONGEST_PIECE`.

    Returns:
        Pieces with the natural logarithms of their probabilities, likeliest first.

    Source:
        Kudo 2018, "Subword Regularization", section 3.2, with merges for the seed vocabulary, the
        best cut in place of all cuts, and counts in place of the loss when candidates go.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # A piece crosses neither blanks nor punctuation.
        [*_split_at_blanks(), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=max(len(alphabet), _CANDIDATES_PER_PIECE * num_pieces),
        min_frequency=min_count,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        max_token_length=(max_length or LONGEST_PIECE) + 1,  # it joins what stays below this
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    ids = tokenizer.get_vocab()
    candidates = sorted(ids, key=lambda name: ids[name])
    # Most words occur many times and are cut once.
    words = Counter(word for text in texts for word in text.split())
    pieces = _scored(candidates, _counts(tokenizer, words, len(candidates)))
    for _ in range(_NUM_ROUNDS):
        pieces = _counted_anew(pieces, words)
    return _counted_anew(_most_used(pieces, set(alphabet), num_pieces), words)


def unigram_tokenizer(pieces: Sequence[Piece]) -> Tokenizer:
    """Make a tokenizer that cuts text where the pieces' scores add up to the most."""
    tokenizer = Tokenizer(models.Unigram([_UNKNOWN, *pieces], unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_split_at_blanks())
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _split_at_blanks() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(BLANK, "always")]


def _counted_anew(pieces: Sequence[Piece], words: Mapping[str, int]) -> list[Piece]:
    counts = _counts(unigram_tokenizer(pieces), words, len(pieces) + 1)
    return _scored([name for name, _ in pieces], counts[1:])


def _counts(tokenizer: Tokenizer, words: Mapping[str, int], size: int) -> NDArray[np.float64]:
    """Count the tokens of all words; whole numbers, exact below 2**53."""
    counts = np.zeros(size)
    names, times = list(words), np.fromiter(words.values(), dtype=np.float64)
    for start in range(0, len(names), _WORDS_AT_ONCE):
        part = slice(start, start + _WORDS_AT_ONCE)
        encoded = [one.ids for one in tokenizer.encode_batch_fast(names[part])]
        ids = np.fromiter(chain.from_iterable(encoded), dtype=np.int64)
        weights = np.repeat(times[part], [len(one) for one in encoded])
        counts += np.bincount(ids, weights=weights, minlength=size)
    return counts


def _scored(names: Sequence[str], counts: NDArray[np.float64]) -> list[Piece]:
    """Score by the share of all pieces; one in no use counts half, so that it stays possible."""
    used = np.maximum(counts, 0.5)
    scores = np.log(used / used.sum()).tolist()
    return sorted(zip(names, scores, strict=True), key=lambda piece: (-piece[1], piece[0]))


def _most_used(pieces: Sequence[Piece], alphabet: set[str], num_pieces: int) -> list[Piece]:
    others = [piece for piece in pieces if piece[0] not in alphabet]
    kept = alphabet | {name for name, _ in others[: num_pieces - len(alphabet)]}
    return [piece for piece in pieces if piece[0] in kept]
