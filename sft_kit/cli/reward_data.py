"""What a reward model is asked to score: compared answers, or one answer to each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast, get_args

from sft_kit.config.merging import COMMAND_LINE
from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.data.formats import detect_format
from sft_kit.data.inspection import counted, name_places
from sft_kit.data.preference.formats import detect_preference_format
from sft_kit.data.preference.rows import PreferenceExample
from sft_kit.data.preference.splits import load_preferences
from sft_kit.data.preference.tokenization import check_preferences, tokenize_preferences
from sft_kit.data.rows import Conversation, Message, RawRow, Where
from sft_kit.data.sources import open_source
from sft_kit.data.splits import load_conversations
from sft_kit.data.tokenization import encode_conversation
from sft_kit.errors import ConfigError, DataError, FormatError, Problem
from sft_kit.settings import DataSettings
from sft_kit.settings.preference import PreferenceFormat

if TYPE_CHECKING:
    from sft_kit.artifacts.reward import LoadedReward

_NUM_ROWS_TO_DETECT = 100
_PREFERENCES = get_args(PreferenceFormat)
_CONVERSATIONS = get_args(DataSettings.__dataclass_fields__["format"].type)


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt with its answer.

    Attributes:
        input_ids: T token ids, with the stop token.
        prompt: As text; empty for plain text.
        completion: As text.
        where: Place of the row.
        rank: From 1, the best first, where several answers are compared; else None.
    """

    input_ids: tuple[int, ...]
    prompt: str
    completion: str
    where: Where
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class AskedAnswers:
    """What is to be scored.

    Attributes:
        answers: At least one.
        comparisons: The groups that the answers are of, in the same order; empty where the file
            compares nothing.
        notes: What was detected or left out, a sentence each.
        fingerprint: sha256 of the file.
    """

    answers: list[Answer]
    comparisons: list[PreferenceExample]
    notes: list[str]
    fingerprint: str


def read_answers(loaded: "LoadedReward", file: str, format_name: str) -> AskedAnswers:
    """Read answers to score.

    Args:
        loaded: The reward model; its run says what to do with long and bad rows.
        file: What to read.
        format_name: Shape of a row, or `auto`.

    Raises:
        ConfigError: There is no such format.
        DataError: Nothing to read, or not readable, or no row that is short enough.
        FormatError: The format can't be told, or there are bad rows.
    """
    known = tuple(dict.fromkeys([*_PREFERENCES, *_CONVERSATIONS]))
    if format_name not in known:
        found = f"found {format_name!r}, accepts {', '.join(known)}"
        todo = did_you_mean(nearest(format_name, known))
        problem = Problem(COMMAND_LINE, "--format", found, todo)
        raise ConfigError("the answers can't be read", [problem])
    if _compares(file, format_name):
        return _compared(loaded, file, format_name)
    return _single(loaded, file, format_name)


def _compares(file: str, format_name: str) -> bool:
    """Whether the rows of a file compare answers.

    A name that both kinds of formats have says nothing, nor does `auto`: the first rows do.
    """
    if (format_name in _PREFERENCES) != (format_name in _CONVERSATIONS):
        return format_name in _PREFERENCES
    rows = islice(open_source(file, "train", None).rows, _NUM_ROWS_TO_DETECT)
    samples = [row for row in rows if isinstance(row, RawRow)]
    if not samples:
        return False
    try:
        detect_preference_format(samples)
    except FormatError as no_comparison:
        try:
            detect_format(samples)
        except FormatError as error:
            problems = [*no_comparison.problems, *error.problems]
            raise FormatError(error.summary, problems) from None
        return False
    return True


def _compared(loaded: "LoadedReward", file: str, format_name: str) -> AskedAnswers:
    settings = replace(
        loaded.data,
        path=file,
        format=cast("PreferenceFormat", format_name),
        margin=None,
        split="train",
        revision=None,
        num_rows=None,
        eval_path=None,
        eval_fraction=0.0,
    )
    template, tokenizer = loaded.template, loaded.tokenizer
    rows = load_preferences(settings, tokenizer, template)
    examples = tokenize_preferences(rows.train, tokenizer, template, settings)
    notes = [_read(rows.report.format, rows.report.num_rows, len(rows.train), "comparison")]
    notes += rows.losses()
    notes += check_preferences(
        examples, rows.train, tokenizer, template, settings, has_settings=False
    )
    answers = []
    for example in examples:
        prompt = _turns(example.comparison.prompt)
        for rank, ids in enumerate(example.input_ids, start=1):
            text = tokenizer.decode(
                list(ids[example.num_prompt_tokens :]), skip_special_tokens=True
            )
            answers.append(Answer(ids, prompt, str(text), example.comparison.where, rank))
    return AskedAnswers(answers, examples, notes, rows.report.fingerprint)


def _single(loaded: "LoadedReward", file: str, format_name: str) -> AskedAnswers:
    settings = DataSettings(
        path=file,
        format=cast("Any", format_name),
        eval_fraction=0.0,
        on_bad_row=loaded.data.on_bad_row,
    )
    rows = load_conversations(settings, loaded.tokenizer)
    answers = [_answer(loaded, row) for row in rows.train]
    limit = min(loaded.data.max_length, loaded.tokenizer.model_max_length)
    kept = [answer for answer in answers if len(answer.input_ids) <= limit]
    long = [answer.where for answer in answers if len(answer.input_ids) > limit]
    notes = [_read(rows.report.format, rows.report.num_rows, len(kept), "answer")]
    if rows.report.num_bad_rows:
        notes.append(f"data: {counted(rows.report.num_bad_rows, 'bad row')} skipped")
    if long:
        what = f"{counted(len(long), 'row')} of more than {limit} tokens left out"
        notes.append(f"data: {what} {name_places(long)}")
    if not kept:
        raise DataError(f"{file}: all rows are longer than the {limit} tokens of the run")
    return AskedAnswers(kept, [], notes, rows.report.fingerprint)


def _read(format_name: str, num_rows: int, num_read: int, noun: str) -> str:
    return f"data: format {format_name}, {num_rows:,} rows read, {counted(num_read, noun)} to score"


def _answer(loaded: "LoadedReward", row: Conversation) -> Answer:
    """Encode a conversation as training does: its last answer is the completion."""
    ids, _ = encode_conversation(loaded.tokenizer, loaded.template, row)
    stop = loaded.template.stop_token_id
    if ids[-1:] != [stop]:
        ids = [*ids, stop]
    if row.text is not None:
        return Answer(tuple(ids), "", row.text, row.where)
    last = row.messages[-1]["content"]
    return Answer(tuple(ids), _turns(row.messages[:-1]), last, row.where)


def _turns(messages: Sequence[Message]) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def by_group(
    scores: Sequence[float], comparisons: Sequence[PreferenceExample]
) -> list[list[float]]:
    """Cut the scores of all answers into those of each comparison."""
    rest = iter(scores)
    return [list(islice(rest, len(example.input_ids))) for example in comparisons]
