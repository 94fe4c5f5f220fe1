"""Write the preference sample: a good and a bad answer to questions about the small world.

Run: `python data/make_preferences.py` writes `data/preferences.jsonl`, rows of prompt, chosen and
rejected in English and Chinese. The chosen answer is right, polite, one sentence long, and ends
there. The rejected one has a fault. The same seed gives the same bytes. Every row was written for
this project.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import NamedTuple

from make_instructions import SMALL_TALK
from questions import Question, all_questions

SEED = 17
NUM_QUESTIONS = 290
INPUT_FRACTION = 0.2
# A deck is dealt over and over: no fault is rare, and neither the longer nor the shorter answer is
# usually the better one.
OFF_TOPIC = "off topic"
FAULTS = (
    *("wrong", "repeating", "broken off", OFF_TOPIC, "rude", "wrong", OFF_TOPIC, "going on"),
    *("broken off", OFF_TOPIC, "rude", OFF_TOPIC),
)
NUM_BAD = 3

RUDE = {
    "en": (
        "Who cares?",
        "Find it out yourself.",
        "What a stupid question!",
        "I will not tell you that.",
        "Go away and do not ask me again.",
        "Leave me alone, I do not like you.",
        "Read a book, you lazy child, and stop asking me things.",
    ),
    "zh": (
        "谁管这个？",
        "自己去找。",
        "这个问题真笨！",
        "我不告诉你。",
        "走开，不要再问我。",
        "别来找我，我不喜欢你。",
        "你这个懒孩子，自己去看书，不要什么都问我。",
    ),
}


class Asked(NamedTuple):
    """A question with its one good answer."""

    prompt: str
    answer: str
    language: str
    topic: str


def make_rows(seed: int) -> list[dict[str, str]]:
    """All rows, shuffled; each question stands several times, with different bad answers.

    Args:
        seed: Seed of every choice.
    """
    rng = Random(seed)
    questions = all_questions()
    known = {question.answer for question in questions}
    asked = [ask(question, rng) for question in rng.sample(questions, NUM_QUESTIONS)]
    asked += small_talk()
    deck = dealt(rng)
    rows = []
    for one in asked:
        others = [q.answer for q in questions if (q.language, q.topic) == (one.language, one.topic)]
        bad: list[str] = []
        while len(bad) < NUM_BAD:
            fault = next(deck)
            if fault == OFF_TOPIC:
                answer, taken = off_topic(one, questions, rng), set()
            else:
                answer, taken = FAULTY[fault](one, others, rng), known
            if answer not in {one.answer, *taken, *bad}:
                bad.append(answer)
        rows += [{"prompt": one.prompt, "chosen": one.answer, "rejected": text} for text in bad]
    rng.shuffle(rows)
    return rows


def ask(question: Question, rng: Random) -> Asked:
    """Ask plainly, or as a task with an input."""
    prompt = rng.choice(question.wordings)
    if question.task and rng.random() < INPUT_FRACTION:
        prompt = f"{question.task}\n\n{question.task_input}"
    return Asked(prompt, question.answer, question.language, question.topic)


def small_talk() -> list[Asked]:
    """The first wording of each piece of small talk."""
    return [
        Asked(prompt, answer, "en" if answer.isascii() else "zh", "small talk")
        for answer, prompt, *_ in SMALL_TALK
    ]


def dealt(rng: Random) -> Iterator[str]:
    """Deal the faults deck by deck."""
    while True:
        yield from rng.sample(FAULTS, len(FAULTS))


def units(text: str) -> list[str]:
    """English words and Chinese characters, each with the blanks before it."""
    return re.findall(r"\s*(?:[A-Za-z0-9']+|[^A-Za-z0-9'])", text)


def wrong(asked: Asked, others: list[str], rng: Random) -> str:
    """Put a part of another answer into this one, so that a cow eats grain."""
    if not others:
        return rude(asked, others, rng)
    mine, other = units(asked.answer), units(rng.choice(others))
    changes = [
        code
        for code in SequenceMatcher(None, mine, other, autojunk=False).get_opcodes()
        if code[0] == "replace"
    ]
    if not changes:
        return asked.answer
    _, start, end, other_start, other_end = changes[-1]
    return "".join([*mine[:start], *other[other_start:other_end], *mine[end:]])


def repeating(asked: Asked, _others: list[str], rng: Random) -> str:
    """Say the right thing over and over, whole or its end."""
    gap = " " if asked.language == "en" else ""
    if rng.random() < 0.5:
        return gap.join([asked.answer] * rng.randint(2, 3))
    words = units(asked.answer)
    return "".join([*words[:-1], *words[len(words) // 2 : -1] * rng.randint(1, 3), words[-1]])


def going_on(asked: Asked, others: list[str], rng: Random) -> str:
    """Answer, and then tell what nobody asked for."""
    gap = rng.choice(("\n", " " if asked.language == "en" else ""))
    more = rng.sample(others, min(len(others), rng.randint(1, 2)))
    return gap.join([asked.answer, *(more or [asked.prompt])])


def broken_off(asked: Asked, _others: list[str], rng: Random) -> str:
    """Stop in mid-sentence."""
    words = units(asked.answer)
    return "".join(words[: max(1, rng.randint(len(words) // 3, len(words) - 2))])


def off_topic(asked: Asked, questions: list[Question], rng: Random) -> str:
    """Answer another question well, in either language.

    Without such rows a reward model need not read the prompt, and a policy soon finds the one
    answer that scores best whatever is asked.
    """
    return rng.choice([one for one in questions if one.topic != asked.topic]).answer


def rude(asked: Asked, _others: list[str], rng: Random) -> str:
    """Refuse to answer, and not kindly."""
    return rng.choice(RUDE[asked.language])


FAULTY: dict[str, Callable[[Asked, list[str], Random], str]] = {
    "wrong": wrong,
    "repeating": repeating,
    "going on": going_on,
    "broken off": broken_off,
    "rude": rude,
}


def main() -> None:
    """Write the preference file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("preferences.jsonl")
    )
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    rows = make_rows(arguments.seed)
    with arguments.output.open("w", encoding="utf-8", newline="\n") as file:
        for fields in rows:
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
    print(f"{arguments.output}: {len(rows)} rows")


if __name__ == "__main__":
    main()
