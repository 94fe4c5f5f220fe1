"""The tokenizer, against the original code's outputs and against sentencepiece."""

import copy
import json
import pickle
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import sft_kit.models.chatglm.configuration  # noqa: F401  registers the config
from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.prompts import CHAT_TEMPLATES
from sft_kit.models.chatglm.tokenization import ChatGLMTokenizer
from sft_kit.models.chatglm.tokenizer_files import special_tokens

FIXTURES = Path(__file__).parents[3] / "fixtures" / "chatglm"
FOLDERS = ["chatglm2_tiny_fp16", "chatglm2_tiny_int4", "chatglm3_tiny_fp16"]
TOKENIZER_FILES = ["tokenizer.model", "tokenizer_config.json", "config.json"]
NUM_PIECES = 460
SPELLED_SPECIALS = ["[gMASK]", "</s>", "<|user|>", "<unk>"]


@cache
def load(name: str) -> ChatGLMTokenizer:
    return AutoTokenizer.from_pretrained(FIXTURES / name)


@cache
def expected(name: str) -> dict:
    return json.loads((FIXTURES / name / "expected_tokenizer.json").read_text("utf-8"))


@cache
def oracle() -> sentencepiece.SentencePieceProcessor:
    path = FIXTURES / "chatglm2_tiny_fp16" / "tokenizer.model"
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tokenizer's files of a ChatGLM2 checkpoint, to be changed."""
    return copy_of("chatglm2_tiny_fp16", tmp_path / "checkpoint")


def copy_of(name: str, target: Path) -> Path:
    target.mkdir()
    for file in TOKENIZER_FILES:
        (target / file).write_bytes((FIXTURES / name / file).read_bytes())
    return target


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")


# --- the original code's outputs -----------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_special_tokens_have_the_original_ids(name):
    tokenizer = load(name)
    for token, token_id in expected(name)["specials"].items():
        assert tokenizer.get_command(token) == token_id
    assert len(tokenizer) == expected(name)["vocab_size"]
    assert tokenizer.padding_side == expected(name)["padding_side"] == "left"
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 0, 2)
    assert tokenizer.bos_token_id is None
    assert tokenizer.model_max_length == 1024


@pytest.mark.parametrize("name", FOLDERS)
def test_every_text_gets_the_original_ids(name):
    tokenizer, outputs = load(name), expected(name)
    texts = outputs["texts"]
    assert len(texts) == 15
    assert tokenizer(texts, split_special_tokens=True)["input_ids"] == outputs["ids"]
    without = tokenizer(texts, split_special_tokens=True, add_special_tokens=False)
    assert without["input_ids"] == outputs["ids_no_special"]
    parsed = tokenizer(texts)["input_ids"]  # as every tokenizer of transformers does by default
    for text, found, original in zip(texts, parsed, outputs["ids"], strict=True):
        spells = any(token in text for token in tokenizer.all_special_tokens)
        assert (found != original) == spells, text


@pytest.mark.parametrize("name", FOLDERS)
def test_a_pair_ends_with_the_end_token(name):
    assert load(name)("你好", "Hello")["input_ids"] == expected(name)["pair_ids"]


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_decode_to_the_original_texts(name):
    tokenizer, outputs = load(name), expected(name)
    for ids, text in zip(outputs["ids"], outputs["decoded_no_special"], strict=True):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    for ids, text in zip(outputs["ids_no_special"], outputs["decoded_no_special"], strict=True):
        assert tokenizer.decode(ids) == text
    # The original shows special tokens in ChatGLM3 only, as "[gMASK]sop".
    if tokenizer.family == "chatglm3":
        shown = [text.replace("[gMASK]sop", "[gMASK]<sop>", 1) for text in outputs["decoded"]]
        assert tokenizer.batch_decode(outputs["ids"]) == shown
    else:
        hidden = tokenizer.batch_decode(outputs["ids"], skip_special_tokens=True)
        assert hidden == outputs["decoded"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_batch_is_padded_on_the_left_as_originally(name):
    outputs = expected(name)
    batch = load(name)(outputs["texts"][:2], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == outputs["batch"]["input_ids"]
    assert batch["attention_mask"].tolist() == outputs["batch"]["attention_mask"]
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert positions.tolist() == outputs["batch"]["position_ids"]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_role_tokens_in_a_text_are_parsed_as_the_original_does_when_asked_to():
    texts = ["<|user|>\n hi<|assistant|>", "a<|system|>b"]
    ids = load("chatglm3_tiny_fp16")(texts)["input_ids"]
    assert ids == expected("chatglm3_tiny_fp16")["encode_special_tokens_ids"]


# --- against sentencepiece -----------------------------------------------------------------------

ALPHABETS = [
    " ",
    "\n\t\r",
    "ab",
    "hello wrd",
    "你好今天气很，。",
    "\u2581 ",
    "=-#/*.",
    "😀👍🏽é\u0301\u200d",
    "\x00\x7f\ufeff\ufffd\U0010ffff",
]
texts = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(ALPHABETS).flatmap(lambda letters: st.text(letters, max_size=12)),
        max_size=8,
    ).map("".join),
)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_any_text_is_encoded_as_sentencepiece_encodes_it_and_comes_back(text):
    tokenizer = load("chatglm2_tiny_fp16")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == oracle().encode(text)
    assert tokenizer.decode(ids) == oracle().decode(ids)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(3, NUM_PIECES - 1) | st.integers(3, 258), max_size=40))
def test_any_ids_are_decoded_as_sentencepiece_decodes_them(ids):
    assert load("chatglm3_tiny_fp16").decode(ids) == oracle().decode(ids)


def test_a_bad_byte_costs_only_itself():
    ids = [load("chatglm2_tiny_fp16").convert_tokens_to_ids(f"<0x{b:02X}>") for b in b"\xe4\xbd\n"]
    assert load("chatglm2_tiny_fp16").decode(ids) == "\ufffd\ufffd\n"
    assert load("chatglm2_tiny_fp16").decode(ids[:2]) == "\ufffd\ufffd"


def test_words_that_hold_sop_and_eop_survive():
    tokenizer = load("chatglm3_tiny_fp16")
    for text in ("sophisticated", "develop", "sop", "eop", "a sop eop people philosophy"):
        ids = tokenizer(text)["input_ids"]
        assert ids[2:] == oracle().encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_ids_without_a_token_add_nothing():
    tokenizer = load("chatglm2_tiny_fp16")
    ids = tokenizer("Hello 你好", add_special_tokens=False)["input_ids"]
    padded = [511, -1, *ids[:2], 465, 10**6, *ids[2:], 511]
    assert tokenizer.decode(padded) == "Hello 你好"
    assert tokenizer.decode([466]) == ""


def test_skipping_special_tokens_skips_the_unused_begin_token_too():
    tokenizer = load("chatglm2_tiny_fp16")
    ids = [461, 463, 1, *tokenizer("Hello", add_special_tokens=False)["input_ids"], 2, 0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hello"
    assert tokenizer.decode(ids) == "[gMASK]<sop><s> Hello</s><unk>"
    assert tokenizer.decode(2) == "</s>"


def test_token_by_token_the_text_only_grows_but_for_unfinished_characters():
    tokenizer = load("chatglm2_tiny_fp16")
    text = "emoji 😀 and rare 龘, two  spaces\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    seen = ""
    for end in range(1, len(ids) + 1):
        now = tokenizer.decode(ids[:end])
        if not now.endswith("\ufffd"):
            assert now.startswith(seen)
            seen = now
    assert seen == text


# --- loading and saving --------------------------------------------------------------------------


def test_all_control_tokens_are_listed_as_special():
    assert set(load("chatglm3_tiny_fp16").all_special_tokens) == {
        "<unk>", "</s>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
        "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    }  # fmt: skip
    assert len(load("chatglm2_tiny_fp16").all_special_tokens) == 7


def test_an_unknown_command_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match=r"<\|user\|>.* is no special token; there are .*\[gMASK\]"):
        load("chatglm2_tiny_fp16").get_command("<|user|>")


@pytest.mark.parametrize("name", ["chatglm2_tiny_fp16", "chatglm3_tiny_fp16"])
def test_a_saved_folder_holds_both_formats_and_loads_alike(name, tmp_path):
    tokenizer = load(name)
    tokenizer.save_pretrained(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert files == {
        "chat_template.jinja", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    original = (FIXTURES / name / "tokenizer.model").read_bytes()
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == original
    assert "auto_map" not in (tmp_path / "saved" / "tokenizer_config.json").read_text("utf-8")
    # No config.json: the folder of an adapter has none.
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert_alike(loaded, tokenizer)
    loaded.save_pretrained(tmp_path / "saved")  # onto itself
    assert_alike(AutoTokenizer.from_pretrained(tmp_path / "saved"), tokenizer)


def assert_alike(loaded: ChatGLMTokenizer, tokenizer: ChatGLMTokenizer) -> None:
    assert type(loaded) is ChatGLMTokenizer
    assert loaded.family == tokenizer.family
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template == CHAT_TEMPLATES[tokenizer.family]
    assert loaded.all_special_tokens == tokenizer.all_special_tokens
    assert loaded.model_max_length == tokenizer.model_max_length == 1024
    assert loaded.padding_side == "left"
    cases = expected("chatglm3_tiny_fp16")["texts"]
    assert loaded(cases)["input_ids"] == tokenizer(cases)["input_ids"]
    assert loaded("a", "b")["input_ids"] == tokenizer("a", "b")["input_ids"]


def test_a_saved_folder_starts_from_tokenizer_json(folder, tmp_path, monkeypatch):
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")

    def fail(*args: object) -> None:
        pytest.fail("tokenizer.model was read piece by piece")

    monkeypatch.setattr("sft_kit.models.chatglm.tokenizer_files.read_pieces", fail)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == 465
    (tmp_path / "saved" / "tokenizer.model").unlink()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == 465


def test_copies_and_pickles_are_alike():
    tokenizer = load("chatglm3_tiny_fp16")
    assert_alike(copy.deepcopy(tokenizer), tokenizer)
    assert_alike(pickle.loads(pickle.dumps(tokenizer)), tokenizer)


def test_tokens_that_a_user_added_survive_saving(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>"]},
                                 replace_extra_special_tokens=False)  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.convert_tokens_to_ids(["<tool>", "<think>"]) == [465, 466]
    assert loaded.all_special_tokens == [*load("chatglm2_tiny_fp16").all_special_tokens, "<think>"]
    text = "a<tool>b<think>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text, add_special_tokens=False)["input_ids"]) == text


def test_a_token_that_can_not_get_its_id_is_refused(folder):
    entry = {"content": "<tool>", "lstrip": False, "normalized": False, "rstrip": False,
             "single_word": False, "special": True}  # fmt: skip
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={"465": entry})
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<tool>") == 465
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={"466": entry})
    with pytest.raises(CheckpointError, match="can't give '<tool>' the id 466"):
        AutoTokenizer.from_pretrained(folder)


CODE = "import pathlib\npathlib.Path({marker!r}).write_text('ran')\n# <|user|>\n"


@pytest.mark.parametrize("trust", [True, False, None])
def test_no_code_of_a_folder_is_ever_run(folder, tmp_path, trust):
    marker = tmp_path / "ran"
    for file in ("tokenization_chatglm.py", "configuration_chatglm.py", "modeling_chatglm.py"):
        (folder / file).write_text(CODE.format(marker=str(marker)), "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    assert type(tokenizer) is ChatGLMTokenizer
    assert not marker.exists()
    assert tokenizer.family == "chatglm3"  # read from that code as text


def test_the_family_given_is_kept_with_the_tokenizer(folder, tmp_path):
    (folder / "config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder, family="chatglm3")
    assert len(tokenizer) == 469
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").family == "chatglm3"
    other = AutoTokenizer.from_pretrained(tmp_path / "saved", family="chatglm2")
    assert (len(other), other.chat_template) == (465, CHAT_TEMPLATES["chatglm2"])
    (tmp_path / "saved" / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="special tokens of chatglm2"):
        AutoTokenizer.from_pretrained(tmp_path / "saved", family="chatglm2")


def test_a_family_that_is_none_is_refused(folder):
    with pytest.raises(CheckpointError, match="chatglm2 or chatglm3"):
        AutoTokenizer.from_pretrained(folder, family="chatglm4")


def test_the_settings_of_the_last_published_chatglm3_do_no_harm(tmp_path):
    """Its tokenizer_config.json lists "sop" as a token, an endless length and a template."""
    folder = copy_of("chatglm3_tiny_fp16", tmp_path / "checkpoint")
    names = ["[gMASK]", "sop", "<|user|>", "<|observation|>"]
    edit_json(
        folder / "tokenizer_config.json",
        added_tokens_decoder={
            str(id_): {"content": name, "lstrip": False, "normalized": True, "rstrip": False,
                       "single_word": False, "special": False}
            for id_, name in zip([461, 463, 466, 468], names, strict=True)
        },
        additional_special_tokens=["<|user|>", "sop", "<|observation|>"],
        chat_template="{{ '[gMASK]sop' }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        model_max_length=1000000000000000019884624838656,
        unk_token="<unk>", pad_token="<unk>", eos_token="</s>",
    )  # fmt: skip
    assert_alike(AutoTokenizer.from_pretrained(folder), load("chatglm3_tiny_fp16"))


def test_a_template_of_the_users_own_is_kept(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder, chat_template="{{ messages[0].content }}")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.chat_template == "{{ messages[0].content }}"


def test_a_length_of_the_users_own_is_kept(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=77)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == 77
    edit_json(folder / "config.json", seq_length=32768)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 32768
    (folder / "config.json").unlink()
    assert AutoTokenizer.from_pretrained(folder).model_max_length > 10**20


# --- refusals ------------------------------------------------------------------------------------


def test_more_tokens_than_the_model_has_rows_are_refused_with_both_figures(folder):
    edit_json(folder / "config.json", padded_vocab_size=465)
    assert len(AutoTokenizer.from_pretrained(folder)) == 465
    edit_json(folder / "config.json", padded_vocab_size=464)
    with pytest.raises(CheckpointError) as caught:
        ChatGLMTokenizer.from_pretrained(folder)
    assert str(folder / "tokenizer.model") in str(caught.value)
    assert "has 465 tokens, the model beside it 464" in str(caught.value)


def test_the_tokenizer_of_a_much_larger_model_is_missed(folder):
    edit_json(folder / "config.json", padded_vocab_size=65024)
    with pytest.raises(CheckpointError, match="has 465 tokens, the model beside it 65024"):
        ChatGLMTokenizer.from_pretrained(folder)


def test_the_first_generation_is_recognised_by_its_file(folder):
    (folder / "tokenizer.model").rename(folder / "ice_text.model")
    with pytest.raises(CheckpointError, match=r"ice_text\.model: it is ChatGLM-6B of the first"):
        ChatGLMTokenizer.from_pretrained(folder)


def test_a_folder_without_tokenizer_is_refused(folder, tmp_path):
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.model") as caught:
        AutoTokenizer.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_a_copy_beside_the_file_does_not_hide_it(folder):
    shutil.copy(folder / "tokenizer.model", folder / "tokenizer.model.old")
    assert len(AutoTokenizer.from_pretrained(folder)) == 465


def test_a_damaged_tokenizer_model_is_refused(folder):
    data = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="bytes are missing at its end"):
        AutoTokenizer.from_pretrained(folder)


def test_a_tokenizer_json_of_another_tokenizer_model_is_refused(folder, tmp_path):
    saved = tmp_path / "saved"
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    data = (saved / "tokenizer.model").read_bytes()
    (saved / "tokenizer.model").write_bytes(data.replace("该".encode(), "龘".encode()))
    with pytest.raises(CheckpointError, match=r"made from another tokenizer\.model.*delete"):
        AutoTokenizer.from_pretrained(saved)
    (saved / "tokenizer.json").unlink()
    assert AutoTokenizer.from_pretrained(saved).decode([458]) == "龘"


def test_a_foreign_tokenizer_json_gives_way_to_tokenizer_model(folder, trained_tokenizer):
    trained_tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    assert_alike(AutoTokenizer.from_pretrained(folder), load("chatglm2_tiny_fp16"))
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="has not the special tokens of chatglm2"):
        AutoTokenizer.from_pretrained(folder)


def test_a_damaged_tokenizer_json_is_refused(folder, tmp_path):
    saved = tmp_path / "saved"
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    content = json.loads((saved / "tokenizer.json").read_text("utf-8"))
    content["model"]["vocab"] = 3
    (saved / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: can't be read.*delete it"):
        AutoTokenizer.from_pretrained(saved)


# --- without this package ------------------------------------------------------------------------

STOCK = """
import json, sys
from transformers import AutoTokenizer
found = []
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "你好"}]
    found.append([
        type(tokenizer).__name__, tokenizer.padding_side, tokenizer.model_max_length,
        tokenizer(["Hello, 你好 😀", " a\\n\\n"])["input_ids"], tokenizer("a", "b")["input_ids"],
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False),
        tokenizer.decode(tokenizer("two  spaces\\n你好")["input_ids"], skip_special_tokens=True),
    ])
assert "sft_kit" not in sys.modules
print(json.dumps(found))
"""


def test_saved_folders_serve_stock_transformers(tmp_path):
    names = ["chatglm2_tiny_fp16", "chatglm3_tiny_fp16"]
    for name in names:
        load(name).save_pretrained(tmp_path / name)
    # A saved model is beside it: stock transformers does not know its model_type.
    shutil.copy(FIXTURES / names[1] / "config.json", tmp_path / names[1])
    edit_json(tmp_path / names[1] / "config.json", auto_map=None)
    command = [sys.executable, "-c", STOCK, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    chat = [{"role": "user", "content": "你好"}]
    for name, found in zip(names, json.loads(done.stdout), strict=True):
        tokenizer = load(name)
        assert found == [
            "TokenizersBackend", "left", 1024,
            tokenizer(["Hello, 你好 😀", " a\n\n"])["input_ids"], tokenizer("a", "b")["input_ids"],
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False),
            "two  spaces\n你好",
        ]  # fmt: skip


def test_stock_transformers_splits_special_tokens_as_this_package_does(tmp_path):
    tokenizer = load("chatglm3_tiny_fp16")
    tokenizer.save_pretrained(tmp_path)
    stock = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in [*expected("chatglm3_tiny_fp16")["texts"], *SPELLED_SPECIALS]:
        assert stock(text)["input_ids"] == tokenizer(text)["input_ids"]
        split = stock(text, split_special_tokens=True)["input_ids"]
        assert split == tokenizer(text, split_special_tokens=True)["input_ids"]


# --- the true tokenizer --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def true_folder(real_data: Path) -> Path:
    return real_data / "tokenizers" / "chatglm2"


@pytest.fixture(scope="session")
def true_tokenizer(true_folder: Path) -> ChatGLMTokenizer:
    return AutoTokenizer.from_pretrained(true_folder)


@pytest.fixture(scope="session")
def true_oracle(true_folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(true_folder / "tokenizer.model"))


def mixed_texts(real_data: Path, num_characters: int) -> Iterator[tuple[str, str]]:
    """Cut Chinese, English, code and random Unicode into pieces of 1 to 3,000 characters.

    Args:
        real_data: Folder of real data sets.
        num_characters: Of each of the four kinds.

    Yields:
        The kind and a text.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    files = {
        "chinese": [
            *sorted((real_data / "poetry_zh").glob("*.json")),
            real_data / "llamafactory_demo" / "alpaca_zh_demo.json",
            real_data / "chnsenticorp" / "train.tsv",
        ],
        "english": [
            real_data / "tinyshakespeare" / "input.txt",
            real_data / "wikitext2_part" / "valid.txt",
        ],
        "code": sorted(library.glob("*.py")),
    }
    draw = random.Random(11)
    for kind, paths in files.items():
        each = num_characters // len(paths) + 1
        for path in paths:
            text = path.read_text("utf-8", errors="replace")
            if path.suffix == ".json":
                text = json.dumps(json.loads(text), ensure_ascii=False, indent=1)
            start = draw.randrange(max(1, len(text) - each))
            text = text[start : start + each]
            while text:
                size = draw.choice([1, 7, 40, 300, 3000])
                yield kind, text[:size]
                text = text[size:]
    left = num_characters
    while left > 0:
        size = draw.choice([1, 7, 40, 300])
        yield "random", "".join(random_character(draw) for _ in range(size))
        left -= size


def random_character(draw: random.Random) -> str:
    low, high = draw.choice(
        [(0, 0x7F), (0, 0x2FF), (0x20, 0x20), (0x2500, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
         (0xE000, 0xFFFF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF)]
    )  # fmt: skip
    return chr(draw.randint(low, high))


def compare_encoding(
    tokenizer: ChatGLMTokenizer,
    true_oracle: sentencepiece.SentencePieceProcessor,
    texts: list[str],
) -> int:
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    wanted = true_oracle.encode(texts)
    pairs = zip(texts, found["input_ids"], wanted, strict=True)
    assert [text for text, ids, original in pairs if ids != original] == []
    return sum(map(len, wanted))


def compare_decoding(
    tokenizer: ChatGLMTokenizer,
    true_oracle: sentencepiece.SentencePieceProcessor,
    num_lists: int,
) -> None:
    draw = random.Random(12)
    # Single bytes are rare among the pieces and make all the trouble.
    ranges = [(3, 258), (3, 64788), (259, 64788)]
    lists = []
    for _ in range(num_lists):
        low, high = draw.choice(ranges)
        share = draw.random()
        lists.append([
            draw.randint(low, high) if draw.random() < share else draw.randint(3, 258)
            for _ in range(draw.randrange(60))
        ])  # fmt: skip
    wanted = true_oracle.decode(lists)
    assert [
        ids for ids, text in zip(lists, wanted, strict=True) if tokenizer.decode(ids) != text
    ] == []


def test_the_true_tokenizer_reproduces_published_ids(true_tokenizer):
    assert len(true_tokenizer) == 64794
    assert true_tokenizer.model_max_length == 32768
    ids = {"[MASK]": 64789, "[gMASK]": 64790, "[sMASK]": 64791, "sop": 64792, "eop": 64793}
    assert {token: true_tokenizer.get_command(token) for token in ids} == ids
    prompt = true_tokenizer("[Round 1]\n\n问：你好\n\n答：")["input_ids"]
    # THUDM/chatglm2-6b, the ids of `build_prompt("你好")`
    assert prompt == [64790, 64792, 790, 30951, 517, 30910, 30939, 30996, 13, 13, 54761, 31211,
                      39701, 13, 13, 55437, 31211]  # fmt: skip


def test_the_true_chatglm3_tokenizer_reproduces_published_ids(true_folder):
    tokenizer = AutoTokenizer.from_pretrained(true_folder, family="chatglm3")
    assert len(tokenizer) == 64798
    chat = [{"role": "user", "content": "你好"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    # THUDM/chatglm3-6b, the ids of `build_chat_input("你好")`
    assert ids == [64790, 64792, 64795, 30910, 13, 36474, 54591, 64796]


def test_the_true_tokenizer_agrees_with_sentencepiece(true_tokenizer, true_oracle, real_data):
    texts = [text for _, text in mixed_texts(real_data, 30_000)]
    assert sum(map(len, texts)) >= 120_000
    assert compare_encoding(true_tokenizer, true_oracle, texts) > 50_000
    compare_decoding(true_tokenizer, true_oracle, 500)


def test_the_true_tokenizer_keeps_words_that_hold_sop_and_eop(true_tokenizer, true_oracle):
    for text in ("sophisticated", "develop", "The developer's sophisticated philosophy."):
        ids = true_tokenizer(text)["input_ids"]
        assert ids[2:] == true_oracle.encode(text)
        assert true_tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_the_true_tokenizer_agrees_with_sentencepiece_on_megabytes(
    true_tokenizer, true_oracle, real_data
):
    texts = [text for _, text in mixed_texts(real_data, 600_000)]
    num_bytes = sum(len(text.encode()) for text in texts)
    assert num_bytes >= 2_000_000
    num_tokens = compare_encoding(true_tokenizer, true_oracle, texts)
    compare_decoding(true_tokenizer, true_oracle, 10_000)
    print(f"{num_bytes} bytes, {len(texts)} texts, {num_tokens} tokens, 10000 lists of ids")


def test_the_family_decides_on_the_special_tokens():
    assert special_tokens("chatglm3")[:5] == special_tokens("chatglm2")
