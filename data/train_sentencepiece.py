"""Train the SentencePiece tokenizer of the embedded ChatGLM2 checkpoint on corpus and instructions.

Run: `python data/train_sentencepiece.py` writes `tokenizer.model` and `tokenizer_config.json`, the
two files that ChatGLM2 was published with. The options are those that the published file was
trained with, as far as it tells: BPE, bytes for unknown characters, text taken as it is.

It needs `sentencepiece` (`pip install -e ".[test]"`); using the tokenizer does not.
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from train_tokenizer import texts

HERE = Path(__file__).parent
NUM_PIECES = 2000


def lines(corpus: Path, instructions: Path) -> Iterator[str]:
    """Every line of every text: a line break stays what it is for ChatGLM2, a byte."""
    for text in texts(corpus, instructions):
        yield from filter(None, text.split("\n"))
    yield from ["[Round 1]", "[Round 2]", "[Round 3]", "问：", "答："] * 100


def train(corpus: Path, instructions: Path, num_pieces: int) -> bytes:
    """A SentencePiece model, as the bytes of its file.

    Args:
        corpus: JSON Lines with `text`.
        instructions: JSON Lines with `instruction`, `input`, `output`.
        num_pieces: Number of pieces, the 256 bytes and `<unk>`, `<s>`, `</s>` included.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(corpus, instructions),
        model_writer=model,
        model_type="bpe",
        vocab_size=num_pieces,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        max_sentencepiece_length=6,  # longer pieces would swallow whole Chinese clauses
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.jsonl")
    parser.add_argument("--instructions", type=Path, default=HERE / "instructions.jsonl")
    parser.add_argument("--output", type=Path, default=HERE / "checkpoints/tiny-chatglm2-int4")
    parser.add_argument("--num-pieces", type=int, default=NUM_PIECES)
    arguments = parser.parse_args()
    model = train(arguments.corpus, arguments.instructions, arguments.num_pieces)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "tokenizer.model").write_bytes(model)
    settings = {
        "tokenizer_class": "ChatGLMTokenizer",
        "remove_space": False,
        "do_lower_case": False,
    }
    text = json.dumps(settings, indent=2)
    (arguments.output / "tokenizer_config.json").write_text(f"{text}\n", encoding="utf-8")
    print(f"{arguments.output}: {arguments.num_pieces} pieces")


if __name__ == "__main__":
    main()
