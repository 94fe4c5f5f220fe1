"""Comparisons to token ids, encoded segment by segment as training and chat do."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from sft_kit.data.control_tokens import spelled_problems
from sft_kit.data.inspection import counted, name_places
from sft_kit.data.preference.rows import Comparison, PreferenceExample
from sft_kit.data.segments import Segment, encode_segments, leading_special_tokens
from sft_kit.data.templates import Template, render_segments
from sft_kit.errors import DataError, Problem, TemplateError
from sft_kit.settings import PreferenceDataSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_ROWS_AT_ONCE = 1000
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """One comparison within its limit.

    Attributes:
        example: None where fewer than two answers are left.
        num_too_long: Answers dropped because they are longer than the limit.
        num_equal: Answers dropped because a better one has the same ids.
        was_cut: The prompt's beginning was cut.
    """

    example: PreferenceExample | None
    num_too_long: int = 0
    num_equal: int = 0
    was_cut: bool = False


def tokenize_preferences(
    comparisons: Sequence[Comparison],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    settings: PreferenceDataSettings,
) -> list[PreferenceExample]:
    """Render, encode and fit comparisons; each answer ends with the template's stop token.

    Args:
        comparisons: Rows as read.
        tokenizer: Carries the template; its `model_max_length` bounds `settings.max_length`.
        template: From `choose_template`.
        settings: `max_length` in tokens, `on_long_row`.

    Returns:
        One example per comparison that has two different answers left, in order. What was dropped
        is told by `check_preferences`.

    Raises:
        DataError: A row spells one of the tokenizer's special tokens in its text, or the template
            can't render it.
    """
    fitted = _fit_all(comparisons, tokenizer, template, settings)
    return [one.example for one in fitted if one.example is not None]


def check_preferences(
    examples: Sequence[PreferenceExample],
    comparisons: Sequence[Comparison],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    settings: PreferenceDataSettings,
    *,
    has_settings: bool = True,
) -> list[str]:
    """Refuse to go on without examples, and say what tokenizing dropped and cut.

    Args:
        examples: What `tokenize_preferences` made of `comparisons`.
        comparisons: Rows as read.
        tokenizer: The same.
        template: The same.
        settings: The same.
        has_settings: The reader can change `settings`, so that advice about them is of use.

    Returns:
        Warnings, each a sentence.

    Raises:
        DataError: No comparison is left.
    """
    limit = _limit(tokenizer, settings)
    whole = {
        id(example.comparison)
        for example in examples
        if len(example.input_ids) == len(example.comparison.answers)
        and max(map(len, example.input_ids)) < limit
    }
    doubtful = [row for row in comparisons if id(row) not in whole]
    fitted = list(_fit_all(doubtful, tokenizer, template, settings))
    warnings = []
    if limit < settings.max_length:
        warnings.append(
            f"data.max_length={settings.max_length} was lowered to {limit}, the context length."
        )
    advice = _advice(tokenizer, settings) if has_settings else ""
    warnings += _losses(doubtful, fitted, len(comparisons), limit, advice)
    if comparisons and not examples:
        raise DataError(" ".join(["no comparison is left.", *warnings]))
    return warnings


def _advice(tokenizer: "PreTrainedTokenizerBase", settings: PreferenceDataSettings) -> str:
    """Say what keeps long answers; raising the limit does not where the context is shorter."""
    ways = []
    if settings.max_length < tokenizer.model_max_length:
        ways.append("raise data.max_length")
    if settings.on_long_row == "drop":
        ways.append("set data.on_long_row=cut-prompt")
    advice = ", or ".join(ways) or "shorten the answers"
    return f" {advice[0].upper()}{advice[1:]}."


def _losses(
    rows: Sequence[Comparison], fitted: Sequence[_Fitted], total: int, limit: int, advice: str
) -> Iterator[str]:
    both = list(zip(rows, fitted, strict=True))
    for name, reason, way in (
        ("num_too_long", f"of more than {limit} tokens with the prompt", advice),
        ("num_equal", "with the token ids of a better one", ""),
    ):
        where = [row.where for row, one in both if getattr(one, name)]
        if not where:
            continue
        num_answers = sum(getattr(one, name) for one in fitted)
        num_lost = sum(one.example is None and bool(getattr(one, name)) for one in fitted)
        yield (
            f"{counted(num_answers, 'answer')} {reason} {name_places(where)} dropped, which left "
            f"{num_lost:,} of {total:,} comparisons without two answers.{way}"
        )
    cut = [row.where for row, one in both if one.was_cut]
    if cut:
        yield (
            f"the prompts of {len(cut):,} of {total:,} comparisons were cut at the beginning to "
            f"fit {limit} tokens {name_places(cut)}."
        )


def to_preference_dataset(examples: Iterable[PreferenceExample]) -> "Dataset":
    """Make the data set a trainer takes.

    Returns:
        Columns `input_ids` (K lists of token ids, the best answer's first), `margin` and, for
        messages only, `where` in which file a row stood.
    """
    from datasets import Dataset

    rows = list(examples)
    return Dataset.from_dict(
        {
            "input_ids": [[list(ids) for ids in row.input_ids] for row in rows],
            "margin": [row.margin for row in rows],
            "where": [str(row.comparison.where) for row in rows],
        }
    )


def _limit(tokenizer: "PreTrainedTokenizerBase", settings: PreferenceDataSettings) -> int:
    return min(settings.max_length, tokenizer.model_max_length)


def _fit_all(
    comparisons: Iterable[Comparison],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    settings: PreferenceDataSettings,
) -> Iterator[_Fitted]:
    """Encode and fit in batches, so that memory does not grow with the file."""
    leading = leading_ids(tokenizer)
    limit = _limit(tokenizer, settings)
    remaining = iter(comparisons)
    problems: list[Problem] = []
    while rows := list(islice(remaining, _ROWS_AT_ONCE)):
        rendered = _render(rows, tokenizer, template, problems)
        if problems:
            continue  # Only to find the other rows that can't be rendered.
        encoded = iter(_joined(encode_segments(tokenizer, rendered)))
        for row in rows:
            prompt = next(encoded)
            answers = list(islice(encoded, len(row.answers)))
            if not row.prompt:
                answers = [(*leading, *ids) for ids in answers]
            answers = [_stopped(ids, template) for ids in answers]
            yield _fit(row, prompt, answers, leading, limit, settings.on_long_row)
    if problems:
        raise DataError("these rows can't be rendered as training text:", problems)


def leading_ids(tokenizer: "PreTrainedTokenizerBase") -> Ids:
    """Ids of the tokens this tokenizer puts in front of every text, such as Llama's `<s>`."""
    prefix = Segment(leading_special_tokens(tokenizer), is_completion=False)
    return _joined(encode_segments(tokenizer, [[prefix]]))[0]


def comparison_problems(
    comparison: Comparison, tokenizer: "PreTrainedTokenizerBase", template: Template
) -> list[Problem]:
    """Find the special tokens that a comparison spells; the end of a plain text may be one.

    Args:
        comparison: A row as read.
        tokenizer: Says which tokens are special.
        template: Its stop token may end a plain text.
    """
    return spelled_problems(comparison.where, _texts_of(comparison, template), tokenizer)


def _texts_of(row: Comparison, template: Template) -> list[str]:
    texts = [message["content"] for message in chain(row.prompt, *row.answers)]
    return texts if row.prompt else [text.removesuffix(template.stop_token) for text in texts]


def _joined(rows: Sequence[Sequence[Sequence[int]]]) -> list[Ids]:
    return [tuple(chain.from_iterable(row)) for row in rows]


def _render(
    rows: Sequence[Comparison],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    problems: list[Problem],
) -> list[list[Segment]]:
    """Render of each row the prompt and then prompt and answer, K times; problems are noted."""
    rendered: list[list[Segment]] = []
    for row in rows:
        texts = _texts_of(row, template)
        problems += spelled_problems(row.where, texts, tokenizer)
        if not row.prompt:
            rendered += [[Segment("", is_completion=False)]]
            rendered += [[Segment(text, is_completion=True)] for text in texts]
            continue
        try:
            rendered.append(render_segments(tokenizer, template, row.prompt))
            rendered += [
                render_segments(tokenizer, template, [*row.prompt, *answer])
                for answer in row.answers
            ]
        except TemplateError as error:
            problems.append(Problem(str(row.where), "", error.summary))
    return rendered


def _stopped(ids: Ids, template: Template) -> Ids:
    stops = ids and ids[-1] == template.stop_token_id
    return ids if stops else (*ids, template.stop_token_id)


def _fit(
    row: Comparison, prompt: Ids, answers: Sequence[Ids], leading: Ids, limit: int, on_long: str
) -> _Fitted:
    """Keep within the limit the answers that differ; all keep the same prompt."""
    num_prompt = len(prompt)
    if not row.prompt or any(ids[:num_prompt] != prompt for ids in answers):
        num_prompt = _num_common(answers)
    num_leading = len(leading) if answers[0][: len(leading)] == leading else 0
    # A prompt keeps at least one token of its own.
    room = max(num_prompt - num_leading - 1, 0) if on_long == "cut-prompt" else 0
    kept = [ids for ids in answers if len(ids) - limit <= room]
    num_cut = max((len(ids) - limit for ids in kept), default=0)
    if num_cut > 0:
        kept = [ids[:num_leading] + ids[num_leading + num_cut :] for ids in kept]
        num_prompt -= num_cut
    different = tuple(dict.fromkeys(kept))
    losses = (len(answers) - len(kept), len(kept) - len(different))
    if len(different) < 2:
        return _Fitted(None, *losses)
    example = PreferenceExample(different, num_prompt, row.margin, row)
    return _Fitted(example, *losses, was_cut=num_cut > 0)


def _num_common(answers: Sequence[Ids]) -> int:
    """Count the leading ids that all have in common, their last ones excluded."""
    count = 0
    for ids in zip(*(answer[:-1] for answer in answers), strict=False):
        if len(set(ids)) > 1:
            break
        count += 1
    return count
