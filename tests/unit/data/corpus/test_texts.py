"""Plain texts as read and split: units of text files, fields of rows, what is held out."""

import json

import pytest

from sft_kit.data.corpus.reading import open_texts
from sft_kit.data.corpus.report import Text
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.rows import Where
from sft_kit.data.splits import load_conversations
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import DataSettings, TextDataSettings

STORY = "First line.\nSecond line.\n\n \nA new part,\r\nwith two lines.\n\n\nThe end."


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(STORY.encode())
    return str(path)


def read(path, **settings):
    return load_texts(TextDataSettings(path=str(path), eval_fraction=0, **settings))


def write_rows(path, rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


# --- units of a text file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (
            "line",
            [
                (1, "First line.", None),
                (2, "Second line.", None),
                (5, "A new part,", None),
                (6, "with two lines.", None),
                (9, "The end.", None),
            ],
        ),
        (
            "paragraph",
            [
                (1, "First line.\nSecond line.", None),
                (5, "A new part,\nwith two lines.", None),
                (9, "The end.", None),
            ],
        ),
        (
            "document",
            [
                (1, "First line.\nSecond line.", (0, 12)),
                (5, "A new part,\nwith two lines.", (0, 12)),
                (9, "The end.", (0,)),
            ],
        ),
        ("file", [(1, STORY.replace("\r\n", "\n"), None)]),
    ],
)
def test_a_text_file_is_cut_into_the_unit_that_was_asked_for(story, unit, expected):
    texts = read(story, unit=unit).train
    assert texts == [Text(text, Where(story, line), starts) for line, text, starts in expected]


@pytest.mark.parametrize(("unit", "num_good"), [("line", 3), ("paragraph", 1), ("document", 1)])
def test_a_damaged_line_spoils_its_own_text_only(tmp_path, unit, num_good):
    path = tmp_path / "damaged.txt"
    path.write_bytes(b"good\nbad \xff\nalso good\n\nthe rest")
    with pytest.raises(FormatError) as caught:
        read(path, unit=unit)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:2"
    splits = read(path, unit=unit, on_bad_row="skip")
    assert len(splits.train) == num_good
    assert splits.describe()["num_bad_rows"] == 1


def test_a_folder_reads_text_files_and_rows_alike(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree", encoding="utf-8")
    write_rows(tmp_path / "b.jsonl", [{"content": "four"}])
    splits = read(tmp_path, unit="paragraph")
    assert [text.text for text in splits.train] == ["one\ntwo", "three", "four"]
    assert "text, content" in splits.notes()[0]


def test_only_the_first_texts_are_read_where_asked(story):
    assert len(read(story, unit="paragraph", num_rows=2).train) == 2


# --- fields of rows ------------------------------------------------------------------------------


def test_a_list_of_texts_is_one_text_whose_items_are_its_sentences(tmp_path):
    path = write_rows(
        tmp_path / "p.json", [{"title": "x", "paragraphs": ["床前明月光，", "", "疑是。"]}]
    )
    (text,) = read(path).train
    assert text.text == "床前明月光，\n疑是。"
    assert [text.text[start] for start in text.sentences] == ["床", "疑"]


def test_a_named_field_is_read_whatever_its_name(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"text": "no", "abstract": "yes"}])
    assert read(path, text="abstract").train[0].text == "yes"
    with pytest.raises(FormatError) as caught:
        read(path, text="abstrakt")
    (problem,) = caught.value.problems
    assert str(problem) == (
        f"{path}: data.text: found no field 'abstrakt', accepts 'text', 'abstract' "
        "(did you mean 'abstract'?)"
    )


def test_a_named_field_that_no_row_has_is_told_once(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"body": str(number)} for number in range(30)])
    for how in ({}, {"num_rows": 5}, {"on_bad_row": "skip"}):
        with pytest.raises(FormatError) as caught:
            read(path, text="bdy", **how)
        (problem,) = caught.value.problems
        assert (problem.key, problem.todo) == ("data.text", "did you mean 'body'?")
        assert problem.message == "found no field 'bdy', accepts 'body'"


def test_a_field_that_only_the_first_rows_lack_makes_bad_rows(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"a": "x"}, {"a": "y"}, {"b": "good"}, {"a": "z"}])
    splits = read(path, text="b", on_bad_row="skip")
    assert [text.text for text in splits.train] == ["good"]
    assert splits.describe()["num_bad_rows"] == 3


def test_fields_within_an_object_are_not_read(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"meta": {"text": "x"}, "id": 1}])
    with pytest.raises(
        FormatError, match=r"found no field 'meta\.text', accepts 'meta', 'id'"
    ) as it:
        read(path, text="meta.text")
    assert "fields within an object are not read" in str(it.value)


def test_a_checkpoint_is_no_text(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"found a checkpoint \(config\.json, model\.safetensors"):
        read(tmp_path)
    story = tmp_path / "story.txt"
    story.write_text("a\n\nb", encoding="utf-8")
    assert len(read(story).train) == 2  # a file beside one is read
    with pytest.raises(DataError, match="found a checkpoint"):
        read(story, eval_path=str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    write_rows(tmp_path / "config.json", [{"text": "c"}])
    assert len(read(tmp_path).train) == 3  # and a folder of rows, whatever they are called


def test_rows_without_a_known_field_name_what_was_found(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"contents": "a", "title": "b"}])
    with pytest.raises(FormatError) as caught:
        read(path)
    message = str(caught.value)
    assert f"{path}:1: found 'contents', 'title', accepts text, content, paragraphs" in message
    assert "did you mean 'content'?" in message


@pytest.mark.parametrize(
    "value", [None, 3, "", " ", [], ["", " "], ["a", 1], ["a", None], {"a": "b"}, "a\x00b"]
)
def test_what_is_no_text_is_a_bad_row_at_its_place(tmp_path, value):
    path = write_rows(tmp_path / "p.jsonl", [{"text": "good"}, {"text": value}])
    with pytest.raises(FormatError) as caught:
        read(path)
    assert {problem.where for problem in caught.value.problems} == {f"{path}:2"}
    assert len(read(path, on_bad_row="skip").train) == 1


def test_a_source_without_a_good_row_is_refused_even_where_bad_ones_are_skipped(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"text": ""}])
    with pytest.raises(FormatError, match="none of the 1 rows can be used"):
        read(path, on_bad_row="skip")


# --- held-out texts ------------------------------------------------------------------------------


def test_a_random_split_is_the_one_of_supervised_training(tmp_path):
    rows = [{"text": f"text number {index % 40}"} for index in range(50)]
    path = write_rows(tmp_path / "p.jsonl", rows)
    shared = {"path": path, "eval_fraction": 0.2, "split_seed": 5}
    ours = load_texts(TextDataSettings(**shared))
    theirs = load_conversations(DataSettings(**shared, format="text"))
    assert [text.where for text in ours.train] == [row.where for row in theirs.train]
    assert [text.where for text in ours.eval] == [row.where for row in theirs.eval]
    expected = theirs.describe()
    del expected["format"]
    assert ours.describe() == expected
    assert not {text.text for text in ours.train} & {text.text for text in ours.eval}


def test_texts_of_eval_path_are_left_out_of_training(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"text": text} for text in "abcab"])
    held_out = write_rows(tmp_path / "e.jsonl", [{"text": text} for text in ("A ", "x")])
    splits = read(path, eval_path=held_out)
    assert [text.text for text in splits.train] == ["b", "c", "b"]
    assert [text.text for text in splits.eval] == ["A ", "x"]
    described = splits.describe()
    assert (described["num_overlaps"], described["num_duplicates"]) == (1, 2)
    assert described["eval_fingerprint"] not in {"", described["fingerprint"]}
    assert any("1 held-out text found in training too" in note for note in splits.notes())


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_end_of_all_text_is_held_out_to_the_character(tmp_path, fraction):
    rows = [{"text": [f"sentence {index}.", "and more."]} for index in range(9)]
    path = write_rows(tmp_path / "p.jsonl", rows)
    whole = "".join(text.text for text in read(path).train)
    splits = load_texts(TextDataSettings(path=path, eval_fraction=fraction, hold_out="end"))
    train, held_out = ("".join(text.text for text in side) for side in (splits.train, splits.eval))
    assert train + held_out == whole
    assert len(train) == int((1 - fraction) * len(whole))
    for text in (*splits.train, *splits.eval):  # lines begin behind a line end, on either side
        ends = [place + 1 for place, char in enumerate(text.text) if char == "\n"]
        assert text.sentences == (0, *(end for end in ends if end < len(text.text)))


def test_a_single_text_can_be_held_out_in_part_only(story):
    with pytest.raises(DataError, match=r"data\.hold_out=end"):
        load_texts(TextDataSettings(path=story, unit="file"))
    splits = load_texts(TextDataSettings(path=story, unit="file", hold_out="end"))
    assert splits.train[0].text + splits.eval[0].text == STORY.replace("\r\n", "\n")


def test_a_single_text_is_told_with_its_file_and_why_it_is_the_only_one(tmp_path):
    def refusal(path, **settings):
        with pytest.raises(DataError, match="found one text only") as caught:
            load_texts(TextDataSettings(path=str(path), **settings))
        return str(caught.value)

    (tmp_path / "all.txt").write_text("first line\nsecond line", encoding="utf-8")
    told = refusal(tmp_path)
    assert told.startswith(f"{tmp_path}/all.txt: ")
    assert "data.unit is document: a text ends at a blank line" in told
    assert "data.unit also accepts line, paragraph, file" in told
    assert "equal" not in told
    assert "data.unit is file: a text is the whole file" in refusal(tmp_path, unit="file")
    path = write_rows(
        tmp_path / "same.jsonl", [{"text": text} for text in ("Ab c", "ab  C", "AB c")]
    )
    told = refusal(path)
    assert "(2 other texts are equal to it, but for case and white space)" in told
    assert "data.unit" not in told


def test_an_evaluation_file_that_holds_all_texts_leaves_nothing_to_train_on(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"text": text} for text in "abca"])
    with pytest.raises(DataError, match=r"its texts \(all 4\) stand in data\.eval_path=") as caught:
        read(path, eval_path=path)
    assert "were left out of training" in str(caught.value)


def test_nothing_is_held_out_where_nothing_is_asked_for(story):
    assert read(story, unit="file").eval == []
    assert read(story, unit="line", hold_out="end").eval == []


def test_a_stream_reads_its_held_out_file_only(story, tmp_path):
    held_out = write_rows(tmp_path / "e.jsonl", [{"text": "x"}])
    splits = read(story, streaming=True, eval_path=held_out)
    assert (splits.train, [text.text for text in splits.eval]) == ([], ["x"])
    assert splits.describe()["fingerprint"] == read(story).describe()["fingerprint"]
    assert "read while training" in splits.notes()[0]


def test_a_data_set_of_the_hub_is_streamed_where_asked(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return iter([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = TextDataSettings(path="owner/texts", split="all", revision="v1")
    source = open_texts(settings, settings.path, streaming=True)
    assert [found.text for found in source.rows] == ["a", "b"]
    assert asked == [("owner/texts", {"split": "all", "revision": "v1", "streaming": True})]
    assert source.fingerprint == "owner/texts/all@v1"


def test_tiny_shakespeare_is_split_as_nanogpt_does(real_data):
    path = str(real_data / "tinyshakespeare" / "input.txt")
    settings = TextDataSettings(path=path, unit="file", eval_fraction=0.1, hold_out="end")
    splits = load_texts(settings)
    with open(path, encoding="utf-8") as handle:
        whole = handle.read()
    assert [text.text for text in splits.train] == [whole[: int(0.9 * len(whole))]]
    assert [text.text for text in splits.eval] == [whole[int(0.9 * len(whole)) :]]


def test_tang_poems_are_read_line_by_line(real_data):
    splits = read(real_data / "poetry_zh" / "poet.tang.0.json", on_bad_row="skip")
    assert len(splits.train) > 900
    first = splits.train[0]
    assert len(first.sentences) == first.text.count("\n") + 1
