"""What stands in the repository: file sizes, and READMEs that say the same in two languages."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_FILE_BYTES = 5 * 1024 * 1024
ENGLISH = REPOSITORY / "README.md"
CHINESE = REPOSITORY / "README.zh-CN.md"
SETUP_PREFIX = "pip install -c constraints.txt -e "


def tracked_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    paths = (REPOSITORY / name for name in done.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def code_lines(readme: Path) -> list[str]:
    """Lines inside fenced code blocks, without comments, blanks and trailing space."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", readme.read_text(encoding="utf-8"), re.M | re.S)
    lines = [
        re.sub(r"(^|\s+)#.*", "", line).rstrip() for block in blocks for line in block.split("\n")
    ]
    return [line for line in lines if line]


def headings(readme: Path) -> list[int]:
    """Level of each heading outside code blocks, in order."""
    text = re.sub(r"^```.*?^```", "", readme.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]


def test_no_file_is_larger_than_five_megabytes() -> None:
    files = tracked_files()
    assert len(files) >= 50
    assert [path for path in files if path.stat().st_size > MAX_FILE_BYTES] == []


def test_both_readmes_show_the_same_commands() -> None:
    assert len(code_lines(ENGLISH)) >= 5
    assert code_lines(CHINESE) == code_lines(ENGLISH)


def test_both_readmes_have_the_same_sections() -> None:
    assert len(headings(ENGLISH)) >= 5
    assert headings(CHINESE) == headings(ENGLISH)


def test_readme_has_the_two_setup_commands_that_ci_takes_from_it() -> None:
    commands = [line for line in code_lines(ENGLISH) if line.startswith(SETUP_PREFIX)]
    first, second = commands
    assert first == (
        f"{SETUP_PREFIX}. && accelerate launch recipes/sft_gpt2_lora.py "
        "model.checkpoint=data/checkpoints/tiny-gpt2"
    )
    assert second == f'{SETUP_PREFIX}".[test]" && pytest -n auto --dist loadfile'
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert SETUP_PREFIX in ci
    assert "README.md" in ci


def test_files_named_in_the_readme_exist() -> None:
    names = {
        word.split("=")[-1]
        for line in code_lines(ENGLISH)
        for word in line.split()
        if re.search(r"(^|=)(recipes|data)/[\w./-]+$", word)
    }
    assert names
    made = {"data/corpus.jsonl": "data/make_corpus.py"}  # not in git; the README says how to
    assert set(made) <= names
    assert set(made.values()) <= names
    names -= set(made)
    assert [name for name in sorted(names) if not (REPOSITORY / name).exists()] == []
