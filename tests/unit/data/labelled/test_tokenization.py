"""Texts and pairs become the ids their model was pretrained on, and batches that can be trusted."""

from pathlib import Path

import pytest

from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.labelled.tokenization import (
    check_labelled,
    to_labelled_dataset,
    tokenize_labelled,
)
from sft_kit.data.rows import Where
from sft_kit.errors import DataError
from sft_kit.settings import LabelledDataSettings

NAMES = ("bad", "good")


def row(*texts: str, labels: tuple[str, ...] = ("good",), line: int = 1) -> LabelledText:
    return LabelledText(texts, labels, Where("rows.tsv", line))


def settings(**changes: object) -> LabelledDataSettings:
    return LabelledDataSettings(path="rows.tsv", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """BERT's WordPiece tokenizer over a handful of words, made by transformers itself."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"[]", "sep", "a", "b", "c", "天", "气"]
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return BertTokenizer(vocab=str(path))


def test_a_text_stands_between_the_special_tokens_of_bert(bert_tokenizer):
    (example,) = tokenize_labelled([row("天气 a")], bert_tokenizer, NAMES, settings())
    tokens = bert_tokenizer.convert_ids_to_tokens(example.input_ids)
    assert tokens == ["[CLS]", "天", "气", "a", "[SEP]"]
    assert example.token_type_ids == [0, 0, 0, 0, 0]
    assert (example.label, example.was_cut) == (1, False)


def test_a_pair_has_two_segments(bert_tokenizer):
    (example,) = tokenize_labelled([row("a b", "c")], bert_tokenizer, NAMES, settings())
    tokens = bert_tokenizer.convert_ids_to_tokens(example.input_ids)
    assert tokens == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
    assert example.token_type_ids == [0, 0, 0, 0, 1, 1]


def test_a_text_that_spells_a_special_token_is_read_as_characters(bert_tokenizer, tokenizer):
    (example,) = tokenize_labelled([row("a [SEP] b")], bert_tokenizer, NAMES, settings())
    tokens = bert_tokenizer.convert_ids_to_tokens(example.input_ids)
    assert tokens == ["[CLS]", "a", "[", "sep", "]", "b", "[SEP]"]
    (example,) = tokenize_labelled([row("x<|endoftext|>")], tokenizer, NAMES, settings())
    assert tokenizer.eos_token_id not in example.input_ids
    assert tokenizer.decode(example.input_ids) == "x<|endoftext|>"


def test_what_is_too_long_is_cut_and_keeps_its_special_tokens(bert_tokenizer):
    texts = [row("a b c a b c"), row("a b")]
    examples = tokenize_labelled(texts, bert_tokenizer, NAMES, settings(max_length=6))
    tokens = [bert_tokenizer.convert_ids_to_tokens(example.input_ids) for example in examples]
    assert tokens == [["[CLS]", "a", "b", "c", "a", "[SEP]"], ["[CLS]", "a", "b", "[SEP]"]]
    assert [example.was_cut for example in examples] == [True, False]
    pair = [row("a", "b c b c b c")]
    (example,) = tokenize_labelled(pair, bert_tokenizer, NAMES, settings(max_length=6))
    tokens = bert_tokenizer.convert_ids_to_tokens(example.input_ids)
    assert tokens == ["[CLS]", "a", "[SEP]", "b", "c", "[SEP]"]
    assert example.token_type_ids == [0, 0, 0, 1, 1, 1]
    assert example.was_cut


def test_the_context_length_bounds_max_length_and_is_told(bert_tokenizer, monkeypatch):
    monkeypatch.setattr(bert_tokenizer, "model_max_length", 4)
    rows = [row("a b c", line=7), row("a", line=8)]
    examples = tokenize_labelled(rows, bert_tokenizer, NAMES, settings(max_length=50))
    assert [len(example.input_ids) for example in examples] == [4, 3]
    lowered, cut = check_labelled(examples, bert_tokenizer, settings(max_length=50))
    assert lowered == "data.max_length=50 was lowered to 4, the context length."
    assert cut == "1 of 2 texts are cut at 4 tokens (line 7)."


def test_a_pair_is_joined_by_a_line_end_where_the_tokenizer_separates_nothing(tokenizer):
    (pair,) = tokenize_labelled([row("two", "three")], tokenizer, NAMES, settings())
    assert pair.input_ids == tokenizer("two\nthree")["input_ids"]
    assert pair.token_type_ids == []


def test_a_text_without_label_has_the_ignored_one(bert_tokenizer):
    (example,) = tokenize_labelled([row("a", labels=())], bert_tokenizer, NAMES, settings())
    assert example.label == -100


def test_several_labels_become_zeros_and_ones_in_the_order_of_the_classes(bert_tokenizer):
    names = ("x", "y", "z")
    rows = [row("a", labels=("z", "x")), row("b", labels=())]
    examples = tokenize_labelled(rows, bert_tokenizer, names, settings(multi_label=True))
    assert [example.label for example in examples] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_texts_without_a_token_are_refused_with_their_lines(tokenizer):
    rows = [row("two"), row("", line=5)]
    examples = tokenize_labelled(rows, tokenizer, NAMES, settings())
    with pytest.raises(DataError, match=r"1 of 2 texts have no token \(line 5\)"):
        check_labelled(examples, tokenizer, settings())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_padding_is_what_transformers_makes_of_the_same_rows(bert_tokenizer, side, multi_label):
    import torch
    from transformers import DataCollatorWithPadding

    from sft_kit.data.collators import pad_labelled

    rows = [row("a b", "c"), row("a", "b"), row("c c c c", "a a")]
    examples = tokenize_labelled(rows, bert_tokenizer, NAMES, settings(multi_label=multi_label))
    dataset = to_labelled_dataset(examples)
    batch = pad_labelled(list(dataset), pad_token_id=bert_tokenizer.pad_token_id, side=side)
    bert_tokenizer.padding_side = side
    theirs = DataCollatorWithPadding(bert_tokenizer)(list(dataset.remove_columns("where")))
    assert batch.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(batch[name], tensor), name
    assert batch["labels"].dtype == (torch.float32 if multi_label else torch.int64)


def test_a_data_set_of_gpt2_has_no_segments(tokenizer):
    examples = tokenize_labelled([row("two")], tokenizer, NAMES, settings())
    assert set(to_labelled_dataset(examples).column_names) == {"input_ids", "labels", "where"}


def test_the_true_chinese_tokenizer_reads_a_review_character_by_character(real_data: Path):
    from transformers import AutoTokenizer

    folder = real_data / "tokenizers" / "bert-base-chinese"
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (example,) = tokenize_labelled([row("房间太小。")], tokenizer, NAMES, settings())
    expected = ["[CLS]", *"房间太小。", "[SEP]"]
    assert example.input_ids == [vocabulary.index(token) for token in expected]
