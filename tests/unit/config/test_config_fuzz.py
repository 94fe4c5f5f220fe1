"""2,000 damaged YAMLs: never a traceback, never a value other than written, always a place."""

import random
import re
from collections import Counter

import pytest
from ruamel.yaml import YAML

from sft_kit.config import read_config
from sft_kit.errors import ConfigError

RECIPE = """\
from dataclasses import dataclass, field
from peft import LoraConfig
from transformers import TrainingArguments
from sft_kit.settings import DataSettings, ModelSettings, SampleSettings

@dataclass
class Settings:
    model: ModelSettings
    adapter: LoraConfig | None
    data: DataSettings
    train: TrainingArguments
    sample: SampleSettings = field(default_factory=SampleSettings)
"""
TEXT = """\
# yaml-language-server: $schema=schema/sft_gpt2_lora.json
model:
  checkpoint: openai-community/gpt2
  quantization: nf4
adapter:
  task_type: CAUSAL_LM
  r: 8
  lora_alpha: 32
  lora_dropout: 0.05  # on the input of A
  target_modules: [c_attn, c_proj]
data:
  path: owner/instructions
  eval_fraction: 0.1
  max_length: 512
train:
  output_dir: runs/sft_gpt2_lora
  per_device_train_batch_size: 16
  learning_rate: 2e-4
  max_steps: 387
  lr_scheduler_type: linear
  warmup_steps: 2
  logging_steps: 10
  eval_strategy: steps
  eval_steps: 100
  save_steps: 100
  report_to: none
  run_name: no
  seed: 42
sample:
  prompts:
    - How are you?
    - "What is 2 + 2?"
    - 今天天气怎么样？
"""
NUM_MUTATIONS = 2_000
WRONG_TYPES = (
    "text",
    "8.5",
    "true",
    "[1, 2]",
    "{a: 1}",
    "'8'",
    "1_000",
    "0o17",
    ".5",
    "2026-01-01",
)
OUT_OF_RANGE = ("-1", "0", "-0.5", "1.5", "1e999", ".inf", "-.inf", ".nan", "99999999999999999999")
GARBAGE = ("}", "]", ": :", "%%%", "@x: 1", "---\na: 1", "...\nb", "\x07", "- a", "'open", "\tx: 1")
TAGS = ("!!python/object:os.system ", "!!str ", "!!int ", "!foo ", "! ", "!!float ")


def _lines_with_values(lines):
    return [i for i, line in enumerate(lines) if re.match(r"  \w+: \S", line)]


def _key_lines(lines):
    return [i for i, line in enumerate(lines) if re.match(r" *\w+:", line)]


def _mutate_line(lines, rng, change, candidates=None):
    index = rng.choice(candidates or range(len(lines)))
    lines[index] = change(lines[index])
    return index


def typo(lines, rng):
    def change(line):
        indent, key, rest = re.match(r"( *)(\w+)(:.*)", line).groups()
        i = rng.randrange(len(key))
        letter = rng.choice("abcdefgz_")
        edits = (
            key[:i] + key[i + 1 :],
            key[:i] + letter + key[i:],
            key[:i] + letter + key[i + 1 :],
        )
        return indent + rng.choice([edit for edit in edits if edit] or ["rr"]) + rest

    return _mutate_line(lines, rng, change, _key_lines(lines))


def _new_value(values):
    def mutate(lines, rng):
        value = rng.choice(values)
        change = lambda line: re.sub(r": .*", lambda _: f": {value}", line)  # noqa: E731
        return _mutate_line(lines, rng, change, _lines_with_values(lines))

    return mutate


def tag(lines, rng):
    change = lambda line: line.replace(": ", f": {rng.choice(TAGS)}", 1)  # noqa: E731
    return _mutate_line(lines, rng, change, _lines_with_values(lines))


def duplicate_key(lines, rng):
    source = rng.choice(_lines_with_values(lines))
    section_end = next(
        (i for i in range(source, len(lines)) if not lines[i].startswith(" ")), len(lines)
    )
    at = rng.randint(source + 1, section_end)
    lines.insert(at, lines[source])
    return at


def tab(lines, rng):
    return _mutate_line(lines, rng, lambda line: "\t" + line.lstrip(), _lines_with_values(lines))


def indentation(lines, rng):
    spaces = " " * rng.choice([0, 1, 3, 4, 6])
    return _mutate_line(lines, rng, lambda line: spaces + line.lstrip(), _lines_with_values(lines))


def nesting(lines, rng):
    depth = rng.choice([1, 3, 30, 3000])
    opening, closing = rng.choice([("[", "]"), ("{a: ", "}")])
    change = lambda line: re.sub(r": .*", f": {opening * depth}1{closing * depth}", line)  # noqa: E731
    return _mutate_line(lines, rng, change, _lines_with_values(lines))


def alias(lines, rng):
    first, second = sorted(rng.sample(_lines_with_values(lines), 2))
    if rng.random() < 0.7:
        lines[first] = lines[first].replace(": ", ": &x ", 1)
    lines[second] = re.sub(r": .*", ": *x", lines[second])
    return second


def truncated_line(lines, rng):
    return _mutate_line(lines, rng, lambda line: line[: rng.randrange(len(line) + 1)])


def truncated_file(lines, rng):
    text = "\n".join(lines)
    lines[:] = text[: rng.randrange(len(text))].split("\n")
    return


def quotes_and_spaces(lines, rng):
    form = rng.choice(
        ["  {} ", "'{}'", '"{}"', "{}  # note", '"{}', "'{}", "{}#x", "{} x", "|\n    {}"]
    )
    change = lambda line: re.sub(r": (.*)", lambda m: ": " + form.format(m[1]), line)  # noqa: E731
    return _mutate_line(lines, rng, change, _lines_with_values(lines))


def appended_garbage(lines, rng):
    lines.insert(rng.randint(0, len(lines)), rng.choice(GARBAGE))
    return


def deleted_colon(lines, rng):
    return _mutate_line(lines, rng, lambda line: line.replace(":", "", 1), _key_lines(lines))


def deleted_line(lines, rng):
    del lines[rng.randrange(len(lines))]
    return


def changed_character(lines, rng):
    letter = rng.choice("abc019.:-[]{}#&*!|>'\"%@` \t,?~é")

    def change(line):
        i = rng.randrange(len(line) + 1)
        return line[:i] + letter + line[i + rng.randint(0, 1) :]

    return _mutate_line(lines, rng, change)


def encoding_damage(lines, rng):
    return None


MUTATIONS = {
    "typo of a key": typo,
    "wrong type": _new_value(WRONG_TYPES),
    "out of range": _new_value(OUT_OF_RANGE),
    "null": _new_value(("", "null", "~", "None")),
    "duplicate key": duplicate_key,
    "tab": tab,
    "indentation": indentation,
    "nesting": nesting,
    "tag": tag,
    "alias": alias,
    "truncated line": truncated_line,
    "truncated file": truncated_file,
    "quotes and spaces": quotes_and_spaces,
    "garbage": appended_garbage,
    "deleted colon": deleted_colon,
    "deleted line": deleted_line,
    "changed character": changed_character,
    "encoding": encoding_damage,
}
# Each damages one value or key in place, so the error must name that key or its line.
KEY_LEVEL = {"wrong type", "out of range", "null", "typo of a key"}


def _damage_bytes(data, rng):
    at = rng.randrange(len(data))
    bad = rng.choice([b"\xff", b"\x00", b"\xc3\x28", b"\xed\xa0\x80", b"\x80", b"\xef\xbf\xbe"])
    return rng.choice([data[:at] + bad + data[at:], data.decode().encode("utf-16")])


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "sft_gpt2_lora.py"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def _independent_reading(path):
    """ruamel's own YAML 1.2 constructor, which shares the scanner but no resolver or merging."""
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}


def _assert_as_written(resolved, path):
    written = _independent_reading(path)
    for name, section in written.items():
        if section is None:
            assert resolved.sections[name] is None
            continue
        for key, value in section.items():
            got = resolved.sections[name][key]
            assert got == _by_core_schema(value, got), f"{name}.{key}: {got!r} for {value!r}"
            assert isinstance(got, bool) == isinstance(value, bool)
    given = {name: set(resolved.given(name)) for name in resolved.sections}
    assert given == {name: set(written.get(name) or {}) for name in resolved.sections}


def _by_core_schema(value, got):
    """ruamel goes beyond the core schema of YAML 1.2 in two places: dates, and `_` in numbers."""
    if isinstance(got, str) and re.fullmatch(r"[-+0-9_.]+", got) and "_" in got:
        return got if float(got.replace("_", "")) == value else value
    return value.isoformat() if hasattr(value, "isoformat") else value


def test_no_damaged_yaml_gives_a_traceback_or_another_value(recipe, capsys):
    rng = random.Random(20_26)
    path = recipe.with_suffix(".yaml")
    names = list(MUTATIONS)
    loaded, refused = Counter(), Counter()
    for number in range(NUM_MUTATIONS):
        name = names[number % len(names)]
        lines = TEXT.rstrip("\n").split("\n")
        index = MUTATIONS[name](lines, rng)
        data = ("\n".join(lines) + "\n").encode()
        data = _damage_bytes(data, rng) if name == "encoding" else data
        path.write_bytes(data)
        try:
            resolved = read_config(recipe, [path], [])
        except ConfigError as error:
            refused[name] += 1
            _assert_has_places(error, path, data)
            if name in KEY_LEVEL:
                _assert_names_key(error, path, lines, index)
        else:
            loaded[name] += 1
            _assert_as_written(resolved, path)
    with capsys.disabled():
        print(f"\n{sum(refused.values())} refused, {sum(loaded.values())} loaded as written")
        print("loaded:", dict(loaded))
    assert sum(refused.values()) + sum(loaded.values()) == NUM_MUTATIONS
    assert sum(refused.values()) > 1_000
    assert sum(loaded.values()) > 100
    for name in ("duplicate key", "tag", "encoding"):
        assert not loaded[name], name


def _assert_has_places(error, path, data):
    assert error.problems
    num_lines = max(1, len(data.splitlines()))
    for problem in error.problems:
        place = re.fullmatch(re.escape(str(path)) + r":(\d+)", problem.where)
        assert place, problem
        assert 1 <= int(place[1]) <= num_lines, problem
        assert problem.message


def _assert_names_key(error, path, lines, index):
    key = lines[index].strip().split(":")[0]
    named = [p for p in error.problems if p.key.split(".")[-1].startswith(key)]
    related = [p for p in error.problems if key in str(p) or p.where == f"{path}:{index + 1}"]
    assert named or related, f"{lines[index]}\n{error}"


def test_an_undamaged_yaml_is_read_as_written(recipe):
    path = recipe.with_suffix(".yaml")
    path.write_text(TEXT, encoding="utf-8")
    resolved = read_config(recipe, [path], [])
    _assert_as_written(resolved, path)
    assert resolved.sections["train"]["learning_rate"] == 2e-4
    assert resolved.sections["sample"]["prompts"][2] == "今天天气怎么样？"
