"""Encodings: what is declared is what Python decodes, what is detected decodes to the same text."""

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.data.encodings import declared_encoding, detect_encoding, lines_as_utf8
from sft_kit.errors import DataError

CHINESE = (
    "这家酒店的房间很大，早餐也不错。\n服务员的态度很差，不会再来了。\n位置方便，离地铁站很近。\n"
)
TRADITIONAL = "這間酒店環境和服務態度亦算不錯。\n房間空間太小，早餐不好吃。\n"
JAPANESE = "私はこのホテルが好きです。\n朝食はよくなかった。\n部屋は広くて、とても静かでした。\n"
KOREAN = "나는 이 호텔이 좋아요.\n방이 넓고 깨끗해요.\n아침 식사는 좋지 않았어요.\n"
RUSSIAN = "Мне нравится этот отель, комната большая.\nЗавтрак был плохой.\n"
FRENCH = "Le café était très bon, mais la chambre était sale.\nJ'ai adoré l'hôtel, déjà vu.\n"
GERMAN = "Das Frühstück war schön, die Größe überraschend.\nMäßig.\n"
CURLY = "The café was “nice”, or so they say…\nIt’s not – we’d rather go home.\n"
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy.\nPokoj byl špinavý a personál nepříjemný.\n"
POLISH = "Zażółć gęślą jaźń.\nTen hotel był bardzo dobry, śniadanie świetne.\n"
TURKISH = "Bu oteli çok beğendim, kahvaltı güzeldi.\nOda küçüktü, şikâyet ettim ığdır.\n"
GREEK = "Very good: μου άρεσε το ξενοδοχείο.\nA long line of English words, και κακό πρωινό.\n"
MIXED = "I stayed in Москва and liked it well enough.\nThe word for a hotel is отель, I learnt.\n"
HUNGARIAN = "A szálloda nagyon szép volt, de a fűtés rossz.\nA nők és az őrök kedvesek.\n"
PORTUGUESE = "O hotel não é mau, as refeições são boas.\nAs informações não ajudam ninguém.\n"
LITHUANIAN = "Šis viešbutis labai gražus, žmonės malonūs.\nPusryčiai buvo šalti.\n"
TOLD = [
    ("gbk", CHINESE), ("gb18030", CHINESE), ("latin-1", FRENCH), ("latin-1", GERMAN),
    ("latin-1", PORTUGUESE),
    ("cp1252", CURLY), ("utf-8", CHINESE), ("utf-8-sig", FRENCH), ("utf-16", CHINESE),
    ("utf-16", GERMAN), ("utf-32", KOREAN), ("ascii", "nothing special\n"),
]  # fmt: skip
NOT_TOLD = [
    ("big5", TRADITIONAL), ("gbk", TRADITIONAL), ("shift_jis", JAPANESE), ("euc_jp", JAPANESE),
    ("euc_kr", KOREAN), ("cp1251", RUSSIAN), ("koi8_r", RUSSIAN), ("cp1251", MIXED),
    ("cp1253", GREEK), ("cp1250", CZECH), ("cp1250", POLISH), ("cp1250", HUNGARIAN),
    ("iso8859_2", POLISH),
    ("cp1254", TURKISH), ("cp1257", LITHUANIAN), ("mac_roman", FRENCH), ("cp850", GERMAN),
]  # fmt: skip


def text_of(content: bytes, encoding: str) -> str:
    return b"".join(line for _, line in lines_as_utf8(content, encoding)).decode("utf-8")


@pytest.mark.parametrize(("encoding", "text"), TOLD)
@pytest.mark.parametrize("copies", [1, 20])
def test_what_is_detected_decodes_to_the_text_that_was_encoded(encoding, text, copies):
    content = (text * copies).encode(encoding)
    found = detect_encoding(content, "a.txt")
    assert text_of(content, found).removeprefix("\ufeff") == text * copies


@pytest.mark.parametrize(("encoding", "text"), NOT_TOLD)
@pytest.mark.parametrize("copies", [1, 20])
def test_an_encoding_that_could_be_another_must_be_declared(encoding, text, copies):
    content = (text * copies).encode(encoding)
    with pytest.raises(DataError, match=r"^a\.txt: not UTF-8, .*declare it with data\.encoding"):
        detect_encoding(content, "a.txt")


@pytest.mark.parametrize(
    ("encoding", "text", "name"),
    [
        ("latin-1", FRENCH, "latin-1"),
        ("cp1252", CURLY, "cp1252"),
        ("gbk", CHINESE, "gb18030"),
        ("utf-8-sig", CHINESE, "utf-8"),
        ("utf-16", CHINESE, "utf-16-le"),
    ],
)
def test_common_encodings_are_called_by_their_common_names(encoding, text, name):
    assert detect_encoding(text.encode(encoding), "a.txt") == name


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "utf-16", "utf-8", "utf-8-sig"])
def test_real_chinese_reviews_are_detected_in_each_encoding_they_are_written_in(
    real_data, encoding
):
    text = (real_data / "chnsenticorp" / "dev.tsv").read_text(encoding="utf-8")
    content = text.encode(encoding, errors="ignore")
    expected = content.decode(encoding)
    assert text_of(content, detect_encoding(content, "dev.tsv")) == expected


def test_the_real_phrasebank_is_latin_1(real_data):
    content = (real_data / "fin_phrasebank" / "Sentences_AllAgree.txt").read_bytes()
    assert detect_encoding(content, "a.txt") == "latin-1"
    for part in (content[:150_000], content[150_000:]):
        assert detect_encoding(part, "a.txt") == "latin-1"
    assert text_of(content, "latin-1") == content.decode("latin-1")


def test_one_damaged_line_does_not_change_the_encoding_of_a_file():
    utf8 = CHINESE.encode() * 20 + CHINESE.encode("gbk").split(b"\n")[0] + b"\n" + CHINESE.encode()
    assert detect_encoding(utf8, "a.txt") == "utf-8"


def test_chinese_that_is_damaged_must_be_declared():
    gbk = CHINESE.encode("gbk") * 20
    for content in (gbk[:101] + b"\xff" + gbk[101:], gbk[:-2]):
        with pytest.raises(DataError, match="gb18030 or big5 for Chinese"):
            detect_encoding(content, "a.txt")


@pytest.mark.parametrize("size", [64, 5000])
def test_bytes_that_are_no_text_are_refused_with_the_setting_to_use(size):
    content = bytes(range(1, 256)) * (size // 64)
    with pytest.raises(DataError, match=r"^a\.txt: not UTF-8, .*declare it with data\.encoding"):
        detect_encoding(content, "a.txt")


def test_utf16_without_a_byte_order_mark_is_refused_as_such():
    with pytest.raises(DataError, match=r"data\.encoding=utf-16-le"):
        detect_encoding((CHINESE + "a, b").encode("utf-16-le"), "a.txt")


def test_a_line_of_ten_megabytes_takes_no_longer_than_many_lines():
    content = CHINESE.replace("\n", " ").encode("gbk") * 100_000
    started = time.process_time()
    assert detect_encoding(content, "a.txt") == "gb18030"
    assert time.process_time() - started < 5  # half a second; 20 without a cut


CODECS = [
    "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "gb18030", "gbk", "big5",
    "shift_jis", "euc_jp", "iso2022_jp", "hz", "utf-7", "cp1252", "latin-1", "cp037", "cp1251",
]  # fmt: skip


@pytest.mark.parametrize("encoding", CODECS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_lines_are_those_of_pythons_own_reader(encoding, ends, last):
    # In UTF-16 the bytes of a line end also stand between U+0A15 and U+4E00, and the other way
    # round; U+2028 and U+0085 end no line.
    text = "".join(
        char
        for char in f"one{ends}二 \u0a15一\u0a15\u0a0a\u2028\x85é{ends}{ends}tab\t3{ends}{last}"
    )
    content = text.encode(encoding, errors="ignore")
    with io.TextIOWrapper(io.BytesIO(content), encoding=encoding, newline="\n") as reader:
        expected = list(reader)
    lines = list(lines_as_utf8(content, encoding))
    assert [line.decode("utf-8") for _, line in lines] == expected
    assert [offset for offset, _ in lines[1:]] == [
        len(content) - len("".join(expected[at:]).encode(lines_codec(encoding)))
        for at in range(1, len(expected))
    ]


def lines_codec(encoding: str) -> str:
    return f"{encoding}-le" if encoding in {"utf-16", "utf-32"} else encoding


@given(st.text(), st.sampled_from(["utf-16", "utf-16-be", "utf-32", "gb18030", "utf-7"]))
def test_any_text_comes_back_from_encodings_that_hold_all_of_unicode(text, encoding):
    expected = text.encode(encoding).decode(encoding).removeprefix("\ufeff")
    assert text_of(text.encode(encoding), encoding) == expected


@pytest.mark.parametrize(
    ("encoding", "bad"),
    [
        ("gbk", b"\xff\xfe"), ("gb18030", b"\x81"), ("big5", b"\xff"), ("cp1252", b"\x81"),
        ("ascii", b"\xc3\xa9"), ("shift_jis", b"\xff"), ("utf-16-le", b"\x00\xd8"),
        ("utf-16", b"\x00\xd8"), ("iso2022_jp", b"\x1b$B\x7f\x7f"), ("utf-7", b"\xff"),
    ],
)  # fmt: skip
def test_bytes_that_an_encoding_does_not_know_spoil_their_own_line_only(encoding, bad):
    codec = lines_codec(encoding)
    lines = [f"line {number}\n".encode(codec) for number in range(3)]
    lines[1] = "two".encode(codec) + bad + "\n".encode(codec)
    found = [line for _, line in lines_as_utf8(b"".join(lines), encoding)]
    assert [found[0], found[2]] == [b"line 0\n", b"line 2\n"]
    with pytest.raises(UnicodeDecodeError):
        found[1].decode("utf-8")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("UTF8", "utf-8"), ("utf-8-sig", "utf-8"), ("Latin-1", "iso8859-1"), ("GB2312", "gb2312")],
)
def test_a_declared_encoding_is_any_that_python_knows(name, expected):
    assert declared_encoding(name) == expected


@pytest.mark.parametrize(
    "name",
    ["latn-1", "", "base64", "rot13", "zlib", "idna", "undefined", "unicode_escape", "a\0b", "é"],
)
def test_a_name_that_is_no_encoding_of_text_is_refused(name):
    with pytest.raises(DataError, match=r"^data\.encoding: found .* accepts 'auto' or Python"):
        declared_encoding(name)


def test_a_slip_in_the_name_of_an_encoding_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="did you mean 'latin_1'"):
        declared_encoding("latn-1")
