"""Rows -> conversations: every format, every way a row can be wrong, detection."""

import json

import pytest

from sft_kit.data.formats import FORMATS, detect_format, understand
from sft_kit.data.rows import RawRow, Where
from sft_kit.errors import FormatError


def raw(fields, line=7):
    return RawRow(fields, Where("f.jsonl", line))


def chat(format_name, fields):
    """Return the conversation as a string such as `s:be kind|u:q|a:r`."""
    understood = understand(raw(fields), format_name)
    assert understood.problems == ()
    assert understood.conversation.where == Where("f.jsonl", 7)
    return "|".join(f"{m['role'][0]}:{m['content']}" for m in understood.conversation.messages)


def faults(format_name, fields):
    understood = understand(raw(fields), format_name)
    assert understood.conversation is None
    assert {problem.where for problem in understood.problems} == {"f.jsonl:7"}
    assert all(problem.message and problem.todo for problem in understood.problems)
    return {problem.key: problem.message for problem in understood.problems}


def human(*values):
    return [
        {"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)
    ]


def user(*values):
    return [
        {"role": ("user", "assistant")[index % 2], "content": value}
        for index, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("alpaca", {"instruction": "q", "output": "r"}, "u:q|a:r"),
        ("alpaca", {"instruction": "q", "input": "", "output": "r"}, "u:q|a:r"),
        ("alpaca", {"instruction": "q", "input": None, "output": "r", "id": 3}, "u:q|a:r"),
        ("alpaca", {"instruction": "q", "input": "x", "output": "r"}, "u:q\n\nx|a:r"),
        (
            "alpaca",
            {
                "system": "be kind",
                "history": [["q1", "r1"], ["q2", "r2"]],
                "instruction": "q3",
                "output": "r3",
            },
            "s:be kind|u:q1|a:r1|u:q2|a:r2|u:q3|a:r3",
        ),
        ("alpaca", {"instruction": "q", "output": "r", "history": "", "system": ""}, "u:q|a:r"),
        ("sharegpt", {"conversations": human("q", "r")}, "u:q|a:r"),
        ("sharegpt", {"id": "1", "items": human("q", "r", "q2", "r2")}, "u:q|a:r|u:q2|a:r2"),
        ("sharegpt", {"conversations": human("q", "r"), "system": "s"}, "s:s|u:q|a:r"),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "user", "value": "q"},
                    {"from": "chatgpt", "value": "r"},
                ]
            },
            "s:s|u:q|a:r",
        ),
        ("messages", {"messages": user(" q ", "r\n")}, "u: q |a:r\n"),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "value": "r"},
                            {"type": "text", "text": None, "value": "s"},
                            {"type": "text", "text": ""},
                        ],
                    },
                ]
            },
            "u:q|a:rs",
        ),
        ("prompt-completion", {"prompt": "q", "completion": "r"}, "u:q|a:r"),
        (
            "prompt-completion",
            {"prompt": user("q", "r", "q2"), "completion": [{"role": "assistant", "content": "x"}]},
            "u:q|a:r|u:q2|a:x",
        ),
    ],
)
def test_a_good_row_becomes_the_conversation_it_says(name, fields, expected):
    assert chat(name, fields) == expected


def test_plain_text_has_no_messages():
    understood = understand(raw({"text": " 007\n"}), "text")
    assert understood.conversation.text == " 007\n"
    assert understood.conversation.messages == ()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "found null"),
        (7, "found the number 7"),
        (1.5, "found the number 1.5"),
        (True, "found true"),
        (["a"], "found a list"),
        ({"a": 1}, "found an object"),
        ("", "found an empty text"),
        (" \t\n\u3000", "found an empty text"),
        ("a\ud83d", "half of a surrogate pair (\\ud83d) at character 2"),
        ("a\x00", "a NUL character (\\u0000) at character 2"),
    ],
)
@pytest.mark.parametrize(
    ("name", "fields", "key"),
    [
        ("alpaca", {"instruction": "$", "output": "r"}, "instruction"),
        ("alpaca", {"instruction": "q", "output": "$"}, "output"),
        ("alpaca", {"instruction": "q", "output": "r", "history": [["a", "$"]]}, "history[0][1]"),
        ("sharegpt", {"items": human("q", "r", "q", "$")}, "items[3].value"),
        ("sharegpt", {"conversations": human("$", "r")}, "conversations[0].value"),
        ("messages", {"messages": user("q", "$")}, "messages[1].content"),
        ("prompt-completion", {"prompt": "q", "completion": "$"}, "completion"),
        ("text", {"text": "$"}, "text"),
    ],
)
def test_what_is_not_text_is_reported_with_its_exact_field(value, found, name, fields, key):
    fields = json.loads(json.dumps(fields).replace('"$"', json.dumps(value)))
    if key == "messages[1].content" and isinstance(value, list):
        key, found = "messages[1].content[0]", "found a text"
    if key == "completion" and isinstance(value, list):
        # A list on one side asks for lists on both.
        assert "prompt" in faults(name, fields)
        return
    problems = faults(name, fields)
    assert list(problems) == [key]
    assert problems[key].startswith(found) or found in problems[key]


@pytest.mark.parametrize(
    ("name", "fields", "key", "message"),
    [
        ("alpaca", {"instruction": "q"}, "output", "is missing"),
        ("alpaca", {"output": "r"}, "instruction", "is missing"),
        ("alpaca", {"instruction": "q", "output": "r", "input": 5}, "input", "number 5"),
        ("alpaca", {"instruction": "q", "output": "r", "history": {}}, "history", "an object"),
        ("alpaca", {"instruction": "q", "output": "r", "history": "x"}, "history", "a text"),
        ("alpaca", {"instruction": "q", "output": "r", "history": ["ab"]}, "history[0]", "a text"),
        ("alpaca", {"instruction": "q", "output": "r", "history": [["a"]]}, "history[0]", "of 1"),
        ("sharegpt", {}, "conversations", "is missing"),
        ("sharegpt", {"items": None}, "items", "found null"),
        ("sharegpt", {"items": "text"}, "items", "found a text"),
        ("sharegpt", {"items": []}, "items", "empty conversation"),
        ("sharegpt", {"items": ["a"]}, "items[0]", "found a text"),
        ("sharegpt", {"items": [{"value": "q"}]}, "items[0].from", "is missing"),
        ("sharegpt", {"items": [{"from": "human"}]}, "items[0].value", "is missing"),
        ("sharegpt", {"items": [{"from": None, "value": "q"}]}, "items[0].from", "found null"),
        ("sharegpt", {"items": human("q")}, "items[0].from", "ends without an answer"),
        ("sharegpt", {"items": human("q", "r", "q")}, "items[2].from", "ends without an answer"),
        ("sharegpt", {"items": human("q", "r")[1:]}, "items[0].from", "accepts one of the user"),
        ("sharegpt", {"items": human("q") + human("q", "r")}, "items[1].from", "accepts one"),
        ("sharegpt", {"items": human("q", "r"), "images": ["a.png"]}, "images", "text only"),
        (
            "sharegpt",
            {"items": [*human("q", "r"), {"from": "system", "value": "s"}]},
            "items[2].from",
            "turn of the system here",
        ),
        ("sharegpt", {"items": [{"from": "system", "value": "s"}]}, "items[0].from", "without"),
        (
            "sharegpt",
            {"system": "s", "items": [{"from": "system", "value": "s"}, *human("q", "r")]},
            "items[0].from",
            "turn of the system here",
        ),
        (
            "sharegpt",
            {"items": [*human("q"), {"from": "observation", "value": "{}"}, *human("q", "r")]},
            "items[1].from",
            "found a tool turn",
        ),
        ("messages", {"messages": [{"role": "human", "content": "q"}]}, "messages[0].role", "unkn"),
        (
            "messages",
            {"messages": [*user("q"), {"role": "assistant", "content": "r", "tool_calls": [1]}]},
            "messages[1].tool_calls",
            "found tool calls",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "x": 1}]}]},
            "messages[0].content[0]",
            "part of type 'image_url'",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": []}]},
            "messages[0].content",
            "empt",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
            "number 5",
        ),
        ("prompt-completion", {"prompt": "q"}, "completion", "is missing"),
        (
            "prompt-completion",
            {"prompt": user("q", "r"), "completion": user("q", "r")[1:]},
            "completion[0].role",
            "accepts one of the user",
        ),
    ],
)
def test_a_bad_row_is_reported_with_its_exact_field(name, fields, key, message):
    problems = faults(name, fields)
    assert list(problems) == [key]
    assert message in problems[key]


def messages_with(number, **extra):
    turns = user("q", "r")
    turns[number] |= extra
    return turns


TOOLS = [{"name": "get_weather"}]
# Messages as THUDM/chatglm3-6b's `process_response` writes them, rows as TRL and exports have them.
TOOL_ROWS = [
    ("messages", {"messages": messages_with(1, tool_calls=TOOLS)}, "messages[1].tool_calls"),
    ("messages", {"messages": messages_with(1, metadata="get_weather")}, "messages[1].metadata"),
    ("messages", {"messages": messages_with(0, tools=TOOLS)}, "messages[0].tools"),
    ("messages", {"messages": user("q", "r"), "tools": TOOLS}, "tools"),
    ("messages", {"messages": user("q", "r"), "tools": json.dumps(TOOLS)}, "tools"),
    (
        "sharegpt",
        {"items": [*human("q"), {"from": "gpt", "value": "r", "metadata": "get_weather"}]},
        "items[1].metadata",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q", "tools": TOOLS}, *human("q", "r")[1:]]},
        "conversations[0].tools",
    ),
    ("sharegpt", {"conversations": human("q", "r"), "tools": TOOLS}, "tools"),
    (
        "prompt-completion",
        {"prompt": user("q"), "completion": messages_with(1, metadata="get_weather")[1:]},
        "completion[0].metadata",
    ),
    (
        "prompt-completion",
        {"prompt": messages_with(0, tools=TOOLS)[:1], "completion": user("q", "r")[1:]},
        "prompt[0].tools",
    ),
    (
        "prompt-completion",
        {"prompt": user("q"), "completion": user("q", "r")[1:], "tools": TOOLS},
        "tools",
    ),
]


@pytest.mark.parametrize(("name", "fields", "key"), TOOL_ROWS)
def test_a_tool_call_is_never_learnt_as_a_plain_answer(name, fields, key):
    understood = understand(raw(fields), name)
    assert understood.conversation is None
    (problem,) = understood.problems
    assert problem.key == key
    assert problem.message.startswith(f"found {key.rpartition('.')[2].replace('_', ' ')}")
    assert problem.todo == (
        "tool calls are not supported yet: remove the row, or set data.on_bad_row=skip"
    )


@pytest.mark.parametrize("nothing", [None, "", " \n", "[]", [], {}])
def test_empty_fields_for_tools_are_no_tool_calls(nothing):
    empty = dict.fromkeys(("metadata", "tools", "tool_calls"), nothing)
    turns = [turn | empty for turn in user("q", "r")]
    assert chat("messages", {"messages": turns, "tools": nothing}) == "u:q|a:r"
    items = [item | empty for item in human("q", "r")]
    assert chat("sharegpt", {"items": items, "tools": nothing}) == "u:q|a:r"
    pair = {"prompt": turns[:1], "completion": turns[1:], "tools": nothing}
    assert chat("prompt-completion", pair) == "u:q|a:r"


def test_fields_of_a_row_that_only_look_like_tools_are_left_alone():
    assert chat("messages", {"messages": user("q", "r"), "metadata": {"from": "wiki"}}) == "u:q|a:r"
    plain = {"prompt": "q", "completion": "r", "tools": "hammer"}
    assert chat("prompt-completion", plain) == "u:q|a:r"
    assert chat("alpaca", {"instruction": "q", "output": "r", "tools": "hammer"}) == "u:q|a:r"


def test_all_faults_of_a_row_are_reported_together():
    items = [{"from": "human", "value": ""}, {"from": "gtp", "value": 3}, {"value": "q"}]
    assert list(faults("sharegpt", {"items": items})) == [
        "items[0].value",
        "items[1].from",
        "items[1].value",
        "items[2].from",
    ]


def test_an_unknown_role_is_reported_once_per_row_and_counted():
    turn = {"from": "function_call", "value": "{}"}
    understood = understand(raw({"items": [*human("q"), turn, turn, turn]}), "sharegpt")
    assert [problem.key for problem in understood.problems] == ["items[1].from"]
    assert "tool calls are not supported yet" in understood.problems[0].todo
    assert understood.unknown_roles == {"function_call"}


@pytest.mark.parametrize(
    ("name", "fields", "todo"),
    [
        ("alpaca", {"instrution": "q", "output": "r"}, "did you mean 'instruction'?"),
        ("sharegpt", {"items": [{"form": "human", "value": "q"}]}, "did you mean 'from'?"),
        ("sharegpt", {"items": [{"from": "Human", "value": "q"}]}, "did you mean 'human'?"),
        ("messages", {"messages": [{"role": "asistant", "content": "q"}]}, "mean 'assistant'?"),
        ("text", {"body": "q", "n": 1}, "add it; found 'body', 'n'"),
    ],
)
def test_a_slip_in_a_name_gets_the_name_that_was_meant(name, fields, todo):
    problems = understand(raw(fields), name).problems
    assert todo in problems[0].todo


EXAMPLES = {
    "alpaca": {"instruction": "q", "output": "r", "category": "c"},
    "sharegpt": {"items": human("q", "r")},
    "messages": {"messages": user("q", "r")},
    "prompt-completion": {"prompt": "q", "completion": "r"},
    "text": {"text": "t"},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_is_detected_from_its_fields(name):
    assert detect_format([raw(EXAMPLES[name])] * 3) == name


def test_every_format_has_an_example_in_these_tests():
    assert set(EXAMPLES) == set(FORMATS)


def test_a_row_with_a_slip_does_not_hinder_detection():
    rows = [raw({"instrution": "q", "output": "r"}), raw(EXAMPLES["alpaca"])]
    assert detect_format(rows) == "alpaca"


def test_rows_of_two_formats_are_refused_with_a_line_of_each():
    rows = [raw(EXAMPLES["alpaca"], 1), raw(EXAMPLES["alpaca"], 2), raw(EXAMPLES["messages"], 3)]
    with pytest.raises(FormatError, match=r"f\.jsonl:1 fits alpaca; f\.jsonl:3 fits messages"):
        detect_format(rows)


def test_fields_of_two_formats_in_one_row_are_refused():
    with pytest.raises(FormatError, match=r"several formats: alpaca, text; .*data\.format"):
        detect_format([raw({**EXAMPLES["alpaca"], "text": "t"})])


def test_when_nothing_fits_the_fields_found_and_all_formats_are_listed():
    with pytest.raises(FormatError) as caught:
        detect_format([raw({"question": "q", "answer": "r"}, 1)])
    message = str(caught.value)
    assert message.startswith("f.jsonl:1: the fields 'question', 'answer' fit no format")
    assert [problem.key for problem in caught.value.problems] == list(FORMATS)


def test_preference_pairs_are_not_taken_for_conversations():
    fields = {"conversations": human("q"), "chosen": {}, "rejected": {}}
    with pytest.raises(FormatError, match="pairs for preference training"):
        detect_format([raw(fields)])


@pytest.mark.parametrize(("label", "accepted"), [(False, False), (True, True), (0, True)])
def test_answers_marked_as_rejected_are_not_learnt(label: object, accepted: bool) -> None:
    """KTO files hold answers somebody disliked, marked `label: false`."""
    fields = {"prompt": "How are you?", "completion": "Go away.", "label": label}
    understood = understand(RawRow(fields, Where("kto.json", 3)), "prompt-completion")
    assert (understood.conversation is not None) == accepted
    assert [(problem.where, problem.key) for problem in understood.problems] == (
        [] if accepted else [("kto.json:3", "label")]
    )
