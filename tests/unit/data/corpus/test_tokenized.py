"""Texts cut into rows of tokens: full windows, frames, numbers of documents, sentences, words."""

import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.data.corpus import encoding, words
from sft_kit.data.corpus.corrupted import CorruptedRows
from sft_kit.data.corpus.encoding import Marks, Stream, encode, join
from sft_kit.data.corpus.report import Text
from sft_kit.data.corpus.rows import Vocabulary
from sft_kit.data.corpus.tokenized import Frame, tokenize_texts
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corpus.windows import number_words
from sft_kit.data.packing import pack_documents
from sft_kit.data.rows import Conversation, Where
from sft_kit.errors import DataError
from sft_kit.models.new_tokenizer import train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions
from sft_kit.settings import TextDataSettings
from sft_kit.training.row_numbers import name_rows

DATA = Path(__file__).resolve().parents[4] / "data"
START, END = 1, 2
NUMBERED = Vocabulary(
    size=1000, pad=0, mask=3, start=START, end=END, sentinels=(), ordinary=np.arange(10, 1000)
)


def texts_of(*texts):
    return [Text(text, Where("t.txt", line)) for line, text in enumerate(texts, start=1)]


def data_settings(**values):
    return TextDataSettings(path="t.txt", **values)


def all_rows(rows):
    return [rows.row(index, 0) for index in range(len(rows))]


# --- causal: what pack_documents does ------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    sys.path.insert(0, str(DATA))
    try:
        import make_corpus
    finally:
        sys.path.remove(str(DATA))
    return make_corpus.make_documents(60, 3)


@pytest.mark.parametrize("kind", ["tokenizer", "llama_tokenizer"])
@pytest.mark.parametrize("chunk", [400, 1 << 19])
def test_causal_windows_are_those_of_pack_documents(kind, chunk, corpus, request, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", chunk)
    tokenizer = request.getfixturevalue(kind)
    conversations = [Conversation((), Where("t.txt", 1), text=text) for text in corpus]
    expected = pack_documents(conversations, tokenizer, 128)
    vocabulary = vocabulary_of(tokenizer, "causal")
    rows = tokenize_texts(
        texts_of(*corpus), tokenizer, vocabulary, data_settings(), layout="causal"
    )
    assert len(rows) == len(expected) > 30
    assert [row.input_ids.tolist() for row in all_rows(rows)] == [one.input_ids for one in expected]


def test_documents_of_a_causal_window_end_with_their_end_token(tokenizer, corpus):
    vocabulary = vocabulary_of(tokenizer, "causal")
    rows = tokenize_texts(
        texts_of(*corpus), tokenizer, vocabulary, data_settings(), layout="causal"
    )
    for row in all_rows(rows):
        number, expected = 1, []
        for token in row.input_ids:
            expected.append(number)
            number += token == tokenizer.eos_token_id
        assert row.documents.tolist() == expected


def test_a_text_on_its_own_goes_on_in_as_many_rows_as_it_needs(tokenizer):
    texts = ["How are you today? " * 10, "Hi"]
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    rows = tokenize_texts(
        texts_of(*texts),
        tokenizer,
        vocabulary_of(tokenizer, "causal"),
        data_settings(pack=False, max_length=16),
        layout="causal",
    )
    expected = [whole[at : at + 16] for whole in ids for at in range(0, len(whole) - 1, 16)]
    assert [row.input_ids.tolist() for row in all_rows(rows)] == expected


# --- special tokens that a text spells -----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "needs", "layout"),
    [("bert", "masked", "masked"), ("bert", "masked", "pairs"), ("gpt2", "causal", "causal"),
     ("bart", "denoise", "denoise"), ("t5", "spans", "spans")],
)  # fmt: skip
def test_special_tokens_in_a_text_are_plain_text_or_are_counted(family, needs, layout):
    said = "he said {} to us. and then {} again."
    spelled = ["[MASK]", "[SEP]", "<mask>", "</s>", "<unk>", "[UNK]", "<|endoftext|>",
               "<extra_id_0>"]  # fmt: skip
    written = [said.format(token, token) for token in spelled]
    tokenizer = train_tokenizer([*written, *("a b c " * 9).split()] * 3, TokenizerOptions(family))
    vocabulary = vocabulary_of(tokenizer, needs)
    rows = tokenize_texts(
        texts_of(*written),
        tokenizer,
        vocabulary,
        data_settings(pack=False, max_length=200),
        layout=layout,
    )
    # SentencePiece knows these as pieces; what it calls unknown is not special to the objective.
    as_token = {"</s>", "<extra_id_0>"} if family == "t5" else set()
    assert rows.stream.num_spelled == len(as_token)
    texts = [text for text, token in zip(written, spelled, strict=True) if token not in as_token]
    if family != "t5":
        in_stream = rows.stream.ids.tolist()
        special = set(range(vocabulary.size)) - set(vocabulary.ordinary.tolist())
        ends = 0 if layout == "pairs" else len(texts)
        assert sum(token in special for token in in_stream) == ends
        expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        plain = [token for token in in_stream if token not in special]
        assert plain == [token for ids in expected["input_ids"] for token in ids]


def test_an_unknown_token_in_a_text_of_sentencepiece_is_unknown():
    tokenizer = train_tokenizer(["the house <unk> is red"] * 3, TokenizerOptions("t5"))
    vocabulary = vocabulary_of(tokenizer, "spans")
    rows = tokenize_texts(
        texts_of("the <unk> is red"), tokenizer, vocabulary, data_settings(), layout="spans"
    )
    assert rows.stream.ids.tolist().count(tokenizer.unk_token_id) == 1
    assert rows.stream.num_spelled == 0


# --- frames --------------------------------------------------------------------------------------


def stream_of(sizes, after=(END,)):
    """Documents of tokens 10, 11, 12, ... in one count over all of them."""
    ids, starts, token = [], [], 10
    for size in sizes:
        starts.append(len(ids))
        ids += [*range(token, token + size), *after]
        token += size
    return Stream(np.array(ids, np.int32), np.array([*starts, len(ids)]))


def frame(layout, max_length, pack=True):
    before = {"masked": (START,), "spans": (), "causal": ()}[layout]
    after = () if layout == "causal" else (END,)
    return Frame(layout, Marks(after=(END,)), max_length, pack, before, after, NUMBERED)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), max_size=12),
    layout=st.sampled_from(["masked", "spans"]),
    max_length=st.integers(4, 12),
)
def test_packed_rows_hold_every_token_once_and_are_full(sizes, layout, max_length):
    cut = frame(layout, max_length)
    rows = all_rows(cut.rows(stream_of(sizes)))
    document_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    seen = []
    for row in rows:
        ids = row.input_ids.tolist()
        assert row.is_special.tolist() == [token < 10 for token in ids]
        inner = ids[len(cut.before) : -1]
        assert tuple(ids[: len(cut.before)]) == cut.before
        assert ids[-1] == END
        assert END not in (inner[0], inner[-1])
        tokens = [token for token in inner if token != END]
        seen += tokens
        # The end token stands where the document changes, and nowhere else.
        pieces = [list(piece) for is_end, piece in groupby(inner, lambda t: t == END) if not is_end]
        own = [[document_of[token - 10] for token in piece] for piece in pieces]
        assert all(len(set(piece)) == 1 for piece in own)
        assert [piece[0] for piece in own] == sorted({number for piece in own for number in piece})
        numbers = [number for number, piece in enumerate(pieces, 1) for _ in (*piece, END)]
        assert row.documents.tolist() == [1] * len(cut.before) + numbers
        assert row.sentences.tolist() == (row.documents - 1).tolist()
    assert seen == list(range(10, 10 + len(seen)))
    missing = sum(sizes) - len(seen)
    if missing:
        assert all(max_length - 1 <= len(row.input_ids) <= max_length for row in rows)
        assert missing < max_length
    else:
        assert all(max_length - 1 <= len(row.input_ids) <= max_length for row in rows[:-1])
    assert bool(rows) == bool(sizes)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), max_size=6), max_length=st.integers(4, 8))
def test_rows_of_one_text_each_are_its_tokens_cut_to_length(sizes, max_length):
    rows = all_rows(frame("masked", max_length, pack=False).rows(stream_of(sizes)))
    expected, token = [], 10
    for size in sizes:
        whole = list(range(token, token + size))
        token += size
        body = max_length - 2
        expected += [[START, *whole[at : at + body], END] for at in range(0, size, body)]
    assert [row.input_ids.tolist() for row in rows] == expected
    assert all((row.documents == 1).all() for row in rows)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    layout=st.sampled_from(["masked", "spans", "causal"]),
    data=st.data(),
)
def test_the_rest_of_a_stream_goes_on_in_the_next(sizes, layout, data):
    """Cut in two where a text ends, a stream gives the rows that it gives uncut."""
    cut = frame(layout, 6)
    whole = stream_of(sizes)
    place = int(whole.starts[data.draw(st.integers(1, len(sizes)))])
    first = Stream(whole.ids[:place], whole.starts[whole.starts <= place])
    second = Stream(whole.ids[place:], whole.starts[whole.starts >= place] - place)
    rows, rest = cut.rows_and_rest(first)
    more, _ = cut.rows_and_rest(encoding.join([rest, second], cut.marks))
    found = [row.input_ids.tolist() for row in [*all_rows(rows), *all_rows(more)]]
    expected, _ = cut.rows_and_rest(whole)
    assert found == [row.input_ids.tolist() for row in all_rows(expected)]


def test_a_row_holds_the_tokens_of_its_tokenizer(bert_tokenizer):
    vocabulary = vocabulary_of(bert_tokenizer, "masked")
    rows = tokenize_texts(
        texts_of("The house is red.", "今天天气真好"),
        bert_tokenizer,
        vocabulary,
        data_settings(),
        layout="masked",
    )
    (row,) = all_rows(rows)
    pair = bert_tokenizer("[CLS] The house is red. [SEP] 今天天气真好 [SEP]")["input_ids"]
    assert row.input_ids.tolist() == pair
    assert row.is_special.tolist() == [token in (2, 3) for token in pair]


def test_text_that_spells_no_token_makes_no_row(bert_tokenizer):
    vocabulary = vocabulary_of(bert_tokenizer, "masked")
    for texts in ([], texts_of(" \n")):
        rows = tokenize_texts(texts, bert_tokenizer, vocabulary, data_settings(), layout="masked")
        assert len(rows) == 0


def test_rows_longer_than_the_context_are_refused(tokenizer):
    tokenizer.model_max_length = 64
    vocabulary = vocabulary_of(tokenizer, "causal")
    with pytest.raises(DataError, match=r"data\.max_length=128 is longer"):
        tokenize_texts([], tokenizer, vocabulary, data_settings(), layout="causal")


# --- sentences and words -------------------------------------------------------------------------


def test_sentences_are_numbered_through_a_row(bert_tokenizer):
    vocabulary = vocabulary_of(bert_tokenizer, "denoise")
    rows = tokenize_texts(
        texts_of("The house is red. Is it? 今天天气真好。我们走！", "他说"),
        bert_tokenizer,
        vocabulary,
        data_settings(),
        layout="denoise",
    )
    (row,) = all_rows(rows)
    parts = ["the house is red.", "is it?", "今天天气真好。", "我们走！", "他说"]
    sizes = [len(bert_tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts]
    sizes[0] += 1  # the start token
    sizes[3] += 1  # the end tokens
    sizes[4] += 1
    assert row.sentences.tolist() == np.repeat(np.arange(5), sizes).tolist()
    assert row.documents.tolist() == np.repeat([1, 2], [sum(sizes[:4]), sizes[4]]).tolist()


def words_of(text, tokenizer):
    """Token strings, word by word."""
    stream = encode(texts_of(text), tokenizer, Marks(words=True))
    tokens = tokenizer.convert_ids_to_tokens(stream.ids.tolist())
    numbers = np.cumsum(stream.words)
    return [[tokens[at] for at in np.flatnonzero(numbers == word)] for word in set(numbers)]


def test_english_words_are_the_ones_of_the_tokenizer(bert_tokenizer):
    text = "The playing house isn't unlikely, played."
    encoded = bert_tokenizer(text, add_special_tokens=False)
    expected = [
        [encoded.tokens()[index] for index, word in enumerate(encoded.word_ids()) if word == number]
        for number in sorted(set(encoded.word_ids()))
    ]
    assert words_of(text, bert_tokenizer) == expected
    assert ["un", "##like", "##ly"] in expected


@pytest.mark.parametrize(
    "text", ["今天天气真好，我们一起出去玩吧", "the 大家都 house说走了 玩吧玩"]
)
def test_chinese_words_are_the_segments_of_jieba(bert_tokenizer, text):
    segments = [segment for segment in words._segmenter().cut(text) if segment.strip()]
    found = [
        "".join(token.removeprefix("##") for token in w) for w in words_of(text, bert_tokenizer)
    ]
    assert found == segments
    assert any(len(segment) > 1 for segment in segments)


def test_bytes_of_a_character_belong_to_one_word(tokenizer):
    """Byte-level tokens end anywhere in a character, but words don't."""
    text = "请用一句话回答：什么是水？ Water boils at 零 degrees，鳜鱼肥。"
    spelled = [tokenizer.convert_tokens_to_string(word) for word in words_of(text, tokenizer)]
    assert "".join(spelled) == text
    assert not any("\ufffd" in word for word in spelled)
    ends = {len("".join(spelled[:index])) for index in range(len(spelled))}
    segments = words._segmenter().lcut(text)
    cuts = {len("".join(segments[:index])) for index in range(len(segments))}
    assert {end for end in ends if text[end] >= "\u4e00"} <= cuts
    assert {"什么", " Water"} <= set(spelled)


def test_a_special_token_is_a_word_of_its_own():
    begins = np.array([1, 0, 0, 0, 1, 0], bool)
    special = np.array([1, 0, 0, 1, 0, 0], bool)
    assert number_words(begins, special).tolist() == [0, 1, 1, 2, 3, 3]


def test_jieba_neither_reads_nor_writes_the_shared_temporary_folder(tmp_path, monkeypatch, capfd):
    import marshal
    import tempfile

    (tmp_path / "jieba.cache").write_bytes(marshal.dumps(({"今": 1}, 1)))
    before = (tmp_path / "jieba.cache").read_bytes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    segmenter = words._segmenter.__wrapped__()
    assert segmenter.lcut("我们一起") == ["我们", "一起"]
    assert [path.name for path in tmp_path.iterdir()] == ["jieba.cache"]
    assert (tmp_path / "jieba.cache").read_bytes() == before
    assert capfd.readouterr() == ("", "")


def test_a_slow_tokenizer_cant_tell_words(bert_tokenizer):
    class Slow:
        is_fast = False
        name_or_path = "owner/slow"

    with pytest.raises(DataError, match="owner/slow can't say where its tokens stand"):
        encode(texts_of("a"), Slow(), Marks(words=True))


# --- long texts ----------------------------------------------------------------------------------


def test_a_long_text_is_encoded_in_parts_as_if_in_one(tokenizer, bert_tokenizer, monkeypatch):
    lines = "\n".join(f"The house is red, and {n} are playing. 今天天气真好。" for n in range(200))
    marks = Marks(before=(7,), after=(8,), sentences=True, words=True)
    for one in (tokenizer, bert_tokenizer):
        whole = encode(texts_of(lines, "next"), one, marks)
        with monkeypatch.context() as patch:
            patch.setattr(encoding, "CHUNK_CHARACTERS", 500)
            parts = encode(texts_of(lines, "next"), one, marks)
        assert parts.ids.tolist() == whole.ids.tolist()
        assert parts.starts.tolist() == whole.starts.tolist()
        assert (parts.sentences == whole.sentences).all()
        assert (parts.words == whole.words).all()
        assert whole.sentences.sum() == 2 * 200 + 1


# --- where a row stood in the data ---------------------------------------------------------------


def test_a_row_knows_the_first_and_the_last_text_that_it_was_cut_from(tokenizer):
    texts = texts_of(*(f"How are you today, number {number}? " * 3 for number in range(9)))
    vocabulary = vocabulary_of(tokenizer, "causal")
    rows = tokenize_texts(
        texts, tokenizer, vocabulary, data_settings(max_length=40), layout="causal"
    )
    ids = [[*tokenizer(text.text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    lines = [line for line, own in enumerate(ids, start=1) for _ in own]
    assert len(rows) > 3
    for index in range(len(rows)):
        inside = lines[index * 40 : index * 40 + 40]
        expected = f"t.txt:{inside[0]}"
        if inside[-1] != inside[0]:
            expected += f" to t.txt:{inside[-1]}"
        assert rows.place(index) == expected
    corrupted = CorruptedRows(rows, lambda row, _: {"input_ids": row.input_ids}, seed=0)
    assert name_rows(corrupted, [2]) == [f"row 2 ({rows.place(2)})"]


def test_a_row_of_one_text_knows_its_line_and_texts_without_tokens_count_too(bert_tokenizer):
    texts = texts_of("How are you?", "", "ice " * 40, "Water boils.")
    vocabulary = vocabulary_of(bert_tokenizer, "masked")
    settings = data_settings(max_length=12, pack=False)
    rows = tokenize_texts(texts, bert_tokenizer, vocabulary, settings, layout="masked")
    places = [rows.place(index) for index in range(len(rows))]
    assert list(dict.fromkeys(places)) == ["t.txt:1", "t.txt:3", "t.txt:4"]
    assert places == sorted(places)
    assert places.count("t.txt:3") > 2


@pytest.mark.parametrize("chunk", [40, 1 << 19])
def test_the_rest_of_a_stream_and_a_long_text_keep_their_places(tokenizer, chunk, monkeypatch):
    monkeypatch.setattr("sft_kit.data.corpus.encoding.CHUNK_CHARACTERS", chunk)
    texts = texts_of("one\ntwo\nthree\n" * 30, "four five", "six " * 30)
    stream = encode(texts, tokenizer, Marks(after=(tokenizer.eos_token_id,)))
    assert [str(place) for place in stream.places] == ["t.txt:1", "t.txt:2", "t.txt:3"]
    starts = stream.starts.tolist()
    assert stream.place(0, starts[1]) == "t.txt:1"
    assert stream.place(starts[1] - 1, starts[2] + 1) == "t.txt:1 to t.txt:3"
    rest = stream.tail(starts[1] + 1)
    assert rest.place(0, 1) == "t.txt:2"
    assert rest.place(0, len(rest.ids)) == "t.txt:2 to t.txt:3"
    assert join([rest, stream], Marks()).place(len(rest.ids), len(rest.ids) + 1) == "t.txt:1"
    assert stream.tail(len(stream.ids)).place(0, 0) == ""
