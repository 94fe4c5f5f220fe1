"""The settings classes read from source text must be the classes that Python imports."""

import dataclasses
import enum
import string
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from sft_kit.config import json_schema, tables
from sft_kit.config.schema import describe, read_sections
from sft_kit.config.suggestions import nearest
from sft_kit.config.upstream import Source, twin
from sft_kit.config.validation import check_section
from sft_kit.config.yaml_text import read_value
from sft_kit.errors import ConfigError

SFT = """\
from dataclasses import dataclass, field
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from sft_kit.settings import DataSettings, ModelSettings, SampleSettings

@dataclass
class Settings:
    model: ModelSettings
    adapter: LoraConfig | None
    data: DataSettings
    train: TrainingArguments
    sample: SampleSettings = field(default_factory=SampleSettings)
"""
OTHER = """\
from dataclasses import dataclass, field
from typing import Annotated, Literal, Optional
from annotated_types import Ge
from peft import IA3Config
from sft_kit.settings import ScratchModelSettings
from trl import SFTConfig

@dataclass
class Words:
    language: Literal["en", "zh"]
    count: Annotated[int, Ge(2)] = 2

@dataclass
class Settings:
    model: ScratchModelSettings
    adapter: Optional[IA3Config]
    train: SFTConfig
    words: Words
"""
NOWHERE = Source(Path("recipe.py"), {}, {})


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "sft_gpt2_lora.py"
    path.write_text(SFT, encoding="utf-8")
    return path


def _real(name):
    import peft
    import transformers

    return {
        "TrainingArguments": transformers.TrainingArguments,
        "LoraConfig": peft.LoraConfig,
        "IA3Config": peft.IA3Config,
    }[name]


@pytest.mark.parametrize(
    ("module", "name"),
    [("transformers", "TrainingArguments"), ("peft", "LoraConfig"), ("peft", "IA3Config")],
)
def test_a_class_read_from_source_has_the_fields_and_defaults_of_the_imported_one(module, name):
    real = {field.name: field for field in dataclasses.fields(_real(name)) if field.init}
    read = {field.name: field for field in dataclasses.fields(twin(module, name, NOWHERE))}
    assert set(read) == set(real)
    num_literal = 0
    for key, field in read.items():
        if field.metadata.get("computed"):
            continue
        num_literal += 1
        if field.default_factory is not dataclasses.MISSING:
            assert field.default_factory() == real[key].default_factory(), key
        else:
            assert field.default == real[key].default, key
        help_text = str(real[key].metadata.get("help", "")).replace("%%", "%")
        assert field.metadata["help"] == " ".join(help_text.split()), key
    assert num_literal >= len(read) - 3


def _literals(tp):
    if get_origin(tp) is Literal:
        return set(get_args(tp))
    return set().union(*map(_literals, get_args(tp)), set())


def test_enums_read_from_source_have_the_values_of_the_imported_ones():
    from peft import TaskType
    from transformers.trainer_utils import (
        HubStrategy,
        IntervalStrategy,
        SaveStrategy,
        SchedulerType,
    )
    from transformers.training_args import OptimizerNames

    train = {f.name: f.type for f in dataclasses.fields(_twin("TrainingArguments"))}
    adapter = {f.name: f.type for f in dataclasses.fields(_twin("LoraConfig"))}
    pairs = [
        (train["lr_scheduler_type"], SchedulerType),
        (train["eval_strategy"], IntervalStrategy),
        (train["save_strategy"], SaveStrategy),
        (train["hub_strategy"], HubStrategy),
        (train["optim"], OptimizerNames),
        (adapter["task_type"], TaskType),
    ]
    for tp, real in pairs:
        assert issubclass(real, enum.Enum)
        assert _literals(tp) == {member.value for member in real}, real


def _twin(name):
    return twin("peft" if name == "LoraConfig" else "transformers", name, NOWHERE)


def test_every_row_of_the_tables_names_a_field_that_exists():
    rows = [*tables.BOUNDS, *tables.TYPES, *tables.DEFAULTS, *tables.REFUSED, *tables.ALIASES]
    assert len(rows) > 60
    for row in rows:
        cls, _, key = row.partition(".")
        assert key in {field.name for field in dataclasses.fields(_real(cls))}, row
    for row, new in tables.ALIASES.items():
        assert new in {field.name for field in dataclasses.fields(_real(row.split(".")[0]))}


def test_no_old_name_is_a_key_of_today_and_every_hint_points_at_a_key(recipe):
    sections = read_sections(recipe)
    dotted = {f"{s.name}.{key}" for s in sections.values() for key in s.settings}
    keys = {name.partition(".")[2] for name in dotted}
    assert not keys & set(tables.OLD_NAMES)
    num_keys = 0
    for hint in tables.OLD_NAMES.values():
        if hint.startswith("use ") and "`" not in hint:
            num_keys += 1
            assert hint.removeprefix("use ").split(":")[0] in dotted, hint
    assert num_keys > 30


def test_reporters_are_those_that_trainer_knows():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    expected = {*INTEGRATION_TO_CALLBACK, "none", "all"}
    assert _literals(tables.TYPES["TrainingArguments.report_to"]) == expected


def test_log_levels_are_those_that_transformers_knows():
    from transformers.training_args import trainer_log_levels

    assert _literals(tables.TYPES["TrainingArguments.log_level"]) == set(trainer_log_levels)


def _typos(name):
    for i in range(len(name)):
        yield name[:i] + name[i + 1 :]
        yield name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :]
        letter = string.ascii_lowercase[(7 * i + len(name)) % 26]
        yield name[:i] + letter + name[i:]
        yield name[:i] + letter + name[i + 1 :]


def test_at_least_95_percent_of_one_letter_typos_get_the_right_suggestion(recipe):
    num_typos = num_right = 0
    for section in read_sections(recipe).values():
        for name in section.settings:
            for typo in sorted(set(_typos(name)) - set(section.settings) - {""})[::6]:
                num_typos += 1
                num_right += name in nearest(typo, section.settings)
    assert num_typos > 1_000
    assert num_right / num_typos >= 0.95


def test_suggestions_of_the_whole_check_name_the_right_key_for_95_percent_of_typos(recipe):
    sections = read_sections(recipe)
    num_typos = num_right = 0
    for section in sections.values():
        for name in section.settings:
            for typo in sorted(set(_typos(name)) - set(section.settings) - {""})[::20]:
                node = read_value("{" + f'"{typo}": 1' + "}", "x.yaml:1")
                result = check_section(section, node, sections)
                num_typos += 1
                num_right += f"'{name}'" in result.problems[0].todo
    assert num_typos > 300
    assert num_right / num_typos >= 0.95


def test_two_swapped_letters_count_as_one_mistake():
    assert nearest("sede", ["seed", "fsdp"]) == ["seed"]
    assert nearest("fdsp", ["seed", "fsdp"]) == ["fsdp"]


def test_nothing_is_suggested_for_a_name_that_resembles_none():
    assert nearest("zzzzzzzz", ["learning_rate", "seed"]) == []


def test_a_recipe_may_name_other_classes_and_its_own(tmp_path):
    pytest.importorskip("trl")
    path = tmp_path / "pretrain_x_clm.py"
    path.write_text(OTHER, encoding="utf-8")
    sections = read_sections(path)
    assert list(sections) == ["model", "adapter", "train", "words"]
    assert sections["adapter"].nullable
    assert not sections["adapter"].required
    assert "feedforward_modules" in sections["adapter"].settings
    assert {"max_length", "learning_rate"} <= set(sections["train"].settings)
    words = sections["words"].settings
    assert words["language"].required
    assert describe(words["language"].type) == "'en' or 'zh'"
    assert describe(words["count"].type) == "a whole number >= 2"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("class Settings:", "class Options:"), "no `class Settings`"),
        (("import LoraConfig", "import LoraConfigg as LoraConfig"), "adapter"),
        (("default_factory=SampleSettings", "default_factory=lambda: 3"), "another default"),
        (("class Settings:", "class Settings"), "can't be read as Python"),
    ],
)
def test_a_recipe_that_cannot_be_read_gives_one_clear_error(recipe, change, found):
    recipe.write_text(SFT.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=found):
        read_sections(recipe)


def test_the_json_schema_is_closed_and_carries_ranges_choices_defaults_and_help(recipe):
    schema = json_schema(recipe)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(schema["required"]) == {"model", "data", "train"}
    assert schema["additionalProperties"] is False
    train = schema["$defs"]["TrainingArguments"]
    assert train["additionalProperties"] is False
    rate = train["properties"]["learning_rate"]
    assert rate["type"] == "number"
    assert rate["exclusiveMinimum"] == 0
    assert rate["default"] == 5e-05
    assert rate["description"] == "The initial learning rate for the optimizer."
    assert "cosine" in train["properties"]["lr_scheduler_type"]["enum"]
    assert "hub_token" not in train["properties"]
    assert train["properties"]["use_cpu"]["default"] == "auto"
    data = schema["$defs"]["DataSettings"]["properties"]
    assert data["max_length"] == {
        "default": 512,
        "description": "Tokens per example, all inclusive; longer examples are cut.",
        "minimum": 2,
        "title": "Max Length",
        "type": "integer",
    }
    assert schema["$defs"]["DataSettings"]["required"] == ["path"]


def test_reading_and_checking_imports_no_heavy_library(recipe):
    code = (
        "import sys; from pathlib import Path; from sft_kit.config import read_config, json_schema;"
        "from sft_kit.errors import ConfigError;"
        f"recipe = Path({str(recipe)!r}); json_schema(recipe);"
        "read_config(recipe, [], ['model.checkpoint=a/b', 'data.path=c/d', 'train={}',"
        " 'adapter.target_modules=[x]']);"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
