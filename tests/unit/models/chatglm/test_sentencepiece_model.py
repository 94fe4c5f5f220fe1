"""The reader of tokenizer.model, against the sentencepiece library and damaged files."""

import contextlib
import io
import random
import struct
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.sentencepiece_model import (
    Piece,
    PieceKind,
    bpe_merges,
    byte_text,
    count_pieces,
    parse_pieces,
    read_pieces,
)

TINY = Path(__file__).parents[3] / "fixtures" / "chatglm" / "chatglm2_tiny_fp16" / "tokenizer.model"
TINY_BYTES = TINY.read_bytes()
NORMALIZER = b"\x1a\x10\n\x08identity\x12\x00\x18\x01\x20\x00"
WHERE = Path("some/tokenizer.model")
CORPUS = ["the quick brown fox jumps over the lazy dog", "今天天气很好", "a b c d"] * 20


def train(tmp_path: Path, **changes: object) -> Path:
    """Train a model as ChatGLM's is set up, but for `changes`."""
    options = {
        "model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "character_coverage": 1.0,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, **(options | changes)
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def assert_reads_as_sentencepiece_does(path: Path) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = read_pieces(path)
    assert len(pieces) == count_pieces(path) == oracle.get_piece_size()
    ids = range(len(pieces))
    assert [piece.text for piece in pieces] == [oracle.id_to_piece(i) for i in ids]
    assert [piece.score for piece in pieces] == [oracle.get_score(i) for i in ids]
    assert [i for i in ids if pieces[i].kind is PieceKind.UNKNOWN] == [oracle.unk_id()]
    assert [i for i in ids if pieces[i].kind is PieceKind.CONTROL] == [
        i for i in ids if oracle.is_control(i)
    ]
    assert [i for i in ids if pieces[i].kind is PieceKind.BYTE] == [
        i for i in ids if oracle.is_byte(i)
    ]


def test_pieces_scores_and_kinds_are_those_that_sentencepiece_reads(tmp_path):
    assert_reads_as_sentencepiece_does(TINY)
    assert_reads_as_sentencepiece_does(train(tmp_path))


def test_the_true_model_is_read_as_sentencepiece_reads_it(real_data):
    path = real_data / "tokenizers" / "chatglm2" / "tokenizer.model"
    assert_reads_as_sentencepiece_does(path)
    assert count_pieces(path) == 64789


def test_merges_are_all_cuts_into_known_pieces_with_the_best_score_first():
    # Of "abcx", "yab" and "ad" no cut leaves two known pieces; nor is one piece a cut of another.
    texts = ["a", "b", "c", "ab", "bc", "abc", "d", "abcx", "yab"]
    scores = [-5.0, -6.0, -7.0, 0.0, -2.0, -1.0, -9.0, 2.0, 3.0]
    learnt = [
        Piece(text, score, PieceKind.NORMAL) for text, score in zip(texts, scores, strict=True)
    ]
    control = Piece("ad", 1.0, PieceKind.CONTROL)  # no text ever becomes a control piece
    assert bpe_merges([control, *learnt]) == [("a", "b"), ("a", "bc"), ("ab", "c"), ("b", "c")]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_type": "unigram"}, "unigram"),
        ({"model_type": "char"}, "character"),
        ({"byte_fallback": False}, "byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "removal of extra spaces switched on"),
        ({"add_dummy_prefix": False}, "a space before the text switched off"),
        ({"treat_whitespace_as_suffix": True}, "spaces behind words"),
        ({"user_defined_symbols": ["<mine>"]}, "'<mine>'"),
        ({"control_symbols": ["<sop>"]}, "'<sop>'"),
        ({"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}, "piece 0 is '<pad>'"),
        ({"bos_id": -1}, "piece 1 is '<0x00>'"),
    ],
)
def test_a_model_that_would_encode_otherwise_is_refused(tmp_path, changes, found):
    path = train(tmp_path, **changes)
    with pytest.raises(CheckpointError) as caught:
        count_pieces(path)
    assert str(path) in str(caught.value)
    assert found in str(caught.value)
    assert "original ChatGLM2 or ChatGLM3 checkpoint" in str(caught.value)


def replaced(old: bytes, new: bytes) -> bytes:
    assert TINY_BYTES.count(old) == 1
    return TINY_BYTES.replace(old, new)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (replaced("该".encode(), "谁".encode()), "1 of its pieces are there twice"),
        (replaced(struct.pack("<f", -200.0), struct.pack("<f", -199.0)), "has the score -199.0"),
        (replaced(struct.pack("<f", -200.0), struct.pack("<f", float("nan"))), "score nan"),
        (replaced(b"<0xFF>", b"<0xFG>"), "piece 258 is '<0xFG>'"),
        (replaced("该".encode(), b"\xff\xff\xff"), "not UTF-8"),
        # A setting that is left out is on.
        (replaced(NORMALIZER, b"\x1a\x0e" + NORMALIZER[2:-2]), "extra spaces switched on"),
        (replaced(NORMALIZER, NORMALIZER[:-1] + b"\x01"), "extra spaces switched on"),
        # "该" disappears as a character: every piece needs its characters
        (replaced("该".encode(), b"a\xc2\xb5"), "characters that are no pieces"),
    ],
)
def test_pieces_that_would_be_merged_otherwise_are_refused(data, found):
    with pytest.raises(CheckpointError, match=found):
        parse_pieces(data, WHERE)


def test_a_file_cut_short_anywhere_is_refused():
    cuts = [*range(0, len(TINY_BYTES) - 60, 97), *range(len(TINY_BYTES) - 60, len(TINY_BYTES))]
    for cut in cuts:
        with pytest.raises(CheckpointError, match=r"damaged|pieces"):
            parse_pieces(TINY_BYTES[:cut], WHERE)


def test_what_is_missing_is_said():
    # A cut between two fields: only pieces are left.
    end = TINY_BYTES.index(b"\x12\r/tmp/glm/tiny") - 2
    with pytest.raises(CheckpointError, match="no training settings and no normaliser"):
        parse_pieces(TINY_BYTES[:end], WHERE)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:e7dc\n", "git lfs"),
        ("empty", b"", "no pieces and no training settings"),
        ("json", b'{"version": "1.0"}', "is no SentencePiece model"),
        ("pickle", b"\x80\x02}q\x00.", "is no SentencePiece model"),
        ("endless", b"\xff" * 40, "no number ends"),
        ("huge", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes are missing at its end"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, found):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=found) as caught:
        read_pieces(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "tokenizer.model", tmp_path):
        with pytest.raises(CheckpointError, match="can't be read"):
            read_pieces(path)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_anything_else(data):
    with pytest.raises(CheckpointError):
        parse_pieces(data, WHERE)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), num_changes=st.integers(1, 4))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(seed, num_changes):
    draw = random.Random(seed)
    data = bytearray(TINY_BYTES)
    for _ in range(num_changes):
        # Often near the end, where the settings are.
        position = len(data) - 1 - int(len(data) * draw.random() ** draw.choice([1, 8]))
        edit = draw.choice(["set", "flip", "delete", "insert"])
        if edit == "set":
            data[position] = draw.randrange(256)
        elif edit == "flip":
            data[position] ^= 1 << draw.randrange(8)
        elif edit == "delete":
            del data[position]
        else:
            data.insert(position, draw.randrange(256))
    with contextlib.suppress(CheckpointError):
        pieces = parse_pieces(bytes(data), WHERE)
        assert [piece.text for piece in pieces[3:259]] == [byte_text(byte) for byte in range(256)]
