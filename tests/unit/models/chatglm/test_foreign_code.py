"""The code of a checkpoint is not run for its tokenizer, whatever its files name."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sft_kit.errors import CheckpointError
from sft_kit.models.base import load_tokenizer
from sft_kit.models.chatglm import ChatGLMTokenizer
from sft_kit.settings import ModelSettings

CODE = "tokenization_chatglm.ChatGLMTokenizer"


@pytest.fixture
def trapped(tmp_path: Path, chatglm_fixtures: Path) -> Path:
    """A checkpoint whose tokenizer code leaves a mark beside it when it is run."""
    folder = shutil.copytree(chatglm_fixtures / "chatglm2_tiny_int4", tmp_path / "trapped")
    mark = tmp_path / "was_run"
    code = (
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass ChatGLMTokenizer:\n    pass\n"
    )
    (folder / "tokenization_chatglm.py").write_text(code)
    return folder


def write(folder: Path, name: str, **fields: object) -> None:
    settings = json.loads((folder / name).read_text())
    settings.update(fields)
    kept = {key: value for key, value in settings.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


@pytest.mark.parametrize("auto_map", [[CODE, None], [None, CODE], {"AutoTokenizer": [CODE, None]}])
@pytest.mark.parametrize("name", [None, "ChatGLM4Tokenizer", "LlamaTokenizer"])
@pytest.mark.parametrize("load", [AutoTokenizer, AutoConfig, AutoModelForCausalLM])
def test_a_tokenizer_that_only_the_code_could_give_is_refused(
    trapped: Path, auto_map: object, name: str | None, load: type
):
    write(trapped, "tokenizer_config.json", tokenizer_class=name, auto_map=auto_map)
    with pytest.raises(CheckpointError, match=r'tokenizer_class: found .*"ChatGLMTokenizer"'):
        load.from_pretrained(trapped, trust_remote_code=True)
    assert not (trapped.parent / "was_run").exists()


def test_a_name_in_config_json_does_not_help_the_code(trapped: Path):
    write(trapped, "tokenizer_config.json", tokenizer_class=None)
    write(trapped, "config.json", tokenizer_class="ChatGLMTokenizer")
    with pytest.raises(CheckpointError, match="found null and code of its own"):
        AutoTokenizer.from_pretrained(trapped, trust_remote_code=True)
    assert not (trapped.parent / "was_run").exists()


def test_the_mark_is_left_where_nothing_stops_the_code(
    trapped: Path, monkeypatch: pytest.MonkeyPatch
):
    module = "sft_kit.models.chatglm.configuration.refuse_tokenizer_code"
    monkeypatch.setattr(module, lambda *_: None)
    write(trapped, "tokenizer_config.json", tokenizer_class="ChatGLM4Tokenizer")
    with pytest.raises(AttributeError):  # its empty class is no tokenizer
        AutoTokenizer.from_pretrained(trapped, trust_remote_code=True)
    assert (trapped.parent / "was_run").exists()


@pytest.mark.parametrize("name", ["ChatGLMTokenizer", "ChatGLMTokenizerFast"])
def test_the_published_name_loads_this_packages_tokenizer(trapped: Path, name: str):
    write(trapped, "tokenizer_config.json", tokenizer_class=name)
    tokenizer = AutoTokenizer.from_pretrained(trapped, trust_remote_code=True)
    assert type(tokenizer) is ChatGLMTokenizer
    assert not (trapped.parent / "was_run").exists()


def test_a_folder_without_tokenizer_config_loads_too(trapped: Path):
    expected = load_tokenizer(ModelSettings(str(trapped)))("你好 hello")["input_ids"]
    (trapped / "tokenizer_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(trapped, trust_remote_code=True)
    assert type(tokenizer) is ChatGLMTokenizer
    assert tokenizer("你好 hello")["input_ids"] == expected
    assert not (trapped.parent / "was_run").exists()
