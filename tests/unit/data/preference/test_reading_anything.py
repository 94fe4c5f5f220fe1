"""Whatever JSON a row holds, reading it ends in a row or in problems with a place."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.data.preference.comparing import compared_pairs, prompt_hash, understand_preference
from sft_kit.data.preference.formats import PREFERENCE_FORMATS, fitting_forms
from sft_kit.data.preference.prompt_formats import understand_prompt
from sft_kit.data.rows import RawRow, Where

TEXTS = st.sampled_from(
    ["Q", "a", "", " ", "\n\nHuman: Q\n\nAssistant: a", "Human:\n\nAssistant: b", "x\0", "\ud800"]
)
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "bot", 5, None])
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS}),
    st.fixed_dictionaries({"from": ROLES, "value": TEXTS}),
    st.fixed_dictionaries({}, optional={"role": ROLES, "content": st.lists(st.integers())}),
)
NAMES = st.sampled_from(
    ["prompt", "chosen", "rejected", "chosen_messages", "rejected_messages", "instruction", "input",
     "output", "history", "system", "conversations", "items", "messages", "completion", "text",
     "answers", "responses", "ranks", "scores", "label", "by"]
)  # fmt: skip
VALUES = st.one_of(
    TEXTS,
    MESSAGES,
    st.lists(MESSAGES, max_size=4),
    st.lists(TEXTS, max_size=3),
    st.lists(st.one_of(st.integers(0, 3), st.floats(), st.none()), max_size=3),
    st.none(),
    st.integers(),
    st.floats(),
)
ROWS = st.dictionaries(NAMES, VALUES, max_size=6)
WHERE = Where("rows.jsonl", 7)


@settings(max_examples=150, deadline=None)
@given(fields=ROWS, name=st.sampled_from(sorted(PREFERENCE_FORMATS)))
def test_a_row_of_preferences_is_read_or_told(fields, name) -> None:
    fitting_forms(fields)
    compared = understand_preference(RawRow(fields, WHERE), name, "by" if "by" in fields else None)
    assert all(problem.where == "rows.jsonl:7" for problem in compared.problems)
    if compared.comparison is None:
        return
    comparison = compared.comparison
    assert not compared.problems
    assert len(comparison.answers) >= 2
    assert len(set(map(repr, comparison.answers))) == len(comparison.answers)
    assert len(prompt_hash(comparison)) == 32
    assert compared_pairs(comparison)
    last = {answer[-1]["role"] for answer in comparison.answers}
    assert last == ({"assistant"} if comparison.prompt else {"text"})
    assert not comparison.prompt or comparison.prompt[-1]["role"] == "user"


PROMPT_FORMATS = ["prompt", "alpaca", "sharegpt", "messages", "prompt-completion", "text"]
PROMPT_FORMATS += [f"preference: {name}" for name in PREFERENCE_FORMATS]


@settings(max_examples=150, deadline=None)
@given(fields=ROWS, name=st.sampled_from(PROMPT_FORMATS))
def test_a_row_of_prompts_is_read_or_told(fields, name) -> None:
    asked = understand_prompt(RawRow(fields, WHERE), name)
    assert all(problem.where == "rows.jsonl:7" for problem in asked.problems)
    assert bool(asked.problems) != bool(asked.text)
    assert not asked.messages or asked.messages[-1]["role"] == "user"
