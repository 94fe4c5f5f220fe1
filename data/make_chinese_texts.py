"""Make the texts that the embedded Chinese BERT is pretrained on: reviews and parts of documents.

Run: `python data/make_chinese_texts.py` writes `data/chinese_texts.jsonl`, about 5 MB. A review is
one sentence and stays whole, as a classifier will see it. A document is cut into runs of sentences
about as long as a review, so that a batch mixes both without much padding; what follows what is
asked within a run.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from make_sentiment import NUM_REVIEWS, make_reviews
from make_sentiment import SEED as SENTIMENT_SEED
from train_wordpiece import UNLABELLED_SEED, documents

HERE = Path(__file__).parent
SEED = 37
NUM_UNLABELLED = 48_000
RUN_CHARACTERS = 24


def reviews(count: int) -> list[str]:
    """Reviews without labels, none of them among the labelled ones.

    Args:
        count: How many.
    """
    labelled = make_reviews(NUM_REVIEWS, SENTIMENT_SEED)
    return list(make_reviews(count, UNLABELLED_SEED, without=labelled))


def runs(document: str) -> Iterator[str]:
    """Runs of sentences of a document, two at least, of about `RUN_CHARACTERS` together.

    Args:
        document: Sentences with their marks, or lines.
    """
    run: list[str] = []
    for sentence in re.findall(r"[^。？！\n]+[。？！”’]*", document):
        run.append(sentence)
        if len(run) > 1 and sum(map(len, run)) >= RUN_CHARACTERS:
            yield "\n".join(run)
            run = []
    if len(run) > 1:
        yield "\n".join(run)


def make_texts() -> list[str]:
    """All texts, shuffled."""
    texts = reviews(NUM_UNLABELLED) + [run for document in documents() for run in runs(document)]
    Random(SEED).shuffle(texts)
    return texts


def main() -> None:
    """Make and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "chinese_texts.jsonl")
    arguments = parser.parse_args()
    texts = make_texts()
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    arguments.output.write_text(lines, encoding="utf-8", newline="\n")
    print(f"{arguments.output}: {len(texts)} texts")


if __name__ == "__main__":
    main()
