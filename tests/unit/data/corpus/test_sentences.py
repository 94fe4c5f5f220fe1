"""Where sentences begin in English and Chinese."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.data.corpus.sentences import sentence_starts, starts_between


@pytest.mark.parametrize(
    "sentences",
    [
        ["He left. ", "She stayed! ", "Why? ", "Nobody knows."],
        ["Pi is 3.14 or so. ", "Version 2.0 is out."],
        ["Mr. Smith met Dr. Jones. ", "They spoke."],
        ["J. K. Rowling wrote it. ", "I read it."],
        ['"Go away!" ', "He did."],
        ["(See below.) ", "Next."],
        ["Pens, ink, etc. are sold here. ", "Come in."],
        ["今天天气真好。", "我们出去玩吧！", "好吗？", "好……", "走"],
        ["他说：“走吧。”", "大家都走了。"],
        ["一行\n", "两行\n\n", "三行"],
        ["Well... ", "Perhaps."],
        ["A line of verse,\n", "another line"],
        ["End of it.\n", "small letters begin a new line"],
        ["no end at all"],
        ["Ends here. "],
    ],
)
def test_a_text_falls_apart_into_its_sentences(sentences):
    text = "".join(sentences)
    starts = sentence_starts(text)
    found = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert found == sentences


@given(st.text(alphabet='ab .!?。！”"\n…A', max_size=60))
def test_starts_ascend_from_the_beginning_and_never_stand_on_a_blank_behind_an_end(text):
    starts = sentence_starts(text)
    assert starts[:1] == ((0,) if text else ())
    assert list(starts) == sorted(set(starts))
    assert all(0 <= start < len(text) for start in starts)
    assert not any(text[start].isspace() for start in starts[1:])


@given(st.text(alphabet="ab. \n", min_size=2, max_size=40), st.data())
def test_the_starts_of_a_part_are_those_inside_and_its_beginning(text, data):
    first = data.draw(st.integers(0, len(text) - 1))
    last = data.draw(st.integers(first + 1, len(text)))
    starts = sentence_starts(text)
    expected = {0, *(start - first for start in starts if first < start < last)}
    assert starts_between(starts, first, last) == tuple(sorted(expected))
