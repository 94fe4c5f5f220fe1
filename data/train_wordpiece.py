"""Make the WordPiece tokenizer of the embedded Chinese BERT from the texts it is pretrained on.

Run: `python data/train_wordpiece.py` writes a folder that `transformers.AutoTokenizer` loads, laid
out as that of google-bert/bert-base-chinese: every Chinese character is a token, other words are
cut into pieces. Nothing is counted in a random order, so the same texts give the same vocabulary.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from string import ascii_letters, digits, punctuation

from make_corpus import NUM_DOCUMENTS, make_documents
from make_corpus import SEED as CORPUS_SEED
from make_sentiment import NUM_REVIEWS, make_reviews
from make_sentiment import SEED as SENTIMENT_SEED
from transformers import BertTokenizer

HERE = Path(__file__).parent
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 128
NUM_UNLABELLED = 16_000
UNLABELLED_SEED = 31
MIN_WORD_COUNT = 20
"""Rarer English words are spelled in letters."""


def documents() -> list[str]:
    """The Chinese half of the corpus."""
    return make_documents(NUM_DOCUMENTS, CORPUS_SEED)[1::2]


def reviews() -> list[str]:
    """Reviews without labels, none of them among the labelled ones."""
    labelled = make_reviews(NUM_REVIEWS, SENTIMENT_SEED)
    return list(make_reviews(NUM_UNLABELLED, UNLABELLED_SEED, without=labelled))


def vocabulary(texts: Iterable[str]) -> list[str]:
    """The tokens in the order of their ids.

    After the special tokens come the characters of the keyboard, the same as a later part of a
    word (`##a`), all other characters of the texts and their frequent words, each by count.
    """
    blank = BertTokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)}, do_lower_case=False)
    normalizer, splitter = blank.backend_tokenizer.normalizer, blank.backend_tokenizer.pre_tokenizer
    words = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    keyboard = [*punctuation, *digits, *ascii_letters]
    later = [f"##{character}" for character in (*digits, *ascii_letters)]
    frequent = sorted(words, key=lambda word: (-words[word], word))
    seen = [word for word in frequent if len(word) == 1 or words[word] >= MIN_WORD_COUNT]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *keyboard, *later, *seen]))


def train(texts: Iterable[str]) -> BertTokenizer:
    """A BERT tokenizer whose vocabulary covers every character of the texts."""
    tokens = vocabulary(texts)
    return BertTokenizer(
        {token: i for i, token in enumerate(tokens)},
        do_lower_case=False,
        model_max_length=MAX_LENGTH,
    )


def main() -> None:
    """Make and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "checkpoints" / "tiny-bert-chinese")
    arguments = parser.parse_args()
    tokenizer = train([*documents(), *reviews()])
    tokenizer.save_pretrained(arguments.output)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    lines = "".join(f"{token}\n" for token in tokens)
    (arguments.output / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")
    print(f"{arguments.output}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
