"""Write the pretraining corpus of the embedded checkpoint: short documents about one small world.

Run: `python data/make_corpus.py` writes `data/corpus.jsonl`, half of it English and half Chinese,
one document a line as `{"text": ...}`. The same seed gives the same bytes. Every sentence pattern
below was written for this project.
"""

import argparse
import json
import re
from pathlib import Path
from random import Random

import world
from questions import Question, all_questions, capital, with_article

SEED = 7
NUM_DOCUMENTS = 4000

QUOTES = {"en": ('"', '"'), "zh": ("“", "”")}
QUOTE_INSIDE = str.maketrans("“”", "‘’")

WEATHER = {
    "en": (
        "The sun was shining.",
        "A soft rain was falling.",
        "The wind was playing with the leaves.",
        "White clouds stood over the hills.",
        "The air was cold and clear.",
        "It was warm, and the birds were singing.",
        "Snow lay on the roofs.",
    ),
    "zh": (
        "太阳照着大地。",
        "天上下着小雨。",
        "风吹着树叶。",
        "白云停在山顶上。",
        "空气又冷又清新。",
        "天气暖和，小鸟在唱歌。",
        "屋顶上积着白雪。",
    ),
}
PLACES = {
    "en": (
        "at the market",
        "by the river",
        "in front of the school",
        "under the old tree",
        "on the bridge",
        "near the mill",
        "in the garden",
        "at the bakery",
    ),
    "zh": (
        "集市上",
        "小河边",
        "学校门口",
        "老树下",
        "桥上",
        "磨坊旁边",
        "花园里",
        "面包店里",
    ),
}
MEETINGS = {
    "en": (
        "On {day} {a} met {b} {place}.",
        "One {day} morning {a} and {b} were sitting {place}.",
        "{a} found {b} {place} on {day}.",
        "Early on {day} {a} walked with {b}. They stopped {place}.",
    ),
    "zh": (
        "{day}，{a}在{place}遇见了{b}。",
        "{day}早上，{a}和{b}坐在{place}。",
        "{day}，{a}和{b}一起散步，走到了{place}。",
        "{day}下午，{a}在{place}等{b}。",
    ),
}
EXCHANGES = {
    "en": (
        "{a} asked, {q} {b} answered, {r}",
        "{q} asked {a}. {b} said, {r}",
        "{a} wanted to know: {q} {b} knew it: {r}",
        "Then {a} said, {q} {b} thought for a moment and said, {r}",
        "{a} had one more question: {q} {b} smiled and said, {r}",
    ),
    "zh": (
        "{a}问：{q}{b}回答：{r}",
        "{q}{a}问道。{b}说：{r}",
        "{a}想知道：{q}{b}知道：{r}",
        "{a}又说：{q}{b}想了想，说：{r}",
        "{a}还有一个问题：{q}{b}笑着说：{r}",
    ),
}
PARTINGS = {
    "en": (
        "Then they went home.",
        "They laughed and shared an apple.",
        "After that the two friends went to work.",
        "In the evening {a} told the story to a friend.",
        "{b} was glad, because questions are fun.",
        "{a} said thank you and walked on.",
    ),
    "zh": (
        "然后他们回家了。",
        "他们笑了，一起吃了一个苹果。",
        "后来两个朋友都去工作了。",
        "晚上，{a}把这件事告诉了朋友。",
        "{b}很高兴，因为提问很有意思。",
        "{a}说了谢谢，继续往前走。",
    ),
}
LESSONS = {
    "en": ("The quiz book of Greenhill", "Questions for {day}", "A page for clever children"),
    "zh": ("青山村的问答书", "{day}的问题", "给聪明孩子的一页"),
}
DIARY = {
    "en": (
        "{name} gets up early and drinks a cup of {drink}.",
        "{name} {act} {where}, as on every day.",
        "The {pet} of {name} sleeps {place}.",
        "At noon {name} eats {food} and {fruit}.",
        "{name} takes {tool} to {use}.",
        "{name} paints the door of the {colour} house again.",
        "{animal} comes to the gate, and {name} gives it {feed}.",
        "{name} meets {friend} {place}, and they talk about {topic}.",
        "In the evening {name} sits {place} and looks at the stars.",
    ),
    "zh": (
        "{name}很早起床，喝了一杯{drink}。",
        "{name}像每天一样在{where}{act}。",
        "{name}的{pet}睡在{place}。",
        "中午，{name}吃了{food}和{fruit}。",
        "{name}拿来{tool}，用它{use}。",
        "{name}又刷了一遍{colour}房子的门。",
        "{animal}来到门口，{name}给它吃了{feed}。",
        "{name}在{place}遇见{friend}，他们谈起了{topic}。",
        "晚上，{name}坐在{place}看星星。",
    ),
}


def quoted(sentence: str, language: str) -> str:
    """The sentence in the quotation marks of its language."""
    opening, closing = QUOTES[language]
    return opening + sentence.translate(QUOTE_INSIDE) + closing


def joined(sentences: list[str], language: str) -> str:
    """Sentences as one paragraph."""
    return (" " if language == "en" else "").join(sentences)


def column(language: str) -> int:
    """Index of the language's field in a two-column table row."""
    return 0 if language == "en" else 1


def conversation(rng: Random, language: str, questions: list[Question]) -> str:
    """Two people of the village meet and ask each other questions."""
    a, b = (getattr(person, language) for person in rng.sample(world.PEOPLE, 2))
    day = rng.choice(world.DAYS)[column(language)]
    place = rng.choice(PLACES[language])
    sentences = [rng.choice(MEETINGS[language]).format(a=a, b=b, day=day, place=place)]
    sentences.append(rng.choice(WEATHER[language]))
    for question in questions:
        if rng.random() < 0.3:
            a, b = b, a
        sentences.append(
            rng.choice(EXCHANGES[language]).format(
                a=a,
                b=b,
                q=quoted(rng.choice(question.wordings), language),
                r=quoted(question.answer, language),
            )
        )
    sentences.append(rng.choice(PARTINGS[language]).format(a=a, b=b))
    return joined(sentences, language)


def lesson(rng: Random, language: str, questions: list[Question]) -> str:
    """A page of a quiz book: each question on a line, its answer on the next."""
    day = rng.choice(world.DAYS)[column(language)]
    lines = [rng.choice(LESSONS[language]).format(day=day), ""]
    for question in questions:
        asked = rng.choice(question.wordings)
        if question.task and rng.random() < 0.4:
            asked = f"{question.task}\n\n{question.task_input}"
        lines += [asked, question.answer, ""]
    return "\n".join(lines).strip()


def script(rng: Random, language: str, questions: list[Question]) -> str:
    """A little play: speaker, colon, line; one asks and the other answers."""
    a, b = (getattr(person, language) for person in rng.sample(world.PEOPLE, 2))
    colon = {"en": ": ", "zh": "："}[language]
    lines = []
    for question in questions:
        lines += [a + colon + rng.choice(question.wordings), b + colon + question.answer]
    return "\n".join(lines)


def echo(rng: Random, language: str) -> str:
    """A class says words after its teacher; copying is the first thing a model has to learn."""
    words = [pair[column(language)] for pair in world.dictionary()]
    says, say, stop = {
        "en": ("Mei says: ", "The children say: ", "."),
        "zh": ("小梅说：", "孩子们说：", "。"),
    }[language]
    lines = []
    for _ in range(rng.randint(5, 7)):
        text = {"en": ", ", "zh": "，"}[language].join(rng.sample(words, rng.randint(3, 6))) + stop
        lines += [says + text, say + text]
    return "\n".join(lines)


def notes(language: str, questions: list[Question]) -> str:
    """A page of notes: plain facts after each other."""
    opening = {"en": "Notes of a clever child.", "zh": "聪明孩子的笔记。"}[language]
    return joined([opening, *(question.answer for question in questions)], language)


def portrait(rng: Random, language: str, about: list[Question]) -> str:
    """All that is known of one animal or one person."""
    facts = [question.answer for question in about]
    rng.shuffle(facts)
    opening, closing = {
        "en": ("Listen to this.", "That is all I know about this."),
        "zh": ("听我说。", "我知道的就是这些。"),
    }[language]
    return joined([opening, *facts, closing], language)


def diary(rng: Random, language: str) -> str:
    """A day in the life of somebody in the village."""
    season = rng.choice(world.SEASONS)
    if language == "en":
        opening = (
            f"It is {with_article(season[2])} {season[0]} day in Greenhill. {capital(season[4])}."
        )
    else:
        opening = f"这是青山村一个{season[3]}的{season[1]}的日子。{season[5]}。"
    sentences = [opening, rng.choice(WEATHER[language])]
    words = diary_words(rng, column(language))
    patterns = sorted(rng.sample(range(len(DIARY[language])), 7))
    sentences += [
        capital(DIARY[language][i].format(place=rng.choice(PLACES[language]), **words))
        for i in patterns
    ]
    return joined(sentences, language)


def diary_words(rng: Random, i: int) -> dict[str, str]:
    """What the blanks of a diary stand for, in the language of column `i`."""
    who, friend = rng.sample(world.PEOPLE, 2)
    job = next(job for job in world.JOBS if job.en == who.job_en)
    tool = rng.choice(world.TOOLS)
    animal = rng.choice(world.ANIMALS)
    topic = rng.choice(world.TOPICS)
    drink = rng.choice([thing for thing in world.THINGS if thing.kind_en == "drink"])
    fruit = rng.choice([thing for thing in world.THINGS if thing.kind_en == "fruit"])
    return {
        "name": who[i],
        "friend": friend[i],
        "act": (job.act_en, job.act_zh)[i],
        "where": (job.place_en, job.place_zh)[i],
        "pet": (who.pet_en, who.pet_zh)[i],
        "food": (who.food_en, who.food_zh)[i],
        "colour": (who.colour_en, who.colour_zh)[i],
        "tool": tool[i],
        "use": (tool.use_en, tool.use_zh)[i],
        "animal": (with_article(animal.en), animal.zh)[i],
        "feed": (animal.food_en, animal.food_zh)[i],
        "drink": drink[i],
        "fruit": (with_article(fruit.en), fruit.zh)[i],
        "topic": topic[i],
    }


class Deck:
    """Questions of one language, drawn without replacement and shuffled anew when used up."""

    def __init__(self, questions: list[Question], rng: Random) -> None:
        self._all, self._rng = questions, rng
        self._left: list[Question] = []

    def draw(self, count: int) -> list[Question]:
        """The next questions."""
        while len(self._left) < count:
            self._left = self._rng.sample(self._all, len(self._all)) + self._left
        drawn, self._left = self._left[-count:], self._left[:-count]
        return drawn


def make_documents(num_documents: int, seed: int) -> list[str]:
    """All documents, English and Chinese in turn.

    Args:
        num_documents: How many to write.
        seed: Seed of every choice.
    """
    rng = Random(seed)
    questions = {
        language: [q for q in all_questions() if q.language == language] for language in QUOTES
    }
    decks = {language: Deck(questions[language], rng) for language in QUOTES}
    documents = []
    for number in range(num_documents):
        language = ("en", "zh")[number % 2]
        deck = decks[language]
        kind = rng.choices(
            ("conversation", "lesson", "script", "echo", "notes", "portrait", "diary"),
            (8, 54, 20, 3, 5, 3, 7),
        )[0]
        if kind == "conversation":
            documents.append(conversation(rng, language, deck.draw(rng.randint(6, 9))))
        elif kind == "lesson":
            documents.append(lesson(rng, language, deck.draw(rng.randint(9, 13))))
        elif kind == "script":
            documents.append(script(rng, language, deck.draw(rng.randint(9, 13))))
        elif kind == "echo":
            documents.append(echo(rng, language))
        elif kind == "notes":
            documents.append(notes(language, deck.draw(rng.randint(13, 18))))
        elif kind == "portrait":
            subject = rng.choice(subjects(language))
            about = [q for q in questions[language] if is_about(q, subject)]
            documents.append(portrait(rng, language, about))
        else:
            documents.append(diary(rng, language))
    return documents


def subjects(language: str) -> list[str]:
    """Names of the animals and the people."""
    i = column(language)
    return [animal[i] for animal in world.ANIMALS] + [person[i] for person in world.PEOPLE]


def is_about(question: Question, subject: str) -> bool:
    """Whether the question is one of the facts about this animal or person."""
    if question.topic not in {"food", "home", "young", "call", "person"}:
        return False
    if question.language == "zh":
        return question.answer.startswith(subject)
    return re.search(rf"\b{subject}\b", question.wordings[0], re.IGNORECASE) is not None


def main() -> None:
    """Write the corpus file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("corpus.jsonl"))
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    documents = make_documents(arguments.documents, arguments.seed)
    with arguments.output.open("w", encoding="utf-8", newline="\n") as file:
        for text in documents:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {len(documents)} documents, {size} bytes")


if __name__ == "__main__":
    main()
