"""Write the labelled Chinese reviews: short, of eight kinds of things, half of them positive.

Run: `python data/make_sentiment.py` writes `data/sentiment_zh.tsv` with the columns `text` and
`label` (正面, 负面). The same seed gives the same bytes. Negation and contrast turn words round, so
that counting good and bad words is not enough.
"""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from random import Random

from review_words import BAD, CONTRASTS, DOMAINS, GOOD, Aspect, Domain

SEED = 23
NUM_REVIEWS = 1200
LABELS = {True: "正面", False: "负面"}
LENGTHS = range(10, 41)

PHRASE_FRACTION = 0.2
DENIAL_FRACTION = 0.2
CONTRAST_FRACTION = 0.15
HEARSAY_FRACTION = 0.1
CONCESSION_FRACTION = 0.1
OPENING_FRACTION = 0.3
ENDING_FRACTION = 0.5


def common_first(rng: Random, words: Sequence[str]) -> str:
    """One of the words; the second is drawn half as often as the first, the third a third."""
    return rng.choices(words, [1 / rank for rank in range(1, len(words) + 1)])[0]


def clause(rng: Random, domain: Domain, aspect: Aspect, *, positive: bool) -> str:
    """One judgement: an adjective about the aspect, the opposite denied, or a whole clause."""
    if rng.random() < PHRASE_FRACTION:
        return common_first(rng, domain.praise if positive else domain.blame)
    turns = GOOD if positive else BAD
    denies = rng.random() < DENIAL_FRACTION
    words = aspect.good if positive != denies else aspect.bad
    pattern = rng.choice(turns.denial if denies else turns.plain)
    return pattern.format(n=aspect.noun, w=common_first(rng, words))


def body(rng: Random, domain: Domain, *, positive: bool) -> str:
    """One to three judgements of one mind, or two of which one decides."""
    first, second, third = rng.sample(domain.aspects, 3)
    turns = GOOD if positive else BAD
    y = clause(rng, domain, first, positive=positive)
    kind = rng.random()
    if kind < CONTRAST_FRACTION:
        x = clause(rng, domain, second, positive=not positive)
        return rng.choice(CONTRASTS).format(x=x, y=y)
    kind -= CONTRAST_FRACTION
    if kind < HEARSAY_FRACTION + CONCESSION_FRACTION:
        pattern = rng.choice(turns.hearsay if kind < HEARSAY_FRACTION else turns.concession)
        word = common_first(rng, second.bad if positive else second.good)
        return pattern.format(n=second.noun, w=word, y=y)
    more = [clause(rng, domain, aspect, positive=positive) for aspect in (second, third)]
    return "，".join([y, *more[: rng.randint(0, 2)]])


def review(rng: Random, domain: Domain, *, positive: bool) -> str:
    """A review: perhaps how it came about, the judgements, perhaps last words."""
    parts = [body(rng, domain, positive=positive)]
    if rng.random() < OPENING_FRACTION:
        parts.insert(0, rng.choice(domain.openings))
    if rng.random() < ENDING_FRACTION:
        parts.append(common_first(rng, (GOOD if positive else BAD).endings))
    return "，".join(parts) + "。"


def make_reviews(num_reviews: int, seed: int, without: Collection[str] = ()) -> dict[str, str]:
    """Reviews and their labels, no text twice, the labels in equal numbers.

    Args:
        num_reviews: How many to write.
        seed: Seed of every choice.
        without: Texts that must not be among them.
    """
    rng = Random(seed)
    domains = list(DOMAINS.values())
    labels: dict[str, str] = {}
    while len(labels) < num_reviews:
        positive = len(labels) % 2 == 0
        text = review(rng, rng.choice(domains), positive=positive)
        if len(text) in LENGTHS and text not in labels and text not in without:
            labels[text] = LABELS[positive]
    texts = list(labels)
    rng.shuffle(texts)
    return {text: labels[text] for text in texts}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("sentiment_zh.tsv"))
    parser.add_argument("--reviews", type=int, default=NUM_REVIEWS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    labels = make_reviews(arguments.reviews, arguments.seed)
    with arguments.output.open("w", encoding="utf-8", newline="\n") as file:
        file.write("text\tlabel\n")
        file.writelines(f"{text}\t{label}\n" for text, label in labels.items())
    print(f"{arguments.output}: {len(labels)} reviews")


if __name__ == "__main__":
    main()
