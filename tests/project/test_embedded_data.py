"""What comes with the project: a checkpoint that writes its corpus, and rows made by a script."""

import csv
import importlib
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
CHECKPOINT = DATA / "checkpoints" / "tiny-gpt2"
CHATGLM = DATA / "checkpoints" / "tiny-chatglm2-int4"
BERT = DATA / "checkpoints" / "tiny-bert-chinese"
T5 = DATA / "checkpoints" / "tiny-t5"
MAX_CHECKPOINT_BYTES = 4_000_000


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scripts of data/ importable, as they are for one another."""
    monkeypatch.syspath_prepend(str(DATA))
    for script in DATA.glob("*.py"):
        monkeypatch.delitem(sys.modules, script.stem, raising=False)


def rows_of(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ","))


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.?!。？！])\s*|\n+", text) if part.strip()]


@pytest.mark.parametrize("folder", [CHECKPOINT, CHATGLM, BERT, T5], ids=lambda path: path.name)
def test_checkpoint_folder_is_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_CHECKPOINT_BYTES


def test_chatglm_checkpoint_has_the_files_and_tensors_of_the_published_one() -> None:
    import torch

    files = {"config.json", "pytorch_model.bin", "tokenizer.model", "tokenizer_config.json"}
    assert {path.name for path in CHATGLM.iterdir()} == files | {"README.md"}
    config = json.loads((CHATGLM / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["quantization_bit"], config["num_layers"]) == (
        "chatglm", 4, 4,
    )  # fmt: skip
    tensors = torch.load(CHATGLM / "pytorch_model.bin", weights_only=True)
    packed = {name for name in tensors if f"{name}_scale" in tensors}
    assert {name.split(".")[-2] for name in packed} == {
        "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h",
    }  # fmt: skip
    assert len(packed) == 4 * config["num_layers"]
    assert {tensors[name].dtype for name in packed} == {torch.int8}
    assert {tensors[name].dtype for name in tensors.keys() - packed} == {torch.float16}
    total = sum(
        tensor.numel() * (2 if name in packed else 1)
        for name, tensor in tensors.items()
        if not name.endswith("_scale")
    )
    card = (CHATGLM / "README.md").read_text(encoding="utf-8")
    assert f"{total:,} parameters" in card


@pytest.mark.parametrize("folder", [CHECKPOINT, CHATGLM], ids=lambda path: path.name)
@pytest.mark.parametrize("beginning", ["It is a", "The quiz book of Greenhill", "这是青山村"])
def test_checkpoint_writes_sentences_of_its_corpus(
    scripts: None, folder: Path, beginning: str
) -> None:
    import torch
    from make_corpus import make_documents
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import sft_kit.models.chatglm  # noqa: F401  (makes the Auto classes know ChatGLM2)

    known = {part for text in make_documents(1000, seed=7) for part in sentences(text)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(beginning, return_tensors="pt")
    output = model.generate(**ids, do_sample=False, max_new_tokens=60, pad_token_id=0)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    written = sentences(text)[:-1]  # the last one may be cut off
    assert len(written) >= 3
    assert sum(sentence in known for sentence in written) >= len(written) / 2, written


def test_instruction_rows_are_what_the_script_makes(scripts: None) -> None:
    from make_instructions import SEED, make_rows

    lines = (DATA / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == make_rows(SEED)


def test_instruction_rows_are_many_bilingual_and_sound() -> None:
    from sft_kit.data.splits import load_conversations
    from sft_kit.settings import DataSettings

    rows = load_conversations(DataSettings(str(DATA / "instructions.jsonl")))
    questions = [row.messages[0]["content"] for row in [*rows.train, *rows.eval]]
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", question)) for question in questions)
    assert len(questions) >= 300
    assert chinese >= 100
    assert len(questions) - chinese >= 100
    assert (rows.report.num_bad_rows, rows.report.num_duplicates) == (0, 0)


@pytest.mark.parametrize(
    ("script", "name"), [("make_sentiment", "sentiment_zh.tsv"), ("make_topics", "topics.csv")]
)
def test_labelled_files_are_what_their_scripts_make(
    scripts: None, script: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--output", str(tmp_path / name)])
    importlib.import_module(script).main()
    assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_reviews_are_short_balanced_and_all_different() -> None:
    rows = rows_of("sentiment_zh.tsv")
    texts = [row["text"] for row in rows]
    assert Counter(row["label"] for row in rows) == {"正面": 600, "负面": 600}
    assert len(set(texts)) == len(texts)
    assert {10 <= len(text) <= 40 for text in texts} == {True}
    assert all(re.fullmatch("[\u4e00-\u9fff，。]+", text) for text in texts)


def test_reviews_cannot_be_told_by_counting_characters() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import ShuffleSplit, cross_val_score
    from sklearn.pipeline import make_pipeline

    rows = rows_of("sentiment_zh.tsv")
    scores = cross_val_score(
        make_pipeline(CountVectorizer(analyzer="char"), LogisticRegression(max_iter=1000)),
        [row["text"] for row in rows],
        [row["label"] for row in rows],
        cv=ShuffleSplit(5, test_size=0.2, random_state=0),
    )
    assert 0.75 <= scores.mean() <= 0.93  # learnable, but not by words alone


def test_questions_have_many_rows_a_label_in_both_languages() -> None:
    rows = rows_of("topics.csv")
    texts = [row["text"] for row in rows]
    counts = Counter(row["label"] for row in rows)
    chinese = Counter(row["label"] for row in rows if re.search("[\u4e00-\u9fff]", row["text"]))
    assert len(rows) >= 800
    assert len(counts) == 8
    assert min(counts.values()) >= 40
    assert all(0.25 <= chinese[label] / count <= 0.75 for label, count in counts.items())
    assert len(set(texts)) == len(texts)


def test_all_questions_for_one_fact_are_one_group(scripts: None) -> None:
    from make_topics import facts
    from questions import all_questions

    named = facts(all_questions())
    groups = {
        wording: group
        for group, questions in named.items()
        for question in questions
        for wording in question.wordings
    }
    for same in (
        ("What is the opposite of hot?", "Name the opposite of cold.", "“冷”的反义词是什么？"),
        (
            "Which day comes after Monday?",
            "What is the day before Tuesday?",
            "星期一的后面是哪一天？",
        ),
        ("What pet does Tom have?", "汤姆养了什么动物？"),
        ("What does a hen eat?", "请告诉我母鸡吃什么。"),
        ("What is 2 plus 5?", "2加5等于几？"),
    ):
        assert len({groups[text] for text in same}) == 1, same
    rows = rows_of("topics.csv")
    assert {row["text"]: row["group"] for row in rows}.items() <= groups.items()
    labels = defaultdict(set)
    for row in rows:
        labels[row["group"]].add(row["label"])
    assert {len(of_group) for of_group in labels.values()} == {1}


def test_splitting_the_questions_by_group_keeps_facts_on_one_side() -> None:
    from sft_kit.data.labelled.splits import load_labelled
    from sft_kit.settings import LabelledDataSettings

    settings = LabelledDataSettings(str(DATA / "topics.csv"), group="group", eval_fraction=0.2)
    rows = load_labelled(settings)
    train, held_out = ({row.group for row in side} for side in (rows.train, rows.eval))
    assert len(train & held_out) == 0
    assert len(rows.train) + len(rows.eval) == len(rows_of("topics.csv"))
    assert None not in train | held_out


def test_wordpiece_vocabulary_is_what_the_script_makes_and_covers_every_text(
    scripts: None,
) -> None:
    from train_wordpiece import documents, reviews, train
    from transformers import AutoTokenizer

    stored = AutoTokenizer.from_pretrained(BERT)
    texts = reviews()
    made = train([*documents(), *texts])
    assert made.get_vocab() == stored.get_vocab()
    tokens = (BERT / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert {token: number for number, token in enumerate(tokens)} == stored.get_vocab()
    labelled = [row["text"] for row in rows_of("sentiment_zh.tsv")]
    unknown = [text for text in labelled if stored.unk_token_id in stored(text)["input_ids"]]
    assert len(unknown) <= 12  # characters of their own: pretraining never saw these texts
    assert set(texts).isdisjoint(labelled)


def test_bert_reads_whole_reviews_and_runs_of_sentences_it_has_tokens_for(scripts: None) -> None:
    from make_chinese_texts import reviews, runs
    from train_wordpiece import documents

    from sft_kit.data.corpus.sentences import sentence_starts

    whole = reviews(4000)
    parts = [run for document in documents()[:500] for run in runs(document)]
    assert len(set(whole)) == 4000
    assert set(whole).isdisjoint(row["text"] for row in rows_of("sentiment_zh.tsv"))
    assert {len(sentence_starts(text)) for text in whole} == {1}  # no next sentence is asked
    assert min(len(sentence_starts(text)) for text in parts) >= 2
    tokens = set((BERT / "vocab.txt").read_text(encoding="utf-8").split("\n"))
    assert set("".join([*whole, *parts])) - set(" \n") <= tokens


def test_bert_folder_has_the_layout_of_the_published_one() -> None:
    from transformers import AutoTokenizer, BertTokenizer

    assert {path.name for path in BERT.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt",
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(BERT)
    assert isinstance(tokenizer, BertTokenizer)
    encoded = tokenizer("床很软", "不贵")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        "[CLS]", "床", "很", "软", "[SEP]", "不", "贵", "[SEP]",
    ]  # fmt: skip
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert (tokenizer.pad_token, tokenizer.mask_token) == ("[PAD]", "[MASK]")


@pytest.mark.parametrize(
    ("auto", "missing"),
    [
        ("AutoModel", set()),
        ("AutoModelForMaskedLM", set()),
        ("AutoModelForPreTraining", set()),
        ("AutoModelForNextSentencePrediction", set()),
        ("AutoModelForSequenceClassification", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_bert_loads_with_no_weight_missing_but_a_new_head(auto: str, missing: set[str]) -> None:
    import transformers

    _, info = getattr(transformers, auto).from_pretrained(BERT, output_loading_info=True)
    assert set(info["missing_keys"]) == missing
    assert not info["mismatched_keys"]


def test_bert_is_stored_in_half_precision_and_its_card_counts_it_right() -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForPreTraining

    assert {tensor.dtype for tensor in load_file(BERT / "model.safetensors").values()} == {
        torch.float16
    }
    model = AutoModelForPreTraining.from_pretrained(BERT)
    assert model.dtype == torch.float32
    card = (BERT / "README.md").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,} parameters" in card
    assert f"{model.bert.num_parameters():,} of them" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("房[MASK]很干净，下次还来。", "间"),
        ("虽然味道很好，但[MASK]价格太贵了，不推荐。", "是"),
        ("屏幕很清晰，值得推[MASK]。", "荐"),
        ("没有想[MASK]中那么贵。", "象"),
        ("香[MASK]是黄色的。", "蕉"),
        ("法国的首[MASK]是巴黎。", "都"),
        ("“高”的反义[MASK]是“低”。", "词"),
    ],
)
def test_bert_fills_the_blanks_of_its_world(text: str, expected: str) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BERT)
    model = AutoModelForMaskedLM.from_pretrained(BERT)
    encoded = tokenizer(text, return_tensors="pt")
    place = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    with torch.no_grad():
        likeliest = model(**encoded).logits[0, place].topk(5).indices
    assert expected in tokenizer.convert_ids_to_tokens(likeliest)


@pytest.mark.slow
def test_unigram_vocabulary_is_what_the_script_makes_and_covers_every_text(
    scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_unigram
    from make_corpus import NUM_DOCUMENTS, SEED, make_documents
    from train_tokenizer import texts
    from transformers import AutoTokenizer

    corpus, instructions = tmp_path / "corpus.jsonl", DATA / "instructions.jsonl"
    rows = (json.dumps({"text": text}) for text in make_documents(NUM_DOCUMENTS, SEED))
    corpus.write_text("\n".join(rows), encoding="utf-8")
    words = ["train_unigram", "--corpus", str(corpus), "--output", str(tmp_path / "made")]
    monkeypatch.setattr(sys, "argv", words)
    train_unigram.main()
    assert (tmp_path / "made" / "tokenizer.json").read_bytes() == (
        T5 / "tokenizer.json"
    ).read_bytes()
    stored = AutoTokenizer.from_pretrained(T5)
    ids = stored(list(texts(corpus, instructions)), verbose=False)["input_ids"]
    assert not any(stored.unk_token_id in text for text in ids)


def test_t5_folder_has_the_layout_of_the_published_one() -> None:
    from transformers import AutoTokenizer, T5Tokenizer

    assert {path.name for path in T5.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(T5)
    assert isinstance(tokenizer, T5Tokenizer)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    last = range(len(tokenizer) - 1, len(tokenizer) - 101, -1)
    assert tokenizer.convert_tokens_to_ids(sentinels) == list(last)


@pytest.mark.parametrize("auto", ["AutoModelForSeq2SeqLM", "T5EncoderModel"])
def test_t5_is_stored_whole_in_half_precision_and_its_card_counts_it_right(auto: str) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file

    stored = load_file(T5 / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    model, info = getattr(transformers, auto).from_pretrained(T5, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert model.dtype == torch.float32
    card = (T5 / "README.md").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,}" in card
