import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm import ChatGLMConfig
from sft_kit.models.chatglm.family import detect_family, known_family

TOKENIZER_CODE = {
    "chatglm2": 'special_tokens = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]\n',
    "chatglm3": 'role_special_tokens = ["<|system|>", "<|user|>", "<|assistant|>"]\n',
}


def make_folder(folder: Path, code: str | None = None, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if code is not None:
        (folder / "tokenization_chatglm.py").write_text(TOKENIZER_CODE[code], encoding="utf-8")
    if config:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["chatglm2_tiny_fp16", "chatglm2_tiny_int4", "chatglm3_tiny_fp16"])
def test_the_family_of_each_original_checkpoint_is_found(chatglm_fixtures: Path, name: str):
    assert detect_family(chatglm_fixtures / name) == name[:8]


def test_what_the_user_says_beats_all_that_is_found(tmp_path: Path):
    folder = make_folder(tmp_path / "chatglm3-6b", "chatglm3", family="chatglm3")
    assert detect_family(folder, "THUDM/chatglm3-6b", "chatglm2") == "chatglm2"


def test_the_family_saved_in_the_config_beats_the_code_beside_it(tmp_path: Path):
    folder = make_folder(tmp_path / "x", "chatglm2", family="chatglm3")
    assert detect_family(folder) == "chatglm3"


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_the_tokenizer_code_beats_the_names(tmp_path: Path, family: str):
    other = "chatglm2" if family == "chatglm3" else "chatglm3"
    folder = make_folder(tmp_path / other, family, _name_or_path=f"THUDM/{other}-6b")
    assert detect_family(folder, f"THUDM/{other}-6b") == family


def test_the_name_in_the_config_beats_the_folder(tmp_path: Path):
    folder = make_folder(tmp_path / "chatglm2-copy", _name_or_path="THUDM/chatglm3-6b-32k")
    assert detect_family(folder) == "chatglm3"


def test_a_name_given_beats_the_name_in_the_config(tmp_path: Path):
    folder = make_folder(tmp_path / "x", _name_or_path="THUDM/chatglm2-6b")
    assert detect_family(folder, "THUDM/chatglm3-6b") == "chatglm3"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("THUDM/chatglm2-6b-int4", "chatglm2"),
        ("THUDM/chatglm3-6b-128k", "chatglm3"),
        ("somebody/ChatGLM3-tuned", "chatglm3"),
        ("zai-org/chatglm-3", "chatglm3"),
        ("chatglm_2", "chatglm2"),
        ("chatglm-6b", None),
        ("chatglm-32b", None),
        ("glm-4-9b-chat", None),
        ("", None),
    ],
)
def test_names_tell_the_family_or_nothing(name: str, family: str | None):
    assert known_family(None, name) == family
    assert detect_family(None, name) == (family or "chatglm2")


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_the_repository_of_the_code_tells_the_family_of_a_folder_saved_again(
    tmp_path: Path, family: str
):
    code = {"AutoConfig": f"THUDM/{family}-6b--configuration_chatglm.ChatGLMConfig"}
    assert detect_family(make_folder(tmp_path / "mine", auto_map=code)) == family
    other = "chatglm2" if family == "chatglm3" else "chatglm3"
    named = make_folder(tmp_path / "y", _name_or_path=f"THUDM/{other}-6b", auto_map=code)
    assert detect_family(named) == other
    local = {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}
    assert known_family(make_folder(tmp_path / "z", auto_map=local)) is None
    assert known_family(make_folder(tmp_path / "w", auto_map=[1])) is None


def nameless_fields(fixtures: Path) -> dict[str, object]:
    """A config.json of the originals that tells no family."""
    fields = json.loads((fixtures / "chatglm2_tiny_fp16" / "config.json").read_text("utf-8"))
    del fields["_name_or_path"]
    return fields


def test_the_config_of_a_repository_counts_where_there_is_no_folder(chatglm_fixtures: Path):
    code = {"AutoModel": "THUDM/chatglm3-6b--modeling_chatglm.ChatGLMForConditionalGeneration"}
    fields = nameless_fields(chatglm_fixtures) | {"name_or_path": "someone/tuned"}
    assert ChatGLMConfig(**fields | {"auto_map": code}).family == "chatglm3"


def test_a_checkpoint_that_tells_nothing_is_warned_of_once(
    chatglm_fixtures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fields = nameless_fields(chatglm_fixtures)
    folder = make_folder(tmp_path / "mine", **fields)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(chatglm_fixtures / "chatglm2_tiny_fp16" / name, folder)
    AutoConfig.from_pretrained(folder, family="chatglm3")
    AutoTokenizer.from_pretrained(folder, family="chatglm3")
    ChatGLMConfig(**fields)
    ChatGLMConfig()
    assert not caplog.records
    for _ in range(2):
        assert AutoConfig.from_pretrained(folder).family == "chatglm2"
        assert AutoTokenizer.from_pretrained(folder).family == "chatglm2"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"nothing tells whether {folder} is" in record.getMessage()
    assert "pass family='chatglm3'" in record.getMessage()


def test_a_hub_id_counts_like_the_name_of_a_folder():
    assert detect_family(Path("THUDM/chatglm3-6b")) == "chatglm3"


def test_a_folder_that_tells_nothing_is_chatglm2_by_default(tmp_path: Path):
    folder = make_folder(tmp_path / "base", hidden_size=64)
    assert known_family(folder) is None
    assert detect_family(folder) == "chatglm2"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"{", b""])
def test_a_damaged_config_tells_nothing(tmp_path: Path, content: bytes):
    (tmp_path / "config.json").write_bytes(content)
    assert known_family(tmp_path, "chatglm3") == "chatglm3"


def test_code_in_another_encoding_is_read_as_text(tmp_path: Path):
    (tmp_path / "tokenization_chatglm.py").write_bytes(b"# \xc4\xe3\xba\xc3\n'<|user|>'\n")
    assert detect_family(tmp_path) == "chatglm3"


def test_the_code_is_not_run(tmp_path: Path):
    canary = tmp_path / "canary"
    (tmp_path / "tokenization_chatglm.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    detect_family(tmp_path)
    assert not canary.exists()


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(CheckpointError, match="found 'chatglm4'; accepts chatglm2 or chatglm3"):
        detect_family(None, explicit="chatglm4")
    folder = make_folder(tmp_path, family="glm")
    with pytest.raises(CheckpointError) as caught:
        detect_family(folder)
    assert caught.value.problems[0].where == f"{folder}/config.json"


def test_role_tokens_in_the_tokenizers_settings_tell_too(tmp_path: Path):
    folder = make_folder(tmp_path / "mine")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    assert known_family(folder) is None
    tokens = {"added_tokens_decoder": {"64795": {"content": "<|user|>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    assert known_family(folder) == "chatglm3"
