"""Damaged YAMLs of all recipes: never a traceback, never another value, always the place."""

import json
import os
import random
import re
import resource
import time
from collections import Counter
from pathlib import Path

import pytest

from sft_kit.config import read_config
from sft_kit.config.command_line import parse_arguments
from sft_kit.config.schema import read_sections
from sft_kit.config.tables import ALIASES
from sft_kit.config.yaml_text import read_yaml
from sft_kit.errors import ConfigError

from .yaml_damage import KINDS, Base, edit
from .yaml_reading import core_schema, read_text

REPOSITORY = Path(__file__).resolve().parents[2]
YAMLS = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
RECIPES = [path.with_suffix(".py") for path in YAMLS if path.with_suffix(".py").is_file()]
NEW_NAMES = {old.partition(".")[2]: new for old, new in ALIASES.items()}
FULL = pytest.mark.slow


@pytest.fixture
def bases(tmp_path, monkeypatch):
    """Every recipe with its YAML, in a folder where all that the YAMLs name exists."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (REPOSITORY / "data").iterdir():
        (data / path.name).symlink_to(path)
    for name in ("corpus.jsonl", "chinese_texts.jsonl"):  # made by scripts; a clone has none
        (data / name).unlink(missing_ok=True)
        (data / name).write_text('{"text": "A beginning."}\n', encoding="utf-8")
    for name in ("sft_gpt2_lora", "reward_gpt2_lora", "tokenizer_bart"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "adapter_config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return {r: Base.of(r.with_suffix(".yaml").read_text(encoding="utf-8")) for r in RECIPES}


def test_every_yaml_that_belongs_to_a_recipe_is_damaged(bases):
    declared = {
        path
        for path in (REPOSITORY / "recipes").rglob("*.py")
        if "class Settings" in path.read_text()
    }
    assert set(RECIPES) == declared
    assert len(RECIPES) >= 13
    others = [path for path in YAMLS if path.with_suffix(".py") not in declared]
    assert {path.parent.name for path in others} <= {"launch"}
    for recipe in RECIPES:
        read_config(recipe, [recipe.with_suffix(".yaml")], [])


def _same(got, written):
    """Equal in value and, down to true and 1, in type; a whole number may stand for any number."""
    if isinstance(written, dict):
        return (
            isinstance(got, dict)
            and got.keys() == written.keys()
            and all(_same(got[key], written[key]) for key in written)
        )
    if isinstance(written, list):
        return isinstance(got, list) and len(got) == len(written) and all(map(_same, got, written))
    return got == written and isinstance(got, bool) == isinstance(written, bool)


def _assert_loaded_as_written(resolved, damaged, base):
    """Compare with what another reader of YAML makes of the files, key by key."""
    written = dict(base)
    reading = read_text(damaged.data.decode("utf-8-sig"))
    assert not reading.oddities, reading.oddities
    for name, section in (reading.value or {}).items():
        below = written.get(name)
        both = isinstance(section, dict) and isinstance(below, dict)
        written[name] = {**below, **section} if both else section
    for name in resolved.sections:
        section = written.get(name) or {}
        section = {NEW_NAMES.get(key, key): value for key, value in section.items()}
        if name in written and written[name] is None:
            assert resolved.sections[name] is None
        assert resolved.given(name).keys() == section.keys(), name
        for key, value in section.items():
            got = resolved.sections[name][key]
            assert _same(got, value), f"{name}.{key}: {got!r} for {value!r}"


def _assert_placed(error, damaged, file):
    """Every problem has a line of the file; one of them tells of the damage; no other is blamed."""
    num_lines = len(re.split("\r\n|[\n\r\x85\u2028\u2029]", damaged.data.decode(errors="replace")))
    assert error.problems
    for problem in error.problems:
        place = re.fullmatch(rf"{file}:(\d+)", problem.where)
        assert place, problem
        assert 1 <= int(place[1]) <= num_lines, problem
    places = {f"{file}:{line}" for line in damaged.lines}
    told = [p for p in error.problems if any(key in str(p) for key in damaged.keys)]
    at_place = [problem for problem in error.problems if problem.where in places]
    if places:
        assert at_place or told, error
    if damaged.keys:
        assert told, error
        blamed = [p for p in error.problems if p not in told and p not in at_place]
        assert not blamed, blamed


def outcome(recipe, files, overrides=()):
    """What reading gives: settings or an error, and the other is None."""
    try:
        return read_config(recipe, files, overrides), None
    except ConfigError as error:
        return None, error


def _damage(bases, name, rng, *, is_layered):
    """Damage one YAML and read it, alone or over the one beside the recipe."""
    recipe = rng.choice(RECIPES)
    damaged = KINDS[name](bases[recipe], rng)
    Path("damaged.yaml").write_bytes(damaged.data)
    files = [recipe.with_suffix(".yaml")] * is_layered + [Path("damaged.yaml")]
    below = read_text(bases[recipe].text).value if is_layered else {}
    resolved, error = outcome(recipe, files)
    if error is None:
        assert damaged.must != "refuse", f"{name}: {damaged}"
        _assert_loaded_as_written(resolved, damaged, below)
    else:
        assert damaged.must != "load", f"{name}: {error}"
        # What is wrong together with the file below may be told there.
        assert all(re.fullmatch(r".*\.yaml:\d+", problem.where) for problem in error.problems)
        if not is_layered:
            _assert_placed(error, damaged, "damaged.yaml")
    return damaged, error


@pytest.mark.parametrize("num_files", [296, pytest.param(5_000, marks=FULL)])
def test_no_damaged_yaml_gives_a_traceback_or_another_value(bases, num_files, capsys):
    rng = random.Random(num_files)
    outcomes, hints = Counter(), Counter()
    for number in range(num_files):
        kind = list(KINDS)[number % len(KINDS)]
        damaged, error = _damage(bases, kind, rng, is_layered=number % 8 == 7)
        outcomes["refused" if error else "loaded"] += 1
        if damaged.meant and error:
            hints[any(f"{damaged.meant}'" in problem.todo for problem in error.problems)] += 1
    with capsys.disabled():
        print(f"\n{num_files} YAMLs: {dict(outcomes)}; hints right: {dict(hints)}")
    assert outcomes["refused"] > 0.6 * num_files
    assert outcomes["loaded"] > 0.1 * num_files
    assert hints[True] >= 0.95 * sum(hints.values()) > 0


VALUES = (
    "1e-4", "7", "0.5", "true", "no", "null", "~", "[a, b]", "{a: 1}", "'x'", '"x', "[1", "1_000",
    "0o17", "2.", ".5", "-1", ".inf", "*x", "&a 1", "!!int 3", "a # b", "a: b", "", " ", "\t",
    "\x00", "é", "\ud800", "x" * 50_000, "[" * 500, "1.10", "12:30", "a=b", "- 1", "|", "%", "@",
)  # fmt: skip


def _words(entry, rng):
    """A word of the command line, and what its key should be called in a message."""
    dotted, value = ".".join(entry.path), rng.choice(VALUES)
    form = rng.randrange(10)
    if form == 0:
        dotted = ".".join((*entry.path[:-1], edit(entry.key, rng)))
    elif form == 1:
        dotted = edit(dotted, rng)
    elif form == 2:
        return f"--{dotted}={value}", dotted
    elif form == 3:
        return rng.choice(["=", "=1", ".=1", f"{dotted}", f".{dotted}=1", f"{dotted}.=1"]), ""
    elif form in (4, 5, 6):
        value = json.dumps(entry.value, ensure_ascii=False)
    return f"{dotted}={value}", dotted


def _spoken(recipe, word):
    """What a recipe makes of one word of its command line."""
    try:
        arguments = parse_arguments([word], read_sections(recipe))
    except ConfigError as error:
        return None, error
    return outcome(recipe, [recipe.with_suffix(".yaml")], arguments.overrides)


@pytest.mark.parametrize("num_lines", [60, pytest.param(500, marks=FULL)])
def test_no_command_line_gives_a_traceback_or_another_value(bases, num_lines, capsys):
    rng = random.Random(num_lines)
    outcomes = Counter()
    for _ in range(num_lines):
        recipe = rng.choice(RECIPES)
        word, dotted = _words(rng.choice(bases[recipe].scalars()), rng)
        resolved, error = _spoken(recipe, word)
        outcomes["refused" if error else "loaded"] += 1
        if error:
            places = [problem.where for problem in error.problems]
            assert "command line" in places or (dotted and dotted in str(error)), error
            assert len(str(error)) < 20_000 + len(word), len(str(error))
            continue
        key, _, written = word.partition("=")
        section, name = key.split(".")
        written = written.strip()
        is_flow = written[:1] in ("[", "{", '"', "'")
        value = read_text(f"v: {written}").value["v"] if is_flow else core_schema(written)
        assert _same(resolved.sections[section][name], value), word
        assert resolved.origins[key] == "command line"
    with capsys.disabled():
        print(f"\n{num_lines} command lines: {dict(outcomes)}")
    assert outcomes["refused"] > outcomes["loaded"] > 0.05 * num_lines


def _bomb(width, depth, opening="[", closing="]"):
    lines = [f"a: &l0 {opening}{', '.join('x' * width)}{closing}"]
    for level in range(1, depth):
        items = ", ".join([f"*l{level - 1}"] * width)
        lines.append(f"l{level}: &l{level} [{items}]")
    return "\n".join(lines) + "\n"


MOST = 249_000
BOMBS = {
    "aliases": _bomb(9, 4),
    "many aliases": _bomb(9, 60),
    "aliases of one long list": "a: &a [" + "x," * 3_000 + "]\nb: [" + "*a," * 3_000 + "]\n",
    "alias in itself": "a: &a [*a]\n",
    "merge keys": "a: &a {b: 1}\nc: {<<: [" + "*a," * 5_000 + "]}\n",
    "brackets": "a: " + "[" * MOST,
    "dashes": "- " * (MOST // 2),
    "indents": "".join(" " * depth + "a:\n" for depth in range(600)),
    "long list": "a: [" + "1," * (MOST // 2) + "]",
    "unknown sections": "".join(f"trains{number}: 1\n" for number in range(4_900)),
    "unknown keys": "train:\n" + "".join(f"  learning_rates{n}: 1\n" for n in range(4_900)),
    "long tag": "a: !" + "x" * MOST + " 1",
    "long key": "? " + "x" * MOST + "\n: 1",
    "long anchor": "a: *" + "x" * MOST,
    "many directives": "%A\n" * (MOST // 3),
    "open quote": 'a: "' + "x\n " * (MOST // 3),
    "one byte too many": "#" * 250_001,
    "a gigabyte": None,
}


def _read_in_a_child(path, recipe):
    """Read a YAML in a process of its own; return seconds, bytes of memory more, and the words."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        try:
            read_config(recipe, [path], [])
            words = "loaded"
        except ConfigError as error:
            words = str(error)
        except BaseException as error:
            words = f"traceback: {error!r}"
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = (time.process_time() - start, (after - before) * 1024, words[:30_000])
        os.write(writing, json.dumps(outcome).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as handle:
        outcome = json.loads(handle.read())
    os.waitpid(child, 0)
    return outcome


QUICK = {"aliases", "aliases of one long list", "brackets", "long anchor", "a gigabyte"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=FULL) for name in BOMBS]
)
def test_a_bomb_is_refused_within_seconds_and_a_hundred_megabytes(bases, name):
    path = Path("bomb.yaml")
    if BOMBS[name] is None:
        with path.open("wb") as handle:
            handle.truncate(2**30)
    else:
        path.write_text(BOMBS[name], encoding="utf-8")
    seconds, num_bytes, words = _read_in_a_child(path, RECIPES[-1])
    assert re.search(r"bomb\.yaml:\d+: ", words), words[:300]
    assert "traceback" not in words
    assert len(words) < 20_000
    assert seconds < (1.0 if name in QUICK else 3.0)
    assert num_bytes < 100 * 2**20


def test_a_bomb_of_two_hundred_bytes_says_what_is_accepted(tmp_path):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS["aliases"] + "b: [*l3, *l3]\n", encoding="utf-8")
    assert path.stat().st_size < 250
    with pytest.raises(ConfigError, match=r"bomb\.yaml:\d+: .*more than 10,000 values, accepts"):
        read_yaml(path)


def test_a_recipe_reads_no_other_file_for_its_yaml(bases, tmp_path):
    """There is no include: what looks like one is text, a tag or an unknown key."""
    secret = tmp_path / "secret.yaml"
    secret.write_text("hidden: 1", encoding="utf-8")
    recipe = REPOSITORY / "recipes" / "sft_gpt2_lora.py"
    base = recipe.with_suffix(".yaml").read_text(encoding="utf-8")
    for more in (f"include: {secret}", f"sample: !include {secret}", f"defaults: [{secret}]"):
        path = tmp_path / "x.yaml"
        path.write_text(f"{base.partition('sample:')[0]}{more}\n", encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            read_config(recipe, [path], [])
        assert "hidden" not in str(caught.value)
