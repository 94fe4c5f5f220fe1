"""Data settings -> prompts for training and for evaluation that have none in common."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NoReturn

from sft_kit.data.control_tokens import spelled_problems
from sft_kit.data.preference.comparing import feed_messages
from sft_kit.data.preference.prompt_formats import (
    AskedRow,
    detect_prompt_format,
    name_preference_format,
    understand_prompt,
)
from sft_kit.data.preference.reading import Reading, hold_out, read_source, refuse_bad_rows
from sft_kit.data.preference.report import PromptReport, PromptSplits
from sft_kit.data.preference.rows import Prompt
from sft_kit.data.preference.tokenization import leading_ids
from sft_kit.data.rows import Message, RawRow, Where
from sft_kit.data.segments import Segment, encode_segments
from sft_kit.data.sources import Source, open_source
from sft_kit.data.templates import Template, render_segments
from sft_kit.errors import DataError, Problem, TemplateError
from sft_kit.settings import PromptDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class _Row:
    asked: AskedRow
    where: Where


def load_prompts(
    settings: PromptDataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    context: int | None,
    max_new_tokens: int,
) -> PromptSplits:
    """Read prompts, encode them as chat does, and hold out some of them.

    A prompt that stands several times is kept once; case and white space don't count. Both sides
    keep the order of the file.

    Args:
        settings: The `data` section.
        tokenizer: Carries the template.
        template: From `choose_template`.
        context: Tokens the model can read; None for no limit.
        max_new_tokens: Tokens of the longest completion, which must find room behind a prompt.

    Raises:
        DataError: Nothing to read, not readable, or no prompt that fits.
        FormatError: The format can't be told, no row has a prompt, or there are bad rows, such as
            those that spell a special token, and `on_bad_row` is `stop`.
    """
    report = PromptReport("", was_cut=settings.on_long_prompt == "cut")
    report.limit = _limit(settings, context, max_new_tokens)
    report.lowered_from = settings.max_prompt_length * (report.limit < settings.max_prompt_length)
    rows, eval_rows = _read_both(settings, report, tokenizer)
    prompts = _encode(rows, tokenizer, template, report)
    if not prompts:
        _refuse_long_prompts(settings, rows, report)
    held_out = None if eval_rows is None else _encode(eval_rows, tokenizer, template, report)
    return _split(prompts, held_out, settings, report)


def _refuse_long_prompts(
    settings: PromptDataSettings, rows: Sequence[_Row], report: PromptReport
) -> NoReturn:
    different = {_key(row.asked.messages, row.asked.text) for row in rows}
    number = f"all {len(different):,} prompts are" if len(different) > 1 else "the only prompt is"
    # Where the context is the limit, raising the setting would change nothing.
    way = "lower ppo.max_new_tokens" if report.lowered_from else "raise data.max_prompt_length"
    raise DataError(
        f"{settings.path}: {number} longer than {report.limit} tokens ({way}, or set "
        "data.on_long_prompt=cut)"
    )


def _limit(settings: PromptDataSettings, context: int | None, max_new_tokens: int) -> int:
    if context is None:
        return settings.max_prompt_length
    room = context - max_new_tokens - 1  # a reward model reads one stop token more
    if room < 1:
        raise DataError(
            f"ppo.max_new_tokens: found {max_new_tokens}, which leaves no room for a prompt in the "
            f"model's context of {context} tokens (lower it)"
        )
    return min(settings.max_prompt_length, room)


def _read_both(
    settings: PromptDataSettings, report: PromptReport, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[_Row], list[_Row] | None]:
    source = open_source(settings.path, settings.split, settings.revision)
    report.fingerprint = source.fingerprint
    reading, rows = _read(source, settings, settings.num_rows, tokenizer)
    readings, eval_rows = [reading], None
    if settings.eval_path:
        eval_source = open_source(settings.eval_path, settings.split, settings.revision)
        report.eval_fingerprint = eval_source.fingerprint
        eval_reading, eval_rows = _read(eval_source, settings, None, tokenizer)
        readings.append(eval_reading)
    refuse_bad_rows(settings.path, readings, settings.on_bad_row)
    report.format = reading.format
    for one in readings:
        report.num_rows += one.num_rows
        report.bad_rows += one.problems
        report.num_bad_rows += one.num_bad_rows
    return rows, eval_rows


def _read(
    source: Source,
    settings: PromptDataSettings,
    num_rows: int | None,
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[Reading, list[_Row]]:
    rows: list[_Row] = []

    def take(row: RawRow, format_name: str) -> tuple[Sequence[Problem], frozenset[str]]:
        asked = understand_prompt(row, format_name)
        texts = [message["content"] for message in asked.messages] or [asked.text]
        problems = [*asked.problems, *spelled_problems(row.where, texts, tokenizer)]
        if not problems:
            rows.append(_Row(asked, row.where))
        return problems, asked.unknown_roles

    if settings.format == "preference":
        return read_source(source, "auto", num_rows, name_preference_format, take), rows
    return read_source(source, settings.format, num_rows, detect_prompt_format, take), rows


def _split(
    prompts: Sequence[Prompt],
    eval_prompts: Sequence[Prompt] | None,
    settings: PromptDataSettings,
    report: PromptReport,
) -> PromptSplits:
    different = _once(prompts, report)
    if eval_prompts is None:
        keys = hold_out(list(different), settings.eval_fraction, settings.split_seed)
        held_out = [prompt for key, prompt in different.items() if key in keys]
        train = [prompt for key, prompt in different.items() if key not in keys]
        return PromptSplits(train, held_out, report)
    eval_different = _once(eval_prompts, report)
    held_out = list(eval_different.values())
    eval_ids = {prompt.input_ids for prompt in held_out}
    train = [
        prompt
        for key, prompt in different.items()
        if key not in eval_different and prompt.input_ids not in eval_ids
    ]
    report.num_overlaps = len(different) - len(train)
    if not train:
        raise DataError(
            f"{settings.path}: no prompt is left to train on: all stand in {settings.eval_path} "
            "too (use another data.eval_path)"
        )
    return PromptSplits(train, held_out, report)


def _once(prompts: Sequence[Prompt], report: PromptReport) -> dict[bytes, Prompt]:
    """Keep the first of equal prompts, and of those that cutting made equal."""
    different: dict[bytes, Prompt] = {}
    seen: set[tuple[int, ...]] = set()
    for prompt in prompts:
        if prompt.input_ids not in seen:
            different.setdefault(_key(prompt.messages, prompt.text), prompt)
        seen.add(prompt.input_ids)
    report.num_duplicates += len(prompts) - len(different)
    return different


def _key(messages: Sequence[Message], text: str) -> bytes:
    """Hash the prompt; case, runs of white space and Unicode composition don't count."""
    digest = hashlib.sha256()
    feed_messages(digest, messages or [Message(role="text", content=text)])
    return digest.digest()


def _encode(
    rows: Sequence[_Row],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    report: PromptReport,
) -> list[Prompt]:
    """Encode prompts as chat does; plain texts get the tokenizer's leading special tokens."""
    leading = leading_ids(tokenizer)
    segments = _render(rows, tokenizer, template)
    prompts = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        for row, ids in zip(rows[part], encode_segments(tokenizer, segments[part]), strict=True):
            input_ids = tuple(chain.from_iterable(ids))
            if not row.asked.messages:
                input_ids = leading + input_ids
            if len(input_ids) > report.limit:
                report.long_rows.append(row.where)
                input_ids = _cut(input_ids, leading, report.limit) if report.was_cut else ()
            if input_ids:
                asked = row.asked
                prompts.append(
                    Prompt(input_ids, asked.messages, asked.text, asked.columns, row.where)
                )
    return prompts


def _cut(ids: tuple[int, ...], leading: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Cut the beginning, but not into the leading special tokens, where they leave room."""
    kept = leading if ids[: len(leading)] == leading and len(leading) < limit else ()
    return kept + ids[len(ids) - (limit - len(kept)) :]


def _render(
    rows: Sequence[_Row], tokenizer: "PreTrainedTokenizerBase", template: Template
) -> list[list[Segment]]:
    rendered: list[list[Segment]] = []
    problems: list[Problem] = []
    for row in rows:
        asked = row.asked
        if not asked.messages:
            rendered.append([Segment(asked.text, is_completion=False)])
            continue
        try:
            rendered.append(render_segments(tokenizer, template, asked.messages))
        except TemplateError as error:
            problems.append(Problem(str(row.where), "", error.summary))
    if problems:
        raise DataError("these prompts can't be rendered:", problems)
    return rendered
