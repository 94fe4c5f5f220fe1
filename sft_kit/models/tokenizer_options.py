"""What a new tokenizer is to be like."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["gpt2", "bert", "t5", "bart", "characters"]
MOST_TOKENS = 32_000
"""A vocabulary of no given size grows as far as the texts carry it, but no further than this."""
NUM_T5_SENTINELS = 100


@dataclass(frozen=True, slots=True)
class TokenizerOptions:
    """The family of a new tokenizer, its size, and what stays out of it.

    Attributes:
        family: Whose layout it takes over: `gpt2` and `bart` are byte-level BPE, `bert` WordPiece,
            `t5` a unigram model; of `characters` each character is a token.
        vocab_size: Number of tokens, special ones included; null takes what the texts give, at most
            `MOST_TOKENS`.
        max_length: Tokens that a model of it reads at most; null is no limit.
        lowercase: Make capital letters small, and with `bert` remove accents (bert, characters).
        min_count: Leave out pieces and characters that occur fewer times; bytes always stay. Null
            leaves out pieces that occur once.
        num_sentinels: Tokens `<extra_id_0>`, ... that stand for spans (t5, characters); null is 100
            for t5 and none for characters.
        max_token_length: Longest token, 2 or more: in bytes (gpt2, bart) or characters (t5); null
            is 16 characters for t5 and no limit for bytes.
    """

    family: Family
    vocab_size: int | None = None
    max_length: int | None = None
    lowercase: bool = False
    min_count: int | None = None
    num_sentinels: int | None = None
    max_token_length: int | None = None

    @property
    def min_piece_count(self) -> int:
        """Occurrences that a piece needs; where each character is a piece, one is enough."""
        if self.min_count is None:
            return 1 if self.family == "characters" else 2
        return self.min_count

    @property
    def sentinels(self) -> list[str]:
        """The tokens that stand for spans, in the order of their numbers."""
        usual = NUM_T5_SENTINELS if self.family == "t5" else 0
        number = usual if self.num_sentinels is None else self.num_sentinels
        return [f"<extra_id_{one}>" for one in range(number)]
