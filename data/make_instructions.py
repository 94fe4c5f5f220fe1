"""Write the instruction set: questions about the small world of `world.py` plus small talk.

Run: `python data/make_instructions.py` writes `data/instructions.jsonl`, alpaca rows (instruction,
input, output, some with history) in English and Chinese. The same seed gives the same bytes. Every
row was written for this project.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from random import Random

from questions import Question, all_questions

SEED = 11
ROWS_PER_TOPIC = 20
HISTORY_FRACTION = 0.3
INPUT_FRACTION = 0.3

SMALL_TALK = (
    (
        "I am a tiny language model.",
        "Who are you?",
        "What are you?",
        "Tell me who you are.",
        "Please introduce yourself.",
    ),
    (
        "I can answer short questions in English and Chinese.",
        "What can you do?",
        "How can you help me?",
        "Tell me what you can do.",
    ),
    ("Hello! How can I help you?", "Hello!", "Hi there!", "Hello, how are you?", "Hi!"),
    ("Good morning! How can I help you?", "Good morning!", "Good morning to you!"),
    ("You are welcome.", "Thank you!", "Thanks a lot!", "Thank you very much.", "Thanks!"),
    ("Goodbye! See you soon.", "Goodbye!", "Bye!", "See you later!", "I have to go now."),
    ("I learned it from a small book.", "How do you know that?", "Where did you learn that?"),
    ("No, I am a program.", "Are you a person?", "Are you human?", "Do you have a body?"),
    ("我是一个很小的语言模型。", "你是谁？", "你是什么？", "请介绍一下你自己。", "你叫什么名字？"),
    ("我会用中文和英文回答简单的问题。", "你会做什么？", "你能帮我做什么？", "你有什么本领？"),
    ("你好！我能帮你什么？", "你好！", "你好吗？", "您好！", "嗨！"),
    ("早上好！我能帮你什么？", "早上好！", "早安！"),
    ("不客气。", "谢谢！", "谢谢你！", "多谢！", "非常感谢。"),
    ("再见！下次再聊。", "再见！", "拜拜！", "我要走了。", "明天见！"),
    ("我是从一本小书里学来的。", "你怎么知道的？", "你在哪里学的？"),
    ("不是，我是一个程序。", "你是人吗？", "你是真人吗？", "你有身体吗？"),
)


def make_rows(seed: int) -> list[dict[str, str | list[list[str]]]]:
    """All rows, shuffled; no instruction stands twice with the same input.

    Args:
        seed: Seed of every choice.
    """
    rng = Random(seed)
    groups: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in all_questions():
        groups[question.topic, question.language].append(question)
    rows = [
        row(question, rng)
        for group in groups.values()
        for question in rng.sample(group, min(len(group), ROWS_PER_TOPIC))
    ]
    rows += [
        {"instruction": wording, "input": "", "output": answer}
        for answer, *wordings in SMALL_TALK
        for wording in wordings
    ]
    rng.shuffle(rows)
    return [with_history(row, rows, Random(f"{seed} {number}")) for number, row in enumerate(rows)]


def with_history(
    row: dict[str, str], rows: list[dict[str, str]], rng: Random
) -> dict[str, str | list[list[str]]]:
    """Give some rows one or two earlier turns, so that a chat goes on after the first answer."""
    if rng.random() >= HISTORY_FRACTION:
        return dict(row)
    plain = [other for other in rows if not other["input"] and other != row]
    earlier = rng.sample(plain, rng.randint(1, 2))
    return {**row, "history": [[other["instruction"], other["output"]] for other in earlier]}


def row(question: Question, rng: Random) -> dict[str, str]:
    """One question as a row, asked plainly or as a task with an input."""
    if question.task and rng.random() < INPUT_FRACTION:
        instruction, given = question.task, question.task_input
    else:
        instruction, given = rng.choice(question.wordings), ""
    return {"instruction": instruction, "input": given, "output": question.answer}


def main() -> None:
    """Write the instruction file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("instructions.jsonl")
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
