"""What comes with the project: a checkpoint that writes its corpus, and rows made by a script."""

import json
import re
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
CHECKPOINT = DATA / "checkpoints" / "tiny-gpt2"
CHATGLM = DATA / "checkpoints" / "tiny-chatglm2-int4"
MAX_CHECKPOINT_BYTES = 4_000_000


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scripts of data/ importable, as they are for one another."""
    monkeypatch.syspath_prepend(str(DATA))
    for name in ("world", "questions", "make_corpus", "make_instructions"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.?!。？！])\s*|\n+", text) if part.strip()]


@pytest.mark.parametrize("folder", [CHECKPOINT, CHATGLM], ids=lambda path: path.name)
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
