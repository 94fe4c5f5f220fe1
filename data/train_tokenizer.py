"""Train the byte-level BPE tokenizer of the embedded checkpoint on corpus and instructions.

Run: `python data/train_tokenizer.py` writes a folder that `transformers.AutoTokenizer` loads. Every
byte has a token of its own, so any text goes in and comes out unchanged.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sft_kit.models.new_tokenizer import train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions

HERE = Path(__file__).parent
VOCABULARY_SIZE = 2048
MAX_TOKEN_BYTES = 11
"""Longer pieces would swallow whole Chinese clauses, which have no blanks between words."""


def texts(corpus: Path, instructions: Path) -> Iterator[str]:
    """Documents of the corpus, then the instructions as the chat template shows them."""
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]
    with instructions.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
            yield f"Human: {asked}\nAssistant: {row['output']}"


def train(corpus: Path, instructions: Path, vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A GPT-2 tokenizer whose only special token, id 0, begins, ends and pads.

    Args:
        corpus: JSON Lines with `text`.
        instructions: JSON Lines with `instruction`, `input`, `output`.
        vocabulary_size: Number of tokens, the special one and the 256 bytes included.
    """
    options = TokenizerOptions(
        "gpt2", vocab_size=vocabulary_size, min_count=1, max_token_length=MAX_TOKEN_BYTES
    )
    return train_tokenizer(list(texts(corpus, instructions)), options)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.jsonl")
    parser.add_argument("--instructions", type=Path, default=HERE / "instructions.jsonl")
    parser.add_argument("--output", type=Path, default=HERE / "checkpoints" / "tiny-gpt2")
    parser.add_argument("--vocabulary-size", type=int, default=VOCABULARY_SIZE)
    arguments = parser.parse_args()
    tokenizer = train(arguments.corpus, arguments.instructions, arguments.vocabulary_size)
    tokenizer.save_pretrained(arguments.output)
    print(f"{arguments.output}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
