"""The terminal view: marks stand exactly where tokens are learnt, and data can't disturb it."""

import io
import re

import pytest
from rich.console import Console

from sft_kit.data.inspection import inspect_labels
from sft_kit.data.label_view import (
    example_caption,
    label_figures,
    reading_figures,
    render_tokens,
    show_report,
)
from sft_kit.data.rows import IGNORED, Example, ReadReport, Where
from sft_kit.data.token_text import MarkedToken, mark_tokens
from sft_kit.errors import Problem

TURNS = [
    ("Human: 今天 龘\nAssistant:", False),
    (" Two plus two.", True),
    ("\nHuman: thank you", False),
]


@pytest.fixture
def example(tokenizer):
    ids, labels = [], []
    for text, is_learnt in TURNS:
        piece = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * is_learnt
        ids += piece
        labels += piece if is_learnt else [IGNORED] * len(piece)
    return Example(ids, labels, False, Where("chat.jsonl", 12))


def show(examples, tokenizer, *, reading=None, evaluation=None, notes=(), has_colour=False):
    stream = io.StringIO()
    console = Console(
        file=stream, width=200, force_terminal=has_colour, legacy_windows=False,
        color_system="truecolor" if has_colour else None, no_color=not has_colour,
    )  # fmt: skip
    stop = tokenizer.eos_token_id
    show_report(
        console,
        reading or ReadReport("messages", 5),
        inspect_labels(examples, (stop,)),
        None if evaluation is None else inspect_labels(evaluation, (stop,)),
        [mark_tokens(example, tokenizer) for example in examples],
        notes,
        sources=examples,
    )
    return stream.getvalue()


def test_a_caption_knows_the_token_that_ends_an_earlier_answer(example, tokenizer):
    tokens = mark_tokens(example, tokenizer)
    other = max(tokenizer.all_special_ids) + 1
    assert example_caption(tokens, (other,)).verdict == "bad"
    assert example_caption(tokens, (other, tokenizer.eos_token_id)).verdict == "good"


def row_of(output, caption):
    (line,) = [line for line in output.splitlines() if line.startswith(caption)]
    return line[len(caption) :].strip()


def learnt_by_colour(text):
    """Read a rich text back: the characters whose style is green."""
    covered = [False] * len(text.plain)
    for span in text.spans:
        if "green" in str(span.style):
            covered[span.start : span.end] = [True] * (span.end - span.start)
    return "".join(letter for letter, is_green in zip(text.plain, covered, strict=True) if is_green)


# --- marks ---------------------------------------------------------------------------------------


def test_brackets_enclose_exactly_the_supervised_text_without_colour(example, tokenizer):
    text = render_tokens(mark_tokens(example, tokenizer), has_colour=False).plain
    assert re.findall("⟦(.*?)⟧", text, flags=re.DOTALL) == [" Two plus two.<|endoftext|>"]
    unmarked = text.replace("⟦", "").replace("⟧", "").replace("↵\n", "\n")
    assert unmarked == tokenizer.decode(example.input_ids)


def test_green_covers_exactly_the_supervised_text_with_colour(example, tokenizer):
    text = render_tokens(mark_tokens(example, tokenizer), has_colour=True)
    assert "⟦" not in text.plain
    assert learnt_by_colour(text) == " Two plus two.<|endoftext|>"


def test_underlines_alternate_from_token_to_token():
    tokens = [MarkedToken(text, 1, True) for text in ["水", "", "", "a", "b", "", "c"]]
    text = render_tokens(tokens, has_colour=True)
    assert ["underline" in str(span.style) for span in text.spans] == [False, True, False, True]


def test_a_long_span_is_shortened_and_says_by_how_much():
    tokens = [MarkedToken(f"<{index}>", index, True) for index in range(1000)]
    text = render_tokens(tokens, has_colour=False).plain
    shown = [int(number) for number in re.findall(r"<(\d+)>", text)]
    (left_out,) = re.findall(r"\[\.\.\. (\d+) tokens \.\.\.\]", text)
    assert len(shown) + int(left_out) == 1000
    assert (shown[0], shown[-1]) == (0, 999)


# --- the report ----------------------------------------------------------------------------------


def test_report_shows_the_figures_of_both_splits_side_by_side(example, tokenizer):
    cut = Example(example.input_ids[:9], [IGNORED] * 9, True, Where("chat.jsonl", 13))
    cut_late = Example(example.input_ids, example.labels, True, Where("chat.jsonl", 14))
    output = show([example, cut_late, cut], tokenizer, evaluation=[cut])
    num_learnt = len(tokenizer(" Two plus two.")["input_ids"]) + 1
    length = len(example.input_ids)
    share = 2 * num_learnt / (2 * length + 9)
    assert row_of(output, "examples  ").split() == ["3", "1"]
    assert row_of(output, "tokens  ").split() == [str(2 * length + 9), "9"]
    assert row_of(output, "supervised tokens").split()[:2] == [
        f"{2 * num_learnt}",
        f"({share:.1%})",
    ]
    assert re.split(" {2,}", row_of(output, "cut at")[len(" max_length") - 1 :].strip()) == [
        "2 of 3 (66.7%) !",
        "1 of 1 (100.0%) !",
    ]
    assert row_of(output, "no supervised token left").startswith("1 of 3 (33.3%) !")
    assert "2 of 3 (66.7%) !" in row_of(output, "end in a supervised stop token")
    assert "0 of 1 (0.0%) !" in row_of(output, "end in a supervised stop token")


def test_report_without_evaluation_split_has_one_column(example, tokenizer):
    output = show([example], tokenizer)
    assert "evaluation" not in output
    assert row_of(output, "end in a supervised stop token") == "1 of 1 (100.0%) ✓"


def test_report_prints_a_histogram_whose_counts_add_up(example, tokenizer):
    many = [
        Example(example.input_ids[:size], example.labels[:size], True, example.where)
        for size in range(2, len(example.input_ids))
    ]
    output = show([example, *many], tokenizer)
    bars = re.findall(r"^ *\d+(?: - \d+)? +█+ +(\d+)\s*$", output, flags=re.MULTILINE)
    assert len(bars) > 1
    assert sum(map(int, bars)) == 1 + len(many)


def test_caption_names_place_size_cut_and_stop(example, tokenizer):
    stop = tokenizer.eos_token_id
    tokens = mark_tokens(example, tokenizer)
    caption = example_caption(tokens, (stop,), example)
    num_learnt = sum(label != IGNORED for label in example.labels)
    assert caption.english == (
        f"chat.jsonl:12 · {num_learnt} / {len(tokens)} tokens supervised · "
        "ends in a supervised stop token"
    )
    cut = Example(example.input_ids[:9], [IGNORED] * 9, True, example.where)
    caption = example_caption(mark_tokens(cut, tokenizer), (stop,), cut)
    assert caption.english.endswith("cut at max_length · does not end in a supervised stop token")
    assert caption.verdict == "bad"


def test_findings_of_reading_are_shown(example, tokenizer):
    reading = ReadReport(
        "sharegpt", 1234, num_bad_rows=12, unknown_roles={"robot": 1500}, num_duplicates=7,
        num_overlaps=2, overlaps=[Where("held.json", 4), Where("held.json", 9)],
        fingerprint="0123456789abcdef" * 4,
        bad_rows=[Problem(f"a.json:{line}", "content", "null") for line in range(1, 14)],
    )  # fmt: skip
    output = show([example], tokenizer, reading=reading)
    assert row_of(output, "format") == "sharegpt"
    assert row_of(output, "rows read") == "1,234"
    assert row_of(output, "bad rows skipped") == "12 !"
    assert row_of(output, "duplicate rows") == "7 !"
    assert row_of(output, "held-out rows also in training") == "2 (lines 4, 9) !"
    assert row_of(output, "unknown roles") == "'robot' (1,500) !"
    assert row_of(output, "fingerprint (sha256)") == "0123456789abcdef"
    assert output.count("content: null") == 10
    assert "and 3 more problems" in output


def test_clean_reading_has_no_exclamation_mark():
    assert not [
        figure for figure in reading_figures(ReadReport("text", 3)) if figure.verdict == "bad"
    ]


def test_report_of_no_examples_is_all_zeros(tokenizer):
    output = show([], tokenizer, notes=["Nothing."])
    assert row_of(output, "examples  ") == "0"
    assert row_of(output, "length: min / median / p90 / max") == "0 / 0 / 0 / 0"
    assert output.endswith("! Nothing.\n")


def test_notes_are_printed_last(example, tokenizer):
    output = show([example], tokenizer, notes=["2 of 3 rows were cut.", "One more."])
    assert output.splitlines()[-2:] == ["! 2 of 3 rows were cut.", "! One more."]


def test_both_languages_have_a_caption_for_every_figure(example, tokenizer):
    report = inspect_labels([example], (tokenizer.eos_token_id,))
    for figure in [*label_figures(report), *reading_figures(ReadReport("text", 3))]:
        assert figure.english.isascii()
        assert re.search("[\u4e00-\u9fff]", figure.chinese)


# --- data can't disturb the terminal --------------------------------------------------------------


def test_markup_and_escape_sequences_of_the_data_are_shown_not_obeyed(tokenizer):
    ids = tokenizer("[red]fox[/red] [/] \x1b[2J\x07")["input_ids"]
    hostile = Example(ids, [IGNORED, *ids[1:]], False, Where("a[b].json\x1b", 1))
    reading = ReadReport(
        "messages", 2, unknown_roles={"[bold]\x1b": 1}, num_bad_rows=1,
        bad_rows=[Problem("x.json:1", "role", "[/nothing]\x1b")],
    )  # fmt: skip
    output = show([hostile], tokenizer, reading=reading, notes=["[/oops] \x1b"])
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "red]fox[/red] [/] ‹U+001B›[2J‹U+0007›⟧" in output
    for literal in ("a[b].json‹U+001B›:1", "'[bold]‹U+001B›' (1)", "[/nothing]‹U+001B›", "[/oops]"):
        assert literal in output


def test_colour_is_used_only_where_the_console_has_it(example, tokenizer):
    assert "\x1b[" not in show([example], tokenizer)
    assert "⟦" not in show([example], tokenizer, has_colour=True)
    assert "\x1b[1;32m" in show([example], tokenizer, has_colour=True)
