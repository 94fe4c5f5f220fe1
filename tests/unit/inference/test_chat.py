"""The chat loop, typed into and piped into."""

import functools
import io
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import sft_kit.models.chatglm  # noqa: F401  (registers ChatGLM with transformers)
from sft_kit.data.templates import Template, choose_template, encode_prompt
from sft_kit.errors import ConfigError, DataError
from sft_kit.inference import chat as chat_module
from sft_kit.inference.chat import change_sampling, chat
from sft_kit.inference.generate import generate
from sft_kit.settings import SampleSettings

SHORT = SampleSettings(max_new_tokens=6)


@dataclass
class Run:
    """Stands in for a loaded run."""

    model: object
    tokenizer: object
    template: Template


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def talk(run, monkeypatch, lines, sampling=SHORT, *, typed=False, system=""):
    """Return what was printed."""
    output = io.StringIO()
    text = "".join(f"{line}\n" for line in lines)
    monkeypatch.setattr("sys.stdin", FakeTerminal(text) if typed else io.StringIO(text))
    chat(Console(file=output, width=10_000), run, sampling, system)
    return output.getvalue()


def expected_replies(run, questions, sampling=SHORT, system=""):
    """Second implementation of the history: ask `generate` with everything said so far."""
    messages = [{"role": "system", "content": system}] if system else []
    replies = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        (reply,) = generate(run.model, run.tokenizer, run.template, [messages], sampling)
        messages.append({"role": "assistant", "content": reply.text})
        replies.append(reply.text)
    return replies


def test_a_pipe_gets_the_replies_and_nothing_else(run, monkeypatch):
    questions = ["hot", "what does a cow eat", "奶牛吃什么"]
    replies = expected_replies(run, questions)
    assert all(replies)
    assert talk(run, monkeypatch, questions) == "".join(f"{reply}\n" for reply in replies)
    alone = [expected_replies(run, [question])[0] for question in questions]
    assert alone[1:] != replies[1:]


def test_empty_lines_are_ignored_and_no_input_ends_the_chat(run, monkeypatch):
    (reply,) = expected_replies(run, ["hot"])
    assert talk(run, monkeypatch, ["", "   ", "hot", ""]) == f"{reply}\n"
    assert talk(run, monkeypatch, []) == ""


def test_the_last_line_may_lack_its_newline(run, monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("hot"))
    chat(Console(file=output, width=10_000), run, SHORT)
    assert output.getvalue() == expected_replies(run, ["hot"])[0] + "\n"


def test_reset_forgets_what_was_said_and_exit_leaves(run, monkeypatch):
    first, second = expected_replies(run, ["hot"])[0], expected_replies(run, ["sea"])[0]
    lines = ["hot", "/reset", "sea", "/exit", "never asked"]
    assert talk(run, monkeypatch, lines) == f"{first}\n{second}\n"


def test_system_begins_a_new_chat_with_that_message(run, monkeypatch):
    (reply,) = expected_replies(run, ["sea"], system="the boats are blue")
    (without,) = expected_replies(run, ["sea"])
    assert reply != without
    output = talk(run, monkeypatch, ["hot", "/system the boats are blue", "sea"])
    assert output.endswith(f"\n{reply}\n")
    assert talk(run, monkeypatch, ["sea"], system="the boats are blue") == f"{reply}\n"
    lines = ["/system", "sea"]
    assert talk(run, monkeypatch, lines, system="the boats are blue") == f"{without}\n"


def test_set_changes_how_the_next_reply_is_drawn(run, monkeypatch):
    drawn = SampleSettings(max_new_tokens=4, temperature=1.3, top_k=9, top_p=0.9, seed=5)
    (reply,) = expected_replies(run, ["sea"], drawn)
    lines = ["/set temperature=1.3 top_k=9", "/set top_p=0.9 seed=5 max_new_tokens=4", "sea"]
    assert talk(run, monkeypatch, lines) == f"{reply}\n"
    assert (reply,) != tuple(expected_replies(run, ["sea"], SampleSettings(max_new_tokens=4)))


def test_a_terminal_is_told_the_commands_and_the_settings(run, monkeypatch):
    output = talk(run, monkeypatch, ["/help", "/set top_k=3", "/reset"], typed=True)
    for command in ("/help", "/reset", "/system", "/set", "/exit"):
        assert command in output
    assert "temperature=0.0 top_k=3 top_p=1.0 seed=0" in output
    assert "a new chat" in output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rest", "unknown command '/rest' (did you mean '/reset'?)"),
        ("/set temperature", "/set: temperature: accepts NAME=VALUE"),
        ("/set temprature=1", "/set: temprature: unknown setting (did you mean 'temperature'?)"),
        ("/set top_p=0", "/set: top_p: found '0', accepts greater than 0"),
        ("/set top_k=2.5", "/set: top_k: found '2.5', accepts a valid integer"),
        ("hot " * 90, "prompt 1: has "),
    ],
)
def test_a_mistake_is_explained_at_a_terminal_and_ends_a_pipe(run, monkeypatch, line, message):
    (reply,) = expected_replies(run, ["sea"])
    output = talk(run, monkeypatch, [line, "sea"], typed=True)
    assert "error: " in output
    assert message in output
    assert reply in output
    with pytest.raises((ConfigError, DataError)) as caught:
        talk(run, monkeypatch, [line, "sea"])
    assert message in str(caught.value)


def test_ctrl_c_stops_a_reply_and_the_chat_goes_on_with_what_was_said(run, scripted, monkeypatch):
    prompt = encode_prompt(run.tokenizer, run.template, [{"role": "user", "content": "count"}])
    ids = run.tokenizer("one two three four five six")["input_ids"]
    scripted(ids, len(prompt))
    asked, write = [], chat_module._write

    def interrupt(console, text):
        if "t" in text:
            raise KeyboardInterrupt
        write(console, text)

    def remember(model, tokenizer, template, messages, *rest):
        asked.append([dict(message) for message in messages])
        return original(model, tokenizer, template, messages, *rest)

    original = chat_module.stream
    monkeypatch.setattr(chat_module, "stream", remember)
    monkeypatch.setattr(chat_module, "_write", interrupt)
    output = talk(run, monkeypatch, ["count", "go on"], SampleSettings(), typed=True)
    assert "(stopped)" in output
    assert [message["role"] for message in asked[1]] == ["user", "assistant", "user"]
    said = asked[1][1]["content"]
    assert said.startswith("one")
    assert "six" not in said
    with pytest.raises(KeyboardInterrupt):
        talk(run, monkeypatch, ["count"], SampleSettings())


def test_ctrl_c_at_the_prompt_leaves(run, monkeypatch):
    def interrupt(_prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert "Ctrl-D leaves" in talk(run, monkeypatch, [], typed=True)


def test_a_question_too_long_for_any_context_costs_no_earlier_turn(run, monkeypatch):
    asked = []
    original = chat_module.stream

    def remember(model, tokenizer, template, messages, *rest):
        asked.append([message["content"] for message in messages])
        return original(model, tokenizer, template, messages, *rest)

    monkeypatch.setattr(chat_module, "stream", remember)
    questions = ["one", "the sea is wide and blue " * 200, "two"]
    output = talk(run, monkeypatch, questions, SampleSettings(max_new_tokens=4), typed=True)
    assert "shorten it" in output
    assert "forgotten" not in output
    assert [messages[0] for messages in asked] == ["one"] * 3
    assert asked[2][-1] == "two"


def test_a_full_context_forgets_the_oldest_turns_and_says_so(run, monkeypatch):
    context = run.model.config.n_positions
    questions = [f"the sea is wide and blue number {number}" for number in range(4)]
    asked, said = [], []
    original = chat_module.stream

    def remember(model, tokenizer, template, messages, *rest):
        asked.append([dict(message) for message in messages])
        reply = original(model, tokenizer, template, messages, *rest)
        said.append({"role": "assistant", "content": reply.text})
        return reply

    monkeypatch.setattr(chat_module, "stream", remember)
    sampling = SampleSettings(max_new_tokens=20)
    output = talk(run, monkeypatch, questions, sampling, typed=True, system="be brief")
    assert "earlier messages were forgotten" in output
    assert [messages[-1]["content"] for messages in asked] == questions
    for messages in asked:
        assert messages[0] == {"role": "system", "content": "be brief"}
        assert messages[1]["role"] == "user"
        num_tokens = len(encode_prompt(run.tokenizer, run.template, messages))
        assert num_tokens + sampling.max_new_tokens <= context
    num_forgotten = []
    for (before, after), answer in zip(pairwise(asked), said, strict=False):
        turns = [*before[1:], answer, after[-1]]
        num_forgotten.append(len(turns) - len(after[1:]))
        assert after[1:] == turns[num_forgotten[-1] :]
        if num_forgotten[-1]:
            one_more = [after[0], *turns[num_forgotten[-1] - 2 :]]
            num_tokens = len(encode_prompt(run.tokenizer, run.template, one_more))
            assert num_tokens + sampling.max_new_tokens > context
    assert len(num_forgotten) == len(questions) - 1
    assert num_forgotten[-1] > 0


def common_length(first, second):
    return next(n for n in range(len(second)) if first[n : n + 1] != second[n : n + 1])


def count_reads(run, monkeypatch, lines, **options):
    """Return how many tokens each forward pass of a chat reads."""
    counts, forward = [], run.model.forward

    def counted(input_ids=None, **rest):
        counts.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(run.model, "forward", functools.wraps(forward)(counted))
        talk(run, monkeypatch, lines, **options)
    return counts


def test_a_second_question_reads_only_what_the_chat_has_not_read_yet(run, monkeypatch):
    first = [{"role": "user", "content": "what does a cow eat"}]
    (reply,) = generate(run.model, run.tokenizer, run.template, [first], SHORT)
    second = [
        *first, {"role": "assistant", "content": reply.text}, {"role": "user", "content": "hot"}
    ]  # fmt: skip
    first_ids = encode_prompt(run.tokenizer, run.template, first)
    second_ids = encode_prompt(run.tokenizer, run.template, second)
    num_known = common_length([*first_ids, *reply.ids[:-1]], second_ids)
    counts = count_reads(run, monkeypatch, ["what does a cow eat", "hot"])
    assert [count for count in counts if count > 1] == [len(first_ids), len(second_ids) - num_known]
    assert num_known >= len(first_ids)


@pytest.mark.parametrize("command", ["/reset", "/system", "/system be brief"])
def test_a_new_chat_keeps_nothing_of_the_old_one(run, monkeypatch, command):
    counts = count_reads(run, monkeypatch, ["hot sea", command, "hot sea"])
    whole = [count for count in counts if count > 1]
    assert len(whole) == 2
    if command != "/system be brief":
        assert whole[0] == whole[1]
    assert whole[1] >= whole[0]


LINES = (
    "hot",
    "what does a cow eat",
    "奶牛吃什么",
    "the sea is wide and blue",
    "hot " * 90,
    "/reset",
    "/system",
    "/system be brief",
    "/set temperature=1.2",
    "/set temperature=0",
    "/set max_new_tokens=9",
    "/set max_new_tokens=40 seed=3",
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(st.sampled_from(LINES), min_size=3, max_size=9),
    interrupted_by=st.sampled_from(["\0", "t", "e", "o"]),
)
def test_any_chat_is_what_it_is_when_nothing_is_kept(run, monkeypatch, lines, interrupted_by):
    run.model.double()  # what rounds differently can't change a reply then
    original_stream, original_write = chat_module.stream, chat_module._write

    def forgetful(*arguments):
        return original_stream(*arguments[:6])

    def interrupt(console, text):
        if interrupted_by in text:
            raise KeyboardInterrupt
        original_write(console, text)

    monkeypatch.setattr(chat_module, "_write", interrupt)
    with_kept = talk(run, monkeypatch, lines, typed=True)
    monkeypatch.setattr(chat_module, "stream", forgetful)
    without = talk(run, monkeypatch, lines, typed=True)
    monkeypatch.undo()
    assert with_kept == without


@pytest.mark.parametrize("name", ["chatglm2_tiny_int4", "chatglm3_tiny_fp16"])
def test_a_chat_with_chatglm_is_what_it_is_when_nothing_is_kept(
    chatglm_fixtures, monkeypatch, name
):
    model = AutoModelForCausalLM.from_pretrained(chatglm_fixtures / name, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(chatglm_fixtures / name)
    run = Run(model, tokenizer, choose_template(tokenizer, "auto"))
    lines = ["你好", "Hello, how are you?", "/set temperature=0.9", "请写一首诗"]
    sampling = SampleSettings(max_new_tokens=20)
    counts = count_reads(run, monkeypatch, lines, sampling=sampling)
    with_kept = talk(run, monkeypatch, lines, sampling)
    original = chat_module.stream
    monkeypatch.setattr(chat_module, "stream", lambda *arguments: original(*arguments[:6]))
    assert talk(run, monkeypatch, lines, sampling) == with_kept
    all_counts = count_reads(run, monkeypatch, lines, sampling=sampling)
    assert len(counts) == len(all_counts)
    assert sum(counts) < sum(all_counts)


def test_a_reply_that_was_cut_says_how_to_get_more(run, monkeypatch):
    output = talk(run, monkeypatch, ["hot"], typed=True)
    assert "(cut after 6 tokens; see /set max_new_tokens)" in output


def test_an_empty_reply_is_not_remembered(run, scripted, monkeypatch):
    scripted([], 0)
    asked, original = [], chat_module.stream

    def remember(model, tokenizer, template, messages, *rest):
        asked.append(len(messages))
        return original(model, tokenizer, template, messages, *rest)

    monkeypatch.setattr(chat_module, "stream", remember)
    output = talk(run, monkeypatch, ["hot", "sea"], typed=True)
    assert output.count("(an empty reply)") == 2
    assert asked == [1, 1]


def test_a_reply_cannot_send_control_codes_to_the_terminal(run, scripted, monkeypatch):
    prompt = encode_prompt(run.tokenizer, run.template, [{"role": "user", "content": "x"}])
    said = "a\x1b[2Jb\tc\n[red]d[/red]\x9b1m"
    ids = run.tokenizer(said)["input_ids"]
    scripted(ids, len(prompt))
    assert talk(run, monkeypatch, ["x"], SampleSettings()) == f"{said}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    terminal = io.StringIO()
    chat(Console(file=terminal, force_terminal=True), run, SampleSettings())
    assert terminal.getvalue() == "a\ufffd[2Jb\tc\n[red]d[/red]\ufffd1m\n"


def test_input_that_is_not_utf8_is_refused(run, monkeypatch):
    for errors in ("strict", "surrogateescape"):
        broken = io.TextIOWrapper(io.BytesIO(b"h\xff\n"), encoding="utf-8", errors=errors)
        monkeypatch.setattr("sys.stdin", broken)
        with pytest.raises(DataError, match="not UTF-8"):
            chat(Console(file=io.StringIO()), run, SHORT)


BOUNDS = {
    "max_new_tokens": (int, lambda value: value >= 1),
    "temperature": (float, lambda value: value >= 0),
    "top_k": (int, lambda value: value >= 0),
    "top_p": (float, lambda value: 0 < value <= 1),
    "seed": (int, lambda value: value >= 0),
}


@given(
    name=st.sampled_from(sorted(BOUNDS)),
    value=st.one_of(st.integers(-3, 3), st.floats(-2, 2), st.just(float("nan")), st.just(1e400)),
)
def test_a_value_is_taken_exactly_when_it_is_in_bounds(name, value):
    kind, in_bounds = BOUNDS[name]
    is_number = value == value and abs(value) != float("inf")
    fits_kind = kind is float or (is_number and float(value).is_integer())
    if is_number and fits_kind and in_bounds(value):
        assert getattr(change_sampling(SampleSettings(), {name: value}, "x"), name) == value
        as_text = change_sampling(SampleSettings(), {name: str(kind(value))}, "x")
        assert getattr(as_text, name) == value
    else:
        with pytest.raises(ConfigError, match=f"x: {name}: found "):
            change_sampling(SampleSettings(), {name: value}, "x")


def test_all_wrong_settings_are_reported_at_once_and_nothing_else_changes():
    sampling = SampleSettings(prompts=["a"], top_k=4)
    with pytest.raises(ConfigError) as caught:
        change_sampling(sampling, {"seed": -1, "prompts": "b", "top_p": "many"}, "/set")
    assert [problem.key for problem in caught.value.problems] == ["seed", "prompts", "top_p"]
    changed = change_sampling(sampling, {"seed": 3}, "/set")
    assert changed == SampleSettings(prompts=["a"], top_k=4, seed=3)
    assert sampling.seed == 0
