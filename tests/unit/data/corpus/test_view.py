"""What a user sees of corrupted rows: marks, figures and the page."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from transformers import BertTokenizer, PreTrainedTokenizerFast

from sft_kit.data.corpus.inspection import (
    RowFigures,
    chosen_rows,
    doubtful_rows,
    measure_rows,
)
from sft_kit.data.corpus.marking import (
    describe_corrupted,
    mark_corrupted,
    written_tokens,
)
from sft_kit.data.corpus.page import write_corpus_view
from sft_kit.data.corpus.report import Text, TextSplits
from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corpus.view import (
    CorpusView,
    ShownExample,
    render_example,
    show_corpus_view,
)
from sft_kit.data.corruption.in_words import describe_objective
from sft_kit.data.rows import ReadReport, Where
from sft_kit.settings import TextDataSettings

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<extra_id_0>", "<extra_id_1>"]
CHARACTERS = list("今天气真好，我们一起出去玩吧令夭门赴把")
WORDS = ["the", "fox", "##es", "run", "fast"]
TOKENS = [*SPECIAL, *CHARACTERS, *WORDS]
ID = {token: number for number, token in enumerate(TOKENS)}
SENTENCE = list("今天天气真好，我们一起出去玩吧")


@pytest.fixture(scope="module")
def bert() -> BertTokenizer:
    return BertTokenizer(vocab=ID, additional_special_tokens=SPECIAL[5:])


@pytest.fixture
def vocabulary() -> Vocabulary:
    ordinary = np.arange(len(SPECIAL), len(TOKENS))
    return Vocabulary(len(TOKENS), 0, 4, 2, 3, (5, 6), ordinary)


def ids(*tokens: str) -> np.ndarray:
    names = {"M": "[MASK]", "C": "[CLS]", "S": "[SEP]", "0": "<extra_id_0>", "1": "<extra_id_1>"}
    return np.array([-100 if token == "-" else ID[names.get(token, token)] for token in tokens])


def shown(corrupted: Corrupted, tokenizer, *, has_colour: bool = False) -> str:
    example = ShownExample("", mark_corrupted(corrupted, tokenizer),
                           written_tokens(corrupted, tokenizer))  # fmt: skip
    return render_example(example, has_colour=has_colour).plain


def as_row(*tokens: str) -> Row:
    numbers = ids(*tokens)
    places = np.arange(len(numbers))
    return Row(numbers, numbers < len(SPECIAL), places, places * 0, places * 0 + 1)


# --- marks ---------------------------------------------------------------------------------------


def test_hidden_changed_and_kept_tokens_are_told_apart(bert):
    corrupted: Corrupted = {
        "input_ids": ids("C", "今", "M", "夭", "气", "真", "S"),
        "labels": ids("-", "-", "天", "天", "气", "-", "-"),
    }
    marked = mark_corrupted(corrupted, bert)
    assert [token.fate for token in marked] == [
        "special", "kept", "hidden", "changed", "kept", "kept", "special",
    ]  # fmt: skip
    assert [token.label for token in marked] == [None, None, "天", "天", None, None, None]
    assert [token.is_learnt for token in marked] == [False] * 4 + [True, False, False]
    assert shown(corrupted, bert) == "[CLS]今⟦[MASK]->天⟧⟦夭->天⟧⟦气⟧真[SEP]"
    assert shown(corrupted, bert, has_colour=True) == "[CLS]今[MASK]->天夭->天气真[SEP]"


def test_the_spelling_example_of_the_lecture_reads_as_on_its_slide(bert):
    corrupted: Corrupted = {
        "input_ids": ids("C", *"令天夭气真M，我门一赴MM玩把", "S"),
        "labels": ids("-", *"今-天--好--们-起出去-吧", "-"),
    }
    assert shown(corrupted, bert) == (
        "[CLS]⟦令->今⟧天⟦夭->天⟧气真⟦[MASK]->好⟧，我⟦门->们⟧一⟦赴->起⟧⟦[MASK]->出⟧⟦[MASK]->去⟧玩"
        "⟦把->吧⟧[SEP]"
    )


def test_a_prefix_is_filled_in_place_and_the_rest_is_learnt_where_it_stands(bert):
    corrupted: Corrupted = {
        "input_ids": ids("C", *"今天M气真M", "S", *"我们一起出去玩吧", "S"),
        "labels": ids("-", *"--天--好", *"我们一起出去玩吧", "S", "-"),
        "prefix_length": 8,
    }
    assert shown(corrupted, bert) == (
        "[CLS]今天⟦[MASK]->天⟧气真⟦[MASK]->好⟧[SEP]┃⟦我们一起出去玩吧[SEP]⟧"
    )
    assert describe_corrupted(corrupted) == ["17 tokens", "the first 8 see each other both ways"]


def test_left_to_right_every_token_but_the_first_is_learnt(bert):
    tokens = ["C", *SENTENCE, "S"]
    shifted: Corrupted = {
        "input_ids": ids(*tokens), "labels": ids(*tokens[1:], "-"), "prefix_length": 0,
    }  # fmt: skip
    in_place: Corrupted = {"input_ids": ids(*tokens), "labels": ids("-", *tokens[1:])}
    expected = f"[CLS]⟦{''.join(SENTENCE)}[SEP]⟧"
    assert shown(shifted, bert) == shown(in_place, bert) == expected
    assert describe_corrupted(shifted)[1] == "left to right"


def test_blanks_stand_behind_the_text_and_each_says_where_it_ends(bert):
    corrupted: Corrupted = {
        "input_ids": ids("C", "M", *"气真", "M", "S", "C", "好", "C", *"今天"),
        "labels": ids(*"------", "好", "S", "今", "天", "S"),
        "prefix_length": 6,
        "token_type_ids": np.array([0] * 6 + [1, 2, 1, 2, 3]),
    }
    text = shown(corrupted, bert)
    assert text.replace(" ", "") == (
        "[CLS][MASK]气真[MASK][SEP]┃[CLS]⟦好->[SEP]⟧[CLS]⟦今⟧⟦天->[SEP]⟧"
    )


def test_documents_that_do_not_see_each_other_have_a_bound_between_them(bert):
    corrupted: Corrupted = {
        "input_ids": ids(*"今天气真"),
        "labels": ids(*"-天-真"),
        "documents": np.array([1, 1, 2, 2]),
    }
    assert shown(corrupted, bert) == "今⟦天⟧┃气⟦真⟧"
    assert describe_corrupted(corrupted) == ["4 tokens", "2 documents apart"]


def test_a_decoder_has_a_line_of_its_own(bert):
    corrupted: Corrupted = {
        "input_ids": ids(*"今0真1吧", "S"),
        "labels": ids(*"0天气1好，", "S"),
    }
    written = written_tokens(corrupted, bert)
    assert written is not None
    assert [token.id for token in written] == corrupted["labels"].tolist()
    first, second = shown(corrupted, bert).split("\n")
    assert first.replace(" ", "") == "read今<extra_id_0>真<extra_id_1>吧[SEP]"
    assert second.replace(" ", "") == "written⟦<extra_id_0>天气<extra_id_1>好，[SEP]⟧"
    fates = [token.fate for token in mark_corrupted(corrupted, bert)]
    assert fates == ["kept", "hidden", "kept", "hidden", "kept", "special"]


@pytest.mark.parametrize(
    ("label", "told"),
    [(0, "the second part follows the first"), (1, "the second part is from elsewhere"),
     (-100, "one part only")],
)  # fmt: skip
def test_the_caption_says_whether_the_second_part_follows(label: int, told: str):
    corrupted: Corrupted = {
        "input_ids": ids(*"今天"), "labels": ids(*"-天"), "next_sentence_label": label,
    }  # fmt: skip
    assert describe_corrupted(corrupted) == ["2 tokens", told]


def test_blanks_between_words_and_joined_pieces_are_as_in_the_text(bert):
    corrupted: Corrupted = {
        "input_ids": ids("C", "the", "M", "##es", "run", "M", "S"),
        "labels": ids("-", "-", "fox", "-", "-", "fast", "-"),
    }
    assert shown(corrupted, bert) == "[CLS] the ⟦[MASK]->fox⟧es run ⟦[MASK]->fast⟧[SEP]"


def test_characters_of_several_byte_level_tokens_stay_whole(
    tokenizer: PreTrainedTokenizerFast,
):
    tokens = np.array(tokenizer("How are you? 猫 is fine.")["input_ids"])
    labels = np.where(np.arange(len(tokens)) > 0, tokens, -100)
    text = shown({"input_ids": tokens, "labels": labels}, tokenizer)
    assert re.sub("[⟦⟧]", "", text) == "How are you? 猫 is fine."


def test_data_can_not_move_the_cursor_or_close_the_page(bert, tmp_path: Path):
    nasty = BertTokenizer(vocab={**ID, "\x1b[2j": len(ID), "<b>": len(ID) + 1})
    corrupted: Corrupted = {
        "input_ids": np.array([2, len(ID), len(ID) + 1, 3]),
        "labels": np.array([-100, -100, len(ID), -100]),
    }
    text = shown(corrupted, nasty)
    assert "\x1b" not in text
    assert "‹U+001B›" in text
    figures = RowFigures(1, np.zeros(4, dtype=np.int64), lengths=[4])
    example = ShownExample("", mark_corrupted(corrupted, nasty), None)
    write_corpus_view(tmp_path / "page.html", view_of([figures], [example]))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "\x1b" not in page


# --- figures -------------------------------------------------------------------------------------


def test_figures_of_masked_rows_are_those_counted_by_hand(vocabulary: Vocabulary):
    row = as_row("C", *"今天天气真好", "[UNK]", "S")
    corrupted: Corrupted = {
        "input_ids": ids("C", "今", "M", "M", "夭", "真", "好", "[UNK]", "S"),
        "labels": ids("-", "-", "天", "天", "气", "-", "好", "-", "-"),
    }
    figures = measure_rows([(row, corrupted)] * 3, 30, vocabulary, 1, words=True)
    assert (figures.num_measured, figures.num_rows) == (3, 30)
    assert (figures.num_tokens, figures.num_text_tokens) == (30 * 9, 30 * 7)
    assert (figures.num_ordinary, figures.num_unknown, figures.num_words) == (18, 3, 18)
    assert figures.unknown_fraction == 3 / 21
    assert (figures.num_read, figures.num_learnt, figures.num_hidden) == (27, 12, 12)
    assert (figures.num_masked, figures.num_changed, figures.num_left) == (6, 3, 3)
    assert figures.span_lengths == [3, 1] * 3
    assert figures.commonest_labels(2) == [(ID["天"], 0.5), (ID["气"], 0.25)]
    assert figures.share_of(ID["好"]) == 0.25


def test_spans_of_a_decoder_are_the_tokens_behind_its_sentinels(vocabulary: Vocabulary):
    corrupted: Corrupted = {
        "input_ids": ids(*"今0真1吧", "S"),
        "labels": ids(*"0天气1好", "S"),
    }
    row = as_row(*"今天气真好吧", "S")
    figures = measure_rows([(row, corrupted)], 1, vocabulary, 1)
    assert (figures.num_read, figures.num_learnt, figures.num_hidden) == (6, 6, 3)
    assert figures.span_lengths == [2, 1]


def test_blanks_are_written_and_not_read(vocabulary: Vocabulary):
    corrupted: Corrupted = {
        "input_ids": ids("C", "M", *"气真", "M", "S", "C", "好", "C", *"今天"),
        "labels": ids(*"------", "好", "S", "今", "天", "S"),
        "prefix_length": 6,
        "token_type_ids": np.array([0] * 6 + [1, 2, 1, 2, 3]),
    }
    row = as_row("C", *"今天气真好", "S")
    figures = measure_rows([(row, corrupted)], 1, vocabulary, 1)
    assert (figures.num_read, figures.num_learnt, figures.num_hidden) == (6, 5, 3)
    assert figures.span_lengths == [1, 2]


def test_left_to_right_nothing_is_hidden(vocabulary: Vocabulary):
    tokens = ids(*"今天气真")
    row = as_row(*"今天气真")
    in_place: Corrupted = {"input_ids": tokens, "labels": ids(*"-天气真")}
    shifted: Corrupted = {"input_ids": tokens, "labels": ids(*"天气真-"), "prefix_length": 0}
    for corrupted, flag in ((in_place, True), (shifted, False)):
        figures = measure_rows([(row, corrupted)], 1, vocabulary, 1, left_to_right=flag)
        assert (figures.num_read, figures.num_learnt, figures.num_hidden) == (4, 3, 0)


def test_pairs_are_counted_by_their_answer(vocabulary: Vocabulary):
    rows = []
    for label in (0, 0, 1, -100):
        corrupted: Corrupted = {
            "input_ids": ids(*"今天"), "labels": ids(*"-天"), "next_sentence_label": label,
        }  # fmt: skip
        rows.append((as_row(*"今天"), corrupted))
    figures = measure_rows(rows, 4, vocabulary, 1)
    assert (figures.num_following, figures.num_elsewhere, figures.num_unasked) == (2, 1, 1)


def test_measured_rows_are_spread_evenly():
    assert chosen_rows(3, 10) == [0, 1, 2]
    chosen = chosen_rows(1_000_003, 1_000)
    assert len(set(chosen)) == 1_000
    assert set(np.diff(chosen)) <= {1_000, 1_001}
    assert chosen_rows(0) == []


def test_what_was_probably_not_meant_is_told():
    settings = TextDataSettings("x", max_length=8)
    counts = np.zeros(4, dtype=np.int64)
    good = RowFigures(9, counts, lengths=[8] * 9, num_ordinary=100, num_unknown=1, num_words=60)
    assert doubtful_rows(good, settings, held_out=True) == []
    (alone,) = doubtful_rows(good, settings, held_out=False)
    assert "nothing is held out" in alone
    (spelled,) = doubtful_rows(replace(good, num_spelled=2), settings, held_out=True)
    assert spelled.startswith("2 texts spell a special token")
    odd = RowFigures(
        1, counts, lengths=[5], num_ordinary=97, num_unknown=3, num_words=97, num_unasked=1,
    )  # fmt: skip
    unknown, short, pairs, words = doubtful_rows(odd, settings, held_out=True)
    assert unknown.startswith("3.0% of the tokens are unknown")
    assert "shorter than one window of data.max_length=8: 5 tokens" in short
    assert pairs.startswith("1 of 1 examples have one part only")
    assert words.startswith("every word is one token")


@pytest.mark.parametrize("name", ["clm", "mlm", "wwm", "spell", "bidirectional", "causal",
                                  "prefix", "infill", "spans", "denoise"])  # fmt: skip
def test_every_objective_is_told_in_words_and_with_its_paper(name: str):
    assert re.search(r"^[\w-]+.* .*\(\w+ et al\. 20\d\d", describe_objective(name))
    assert describe_objective(name, next_sentence=True).endswith("(Devlin et al. 2018)")


# --- terminal and page ---------------------------------------------------------------------------


def view_of(figures: list[RowFigures], examples: list[ShownExample]) -> CorpusView:
    texts = [Text("今天天气", Where("a.txt", 1))]
    splits = TextSplits(texts, texts, ReadReport("text", num_rows=2, fingerprint="ab" * 32))
    return CorpusView("what is learnt", splits, figures, [("天", 0.5)], examples, ["odd!"])


def test_terminal_and_page_show_the_same_figures(bert, vocabulary: Vocabulary, tmp_path: Path):
    corrupted: Corrupted = {
        "input_ids": ids("C", "今", "M", "夭", "气", "S"),
        "labels": ids("-", "-", "天", "天", "气", "-"),
        "next_sentence_label": 1,
    }
    row = as_row("C", *"今天天气", "S")
    figures = [measure_rows([(row, corrupted)] * count, 4, vocabulary, 1) for count in (4, 2)]
    caption = " · ".join(describe_corrupted(corrupted))
    example = ShownExample(caption, mark_corrupted(corrupted, bert), None)
    view = view_of(figures, [example])
    console = Console(file=io.StringIO(), width=200, no_color=True)
    show_corpus_view(console, view)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    expected = {
        "examples": ["4", "4"],
        "of those measured": ["4", "2"],
        "tokens per character": ["4.000", "4.000"],
        "hidden or changed, of the ordinary tokens": ["12 (75.0%)", "6 (75.0%)"],
        "in their place: mask / another token / itself": ["33.3% / 33.3% / 33.3%"] * 2,
        "hidden in a row: mean / median / max": ["3.00 / 3 / 3"] * 2,
        "accuracy of always saying the commonest label": ["66.67%", "66.67%"],
        "second part: follows / from elsewhere / none": ["0 / 4 / 0", "0 / 2 / 0"],
    }
    for name, values in expected.items():
        assert f"{name} {' '.join(values)}" in lines
    assert "[CLS]今⟦[MASK]->天⟧⟦夭->天⟧⟦气⟧[SEP]" in lines
    assert "1. 6 tokens · the second part is from elsewhere" in lines
    assert lines[-1] == "! odd!"
    write_corpus_view(tmp_path / "page.html", view)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name, values in expected.items():
        assert name in page
        assert all(f">{value}</td>" in page for value in values)
    assert page.count('class="token hidden"') == page.count('class="token changed"') == 2
    assert "<script" not in page
