"""Write the labelled questions: what a question about the world of `world.py` is about.

Run: `python data/make_topics.py` writes `data/topics.csv` with the columns `text`, `label` and
`group`, half English and half Chinese. The same seed gives the same bytes. All wordings of a fact,
in both languages, have one `group`: split by it, and no fact is both learnt and asked for.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from random import Random

from questions import Question, all_questions

SEED = 29
LABELS = {
    "animals": ("food", "home", "young", "call"),
    "calendar": ("day", "month", "season"),
    "colours": ("colour",),
    "language": ("opposite", "translation"),
    "numbers": ("sum",),
    "people": ("person", "family"),
    "things": ("kind", "tool", "sense"),
    "work": ("job", "workplace"),
}
ROWS_PER_LABEL = 104


def facts(questions: list[Question]) -> dict[str, list[Question]]:
    """The questions by the fact they ask for, under a name such as `young-03`.

    Both languages ask for the facts of a topic in the same order, English perhaps twice as often
    (what comes after Monday, what before Tuesday). A word and its opposite are one fact, whichever
    of the two is asked for.
    """
    topics: dict[str, dict[str, list[Question]]] = defaultdict(lambda: {"en": [], "zh": []})
    for question in questions:
        topics[question.topic][question.language].append(question)
    named: dict[str, list[Question]] = defaultdict(list)
    for topic, languages in topics.items():
        num_facts = len(languages["zh"]) // (2 if topic == "opposite" else 1)
        for asked in languages.values():
            for number, question in enumerate(asked):
                if topic == "opposite":
                    fact = number % num_facts
                else:
                    fact = number * num_facts // len(asked)
                named[f"{topic}-{fact:02d}"].append(question)
    return named


def make_rows(seed: int) -> list[dict[str, str]]:
    """The rows, shuffled, the same number for every label; no text stands twice.

    Args:
        seed: Seed of every choice.
    """
    rng = Random(seed)
    by_topic = {topic: label for label, topics in LABELS.items() for topic in topics}
    rows: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for group, questions in facts(all_questions()).items():
        label = by_topic.get(questions[0].topic)
        if label is None:
            continue
        for text in [wording for question in questions for wording in question.wordings]:
            rows[label].setdefault(text, {"text": text, "label": label, "group": group})
    chosen = [
        row
        for of_label in rows.values()
        for row in rng.sample(list(of_label.values()), min(ROWS_PER_LABEL, len(of_label)))
    ]
    rng.shuffle(chosen)
    return chosen


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("topics.csv"))
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    rows = make_rows(arguments.seed)
    with arguments.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label", "group"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{arguments.output}: {len(rows)} rows")


if __name__ == "__main__":
    main()
