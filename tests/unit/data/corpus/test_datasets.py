"""Rows of an objective: what is refused because nothing would be learnt or measured."""

import json

import pytest

from sft_kit.data.corpus.datasets import make_datasets
from sft_kit.data.corpus.report import TextSplits
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.choose import corruption_of, objective_of
from sft_kit.errors import DataError
from sft_kit.settings import MaskedSettings, PrefixSettings, TextDataSettings

CHINESE = ["今天天气真好，我们一起出去玩。", "他说大家都走了，我们走。"] * 4
ENGLISH = ["The house is red. It is playing.", "The red house is unlikely."] * 4
UNKNOWN = ["龙飞凤舞" * 4, "鹤立鸡群" * 4]


@pytest.fixture
def make(tmp_path, bert_tokenizer):
    """Write training and held-out texts, and make the rows of an objective."""

    def make(train, held_out, pretrain=None, **how):
        paths = {}
        for key, texts in (("path", train), ("eval_path", held_out)):
            if texts is not None:
                path = tmp_path / f"{key}.jsonl"
                path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
                paths[key] = str(path)
        how = {"max_length": 24, "eval_fraction": 0, **how}
        settings = TextDataSettings(**paths, **how)
        pretrain = pretrain or MaskedSettings(mask_fraction=0.5)
        objective = objective_of(pretrain, settings.max_length)
        vocabulary = vocabulary_of(bert_tokenizer, objective.needs)
        corrupt = corruption_of(pretrain, vocabulary, bert_tokenizer)
        texts: TextSplits = load_texts(settings)
        return make_datasets(texts, bert_tokenizer, vocabulary, settings, objective, corrupt, 3)

    return make


SPELL = MaskedSettings("spell", mask_fraction=0.5)
NOTHING_HIDDEN = PrefixSettings("bidirectional", mask_fraction=0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("texts", "pretrain", "why"),
    [
        (ENGLISH, SPELL, "spell learns Chinese characters only"),
        (ENGLISH, NOTHING_HIDDEN, r"pretrain\.mask_fraction is too small"),
        (UNKNOWN, None, "unknown|doesn't know"),
    ],
)
def test_rows_of_which_nothing_is_learnt_are_refused(make, texts, pretrain, why, streaming):
    with pytest.raises(DataError, match=rf"/path\.jsonl: no row has a label.*({why})"):
        make(texts, CHINESE, pretrain, streaming=streaming)


def test_a_tokenizer_that_knows_none_of_the_text_is_named_as_the_reason(make):
    with pytest.raises(DataError, match="100% of the tokens are unknown to the tokenizer"):
        make(UNKNOWN, None, SPELL)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("texts", "pretrain"), [(ENGLISH, SPELL), (UNKNOWN, None)])
def test_held_out_rows_that_ask_nothing_are_refused(make, texts, pretrain, streaming):
    with pytest.raises(DataError, match=r"/eval_path\.jsonl: the held-out part.*label") as caught:
        make(CHINESE, texts, pretrain, streaming=streaming)
    assert "raise data.eval_fraction, or give more texts in data.eval_path" in str(caught.value)


@pytest.mark.parametrize("pretrain", [None, SPELL])
def test_a_few_rows_without_labels_are_no_matter(make, pretrain):
    rows = make(
        [*CHINESE, UNKNOWN[0]],
        ["我们一起走，天气好。" * 2, UNKNOWN[1], "好我们走"],
        pretrain,
        pack=False,
    )
    assert len(rows.train) == 9
    assert len(rows.eval) == 3


def test_of_pairs_the_part_that_has_one_document_is_named(make):
    pretrain = MaskedSettings(mask_fraction=0.5, next_sentence=True)
    documents = ["The house is red. It is red. He is playing.", "Is it red? It is. The end is."]
    with pytest.raises(DataError, match="found one document only") as caught:
        make(documents, ["A house is a house. It is. Is it?"], pretrain)
    told = str(caught.value)
    assert "eval_path.jsonl: the held-out part can't be used" in told
    assert "data.eval_fraction" in told
    with pytest.raises(DataError, match=r"found one document only.*data\.unit") as caught:
        make(documents[:1], ["A house is a house. It is. Is it?"], pretrain)
    assert "held-out" not in str(caught.value)
