"""What comes with the project: a checkpoint that writes its corpus, and rows made by a script."""

import json
import re
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
CHECKPOINT = DATA / "checkpoints" / "tiny-gpt2"
MAX_CHECKPOINT_BYTES = 4_000_000


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scripts of data/ importable, as they are for one another."""
    monkeypatch.syspath_prepend(str(DATA))
    for name in ("world", "questions", "make_corpus", "make_instructions"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.?!。？！])\s*|\n+", text) if part.strip()]


def test_checkpoint_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= MAX_CHECKPOINT_BYTES


@pytest.mark.parametrize("beginning", ["It is a", "The quiz book of Greenhill", "这是青山村"])
def test_checkpoint_writes_sentences_of_its_corpus(scripts: None, beginning: str) -> None:
    import torch
    from make_corpus import make_documents
    from transformers import AutoModelForCausalLM, AutoTokenizer

    known = {part for text in make_documents(1000, seed=7) for part in sentences(text)}
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    ids = tokenizer(beginning, return_tensors="pt")
    output = model.generate(**ids, do_sample=False, max_new_tokens=60, pad_token_id=0)
    written = sentences(tokenizer.decode(output[0]))[:-1]  # the last one may be cut off
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
