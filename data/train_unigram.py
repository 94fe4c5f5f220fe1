"""Train the unigram tokenizer of the embedded T5 on corpus and instructions.

Run: `python data/train_unigram.py` writes a folder that `transformers.AutoTokenizer` loads, laid
out as that of google-t5/t5-small: three special tokens, pieces, and the sentinels last. It is what
`sft-kit tokenizer train --family t5` makes of the same texts.
"""

import argparse
from pathlib import Path

from train_tokenizer import texts

from sft_kit.models.new_tokenizer import train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions

HERE = Path(__file__).parent
VOCABULARY_SIZE = 2048
MAX_PIECE_CHARACTERS = 5
"""Longer pieces would swallow whole Chinese clauses, which have no blanks between words."""


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.jsonl")
    parser.add_argument("--instructions", type=Path, default=HERE / "instructions.jsonl")
    parser.add_argument("--output", type=Path, default=HERE / "checkpoints" / "tiny-t5")
    parser.add_argument("--vocabulary-size", type=int, default=VOCABULARY_SIZE)
    arguments = parser.parse_args()
    options = TokenizerOptions(
        "t5", vocab_size=arguments.vocabulary_size, max_token_length=MAX_PIECE_CHARACTERS
    )
    tokenizer = train_tokenizer(list(texts(arguments.corpus, arguments.instructions)), options)
    tokenizer.save_pretrained(arguments.output)
    print(f"{arguments.output}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
