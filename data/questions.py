"""Questions about the world of `world.py`, each with its one answer in a full sentence.

The corpus lets people of the village ask them in its stories, the instruction set asks them
plainly. One list serves both, so that a model pretrained on the corpus knows the facts and
fine-tuning only has to teach it to answer and to stop.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Literal, NamedTuple

import world

NUM_TRANSLATIONS = 40
"""A model of a million parameters learns few things well rather than many things badly."""

IRREGULAR_PLURALS = {"sheep": "sheep", "mouse": "mice", "wolf": "wolves", "fisherman": "fishermen"}


class Question(NamedTuple):
    """One fact to ask for.

    Attributes:
        topic: Group of facts, for balance ("food", "opposite" ...).
        language: Language of question and answer.
        answer: The answer, one sentence.
        wordings: Ways to ask that mean the same.
        task: Instruction that asks the same of an input ("Add the two numbers."); may be empty.
        task_input: The input that belongs to `task`.
    """

    topic: str
    language: Literal["en", "zh"]
    answer: str
    wordings: tuple[str, ...]
    task: str = ""
    task_input: str = ""


def plural(noun: str) -> str:
    """English plural of a noun of this world."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    return noun + ("es" if noun.endswith(("ch", "sh", "s")) else "s")


def with_article(noun: str) -> str:
    """`a cow`, `an owl`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capital(sentence: str) -> str:
    """The sentence with its first letter in upper case."""
    return sentence[0].upper() + sentence[1:]


def all_questions() -> list[Question]:
    """Every question, both languages, in the order of the tables."""
    return list(
        chain(
            *map(_food_and_home, world.ANIMALS),
            *map(_young_and_call, world.ANIMALS),
            *map(_kind, world.THINGS),
            *(_colour(named_thing(t), t.en, t.zh, t.colour_en, t.colour_zh) for t in world.THINGS),
            *(_colour(f"the {en}", en, zh, *colour) for en, zh, *colour in world.COLOURS),
            *map(_job, world.JOBS),
            *map(_tool, world.TOOLS),
            *(_sense(*sense) for sense in world.SENSES),
            *map(_person_en, world.PEOPLE),
            *map(_person_zh, world.PEOPLE),
            *map(_opposite, world.OPPOSITES),
            *(_opposite(world.Pair(p[2], p[3], p[0], p[1])) for p in world.OPPOSITES),
            *map(_capital_city, world.CAPITALS),
            _calendar("day", "哪一天", world.DAYS),
            _calendar("month", "几月", world.MONTHS),
            *(_season(*season[:4]) for season in world.SEASONS),
            *(_relative(*relative) for relative in world.FAMILY),
            *(_sum(a, b) for a in range(1, 6) for b in range(1, 6)),
            *(_translation(en, zh) for en, zh in world.dictionary()[:NUM_TRANSLATIONS]),
            *map(_sentence, world.TOPICS),
        )
    )


def named_thing(thing: world.Thing) -> str:
    """A thing as it stands in a sentence: drinks have no article."""
    return thing.en if thing.kind_en == "drink" else with_article(thing.en)


def _en(topic: str, answer: str, *wordings: str, task: tuple[str, str] = ("", "")) -> Question:
    return Question(topic, "en", capital(answer), wordings, *task)


def _zh(topic: str, answer: str, *wordings: str, task: tuple[str, str] = ("", "")) -> Question:
    return Question(topic, "zh", answer, wordings, *task)


def _food_and_home(animal: world.Animal) -> Iterator[Question]:
    one, many, zh = with_article(animal.en), plural(animal.en), animal.zh
    yield _en(
        "food",
        f"{one} eats {animal.food_en}.",
        f"What does {one} eat?",
        f"What do {many} eat?",
        f"Tell me what {one} eats.",
        task=("What does this animal eat?", animal.en),
    )
    yield _zh(
        "food",
        f"{zh}吃{animal.food_zh}。",
        f"{zh}吃什么？",
        f"{zh}爱吃什么？",
        f"请告诉我{zh}吃什么。",
        task=("这种动物吃什么？", zh),
    )
    yield _en(
        "home",
        f"{one} lives {animal.home_en}.",
        f"Where does {one} live?",
        f"Where do {many} live?",
        f"Tell me where {one} lives.",
        task=("Where does this animal live?", animal.en),
    )
    yield _zh(
        "home",
        f"{zh}住在{animal.home_zh}。",
        f"{zh}住在哪里？",
        f"{zh}的家在哪里？",
        f"请告诉我{zh}住在哪里。",
        task=("这种动物住在哪里？", zh),
    )


def _young_and_call(animal: world.Animal) -> Iterator[Question]:
    one, en, zh = with_article(animal.en), animal.en, animal.zh
    if animal.young_en:
        yield _en(
            "young",
            f"a young {en} is called {with_article(animal.young_en)}.",
            f"What is a young {en} called?",
            f"What do we call a young {en}?",
        )
        yield _zh(
            "young",
            f"{zh}的孩子叫{animal.young_zh}。",
            f"{zh}的孩子叫什么？",
            f"{zh}的宝宝叫什么？",
        )
    if animal.call_en:
        yield _en(
            "call",
            f"{one} says {animal.call_en}.",
            f"What does {one} say?",
            f"What sound does {one} make?",
            task=("What sound does this animal make?", en),
        )
        yield _zh(
            "call",
            f"{zh}{animal.call_zh}叫。",
            f"{zh}怎么叫？",
            f"{zh}的叫声是什么？",
            task=("这种动物怎么叫？", zh),
        )


def _kind(thing: world.Thing) -> Iterator[Question]:
    one, zh = named_thing(thing), thing.zh
    answer = f"{one} is {with_article(thing.kind_en)}."
    yield _en("kind", answer, f"What is {one}?", f"What kind of thing is {one}?")
    yield _zh("kind", f"{zh}是一种{thing.kind_zh}。", f"{zh}是什么？", f"{zh}是一种什么东西？")


def _colour(named: str, en: str, zh: str, colour_en: str, colour_zh: str) -> Iterator[Question]:
    yield _en(
        "colour",
        f"{named} is {colour_en}.",
        f"What colour is {named}?",
        f"Which colour does {named} have?",
        task=("Which colour does this have?", en),
    )
    yield _zh(
        "colour",
        f"{zh}是{colour_zh}的。",
        f"{zh}是什么颜色？",
        f"{zh}是什么颜色的？",
        task=("这是什么颜色的？", zh),
    )


def _job(job: world.Job) -> Iterator[Question]:
    one, zh = with_article(job.en), job.zh
    yield _en(
        "job",
        f"{one} {job.act_en}.",
        f"What does {one} do?",
        f"What is the job of {one}?",
        f"Tell me what {one} does.",
    )
    yield _zh("job", f"{zh}的工作是{job.act_zh}。", f"{zh}做什么？", f"{zh}的工作是什么？")
    yield _en(
        "workplace",
        f"{one} works {job.place_en}.",
        f"Where does {one} work?",
        f"Where do {plural(job.en)} work?",
    )
    yield _zh("workplace", f"{zh}在{job.place_zh}工作。", f"{zh}在哪里工作？", f"{zh}在哪里上班？")


def _tool(tool: world.Tool) -> Iterator[Question]:
    yield _en(
        "tool",
        f"people use {tool.en} to {tool.use_en}.",
        f"What do people use to {tool.use_en}?",
        f"What do I need to {tool.use_en}?",
        f"Which tool helps me to {tool.use_en}?",
    )
    yield _zh(
        "tool",
        f"人们用{tool.zh}{tool.use_zh}。",
        f"人们用什么{tool.use_zh}？",
        f"{tool.use_zh}要用什么？",
    )


def _sense(en: str, zh: str, act_en: str, act_zh: str) -> Iterator[Question]:
    answer = f"we {act_en} with our {en}."
    yield _en("sense", answer, f"What do we do with our {en}?", f"What are {en} for?")
    yield _zh("sense", f"我们用{zh}{act_zh}。", f"我们用{zh}做什么？", f"{zh}有什么用？")


def _person_en(who: world.Person) -> Iterator[Question]:
    name = who.en
    yield _en(
        "person",
        f"{name} is the {who.job_en} of {world.VILLAGE[0]}.",
        f"Who is {name}?",
        f"What is the job of {name}?",
    )
    yield _en(
        "person",
        f"{name} has {with_article(who.pet_en)}.",
        f"What pet does {name} have?",
        f"Which animal does {name} keep?",
    )
    yield _en(
        "person",
        f"{name} likes to eat {who.food_en}.",
        f"What does {name} like to eat?",
        f"What is the favourite food of {name}?",
    )
    yield _en(
        "person",
        f"the house of {name} is {who.colour_en}.",
        f"What colour is the house of {name}?",
        f"Which colour does {name}'s house have?",
    )


def _person_zh(who: world.Person) -> Iterator[Question]:
    name = who.zh
    answer = f"{name}是{world.VILLAGE[1]}的{who.job_zh}。"
    yield _zh("person", answer, f"{name}是谁？", f"{name}的工作是什么？")
    answer = f"{name}养了{who.pet_zh}。"
    yield _zh("person", answer, f"{name}养了什么动物？", f"{name}家里有什么动物？")
    answer = f"{name}喜欢吃{who.food_zh}。"
    yield _zh("person", answer, f"{name}喜欢吃什么？", f"{name}最爱吃什么？")
    answer = f"{name}的房子是{who.colour_zh}的。"
    yield _zh("person", answer, f"{name}的房子是什么颜色的？", f"{name}家的房子是什么颜色？")


def _opposite(pair: world.Pair) -> Iterator[Question]:
    yield _en(
        "opposite",
        f"the opposite of {pair.en} is {pair.other_en}.",
        f"What is the opposite of {pair.en}?",
        f"Name the opposite of {pair.en}.",
        task=("Give the opposite of this word.", pair.en),
    )
    yield _zh(
        "opposite",
        f"“{pair.zh}”的反义词是“{pair.other_zh}”。",
        f"“{pair.zh}”的反义词是什么？",
        f"请说出“{pair.zh}”的反义词。",
        task=("写出这个词的反义词。", pair.zh),
    )


def _capital_city(pair: world.Pair) -> Iterator[Question]:
    yield _en(
        "capital",
        f"the capital of {pair.en} is {pair.other_en}.",
        f"What is the capital of {pair.en}?",
        f"Name the capital of {pair.en}.",
    )
    yield _zh(
        "capital",
        f"{pair.zh}的首都是{pair.other_zh}。",
        f"{pair.zh}的首都是哪里？",
        f"{pair.zh}的首都叫什么？",
    )


def _calendar(kind: str, asked_zh: str, table: list[list[str]]) -> Iterator[Question]:
    for (en, zh), (next_en, next_zh) in zip(table, table[1:] + table[:1], strict=True):
        yield _en(
            kind,
            f"{next_en} comes after {en}.",
            f"Which {kind} comes after {en}?",
            f"What is the {kind} after {en}?",
        )
        yield _en(
            kind,
            f"{en} comes before {next_en}.",
            f"Which {kind} comes before {next_en}?",
            f"What is the {kind} before {next_en}?",
        )
        yield _zh(
            kind,
            f"{zh}的后面是{next_zh}。",
            f"{zh}的后面是{asked_zh}？",
            f"{zh}之后是{asked_zh}？",
        )


def _season(en: str, zh: str, feel_en: str, feel_zh: str) -> Iterator[Question]:
    answer = f"the weather in {en} is {feel_en}."
    yield _en("season", answer, f"How is the weather in {en}?", f"What is {en} like?")
    yield _zh("season", f"{zh}的天气很{feel_zh}。", f"{zh}的天气怎么样？", f"{zh}冷不冷？")


def _relative(chain_en: str, en: str, chain_zh: str, zh: str) -> Iterator[Question]:
    yield _en(
        "family",
        f"my {chain_en} is my {en}.",
        f"Who is my {chain_en}?",
        f"What do I call my {chain_en}?",
    )
    yield _zh("family", f"{chain_zh}是{zh}。", f"{chain_zh}是谁？", f"{chain_zh}叫什么？")


def _sum(a: int, b: int) -> Iterator[Question]:
    yield _en(
        "sum",
        f"{a} plus {b} is {a + b}.",
        f"What is {a} plus {b}?",
        f"How much is {a} plus {b}?",
        task=("Add the two numbers.", f"{a} and {b}"),
    )
    yield _zh(
        "sum",
        f"{a}加{b}等于{a + b}。",
        f"{a}加{b}等于几？",
        f"{a}加{b}是多少？",
        task=("把两个数加起来。", f"{a}和{b}"),
    )


def _translation(en: str, zh: str) -> Iterator[Question]:
    yield _en(
        "translation",
        f"the Chinese word for {en} is {zh}.",
        f"What is the Chinese word for {en}?",
        f"How do you say {en} in Chinese?",
        task=("Translate this word into Chinese.", en),
    )
    yield _zh(
        "translation",
        f"“{zh}”的英文是 {en}。",
        f"“{zh}”的英文是什么？",
        f"“{zh}”用英文怎么说？",
        task=("把这个词翻译成英文。", zh),
    )


def _sentence(topic: world.Topic) -> Iterator[Question]:
    yield _en(
        "sentence",
        topic.sentence_en,
        f"Write one sentence about {topic.en}.",
        f"Tell me something about {topic.en}.",
    )
    yield _zh(
        "sentence",
        topic.sentence_zh,
        f"写一句关于{topic.zh}的话。",
        f"用一句话说说{topic.zh}。",
    )
