"""Talk to a model in the terminal, or to a pipe.

With a terminal the chat explains itself and survives mistakes. With a pipe (`echo hi | ...`) only
the replies are printed, and a mistake ends the program.
"""

import sys
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.console import Console

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.data.rows import Message
from sft_kit.data.templates import Template, encode_prompt
from sft_kit.errors import ConfigError, DataError, Problem, SftKitError
from sft_kit.inference.generate import stream
from sft_kit.inference.kept_cache import KeptCache
from sft_kit.models.base import context_length
from sft_kit.settings import SampleSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Trained(Protocol):
    """What a chat needs of a loaded run."""

    @property
    def model(self) -> "PreTrainedModel | PeftModel":
        """The model that answers."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""

    @property
    def template(self) -> Template:
        """The template it was trained with."""


@dataclass
class Dialogue:
    """What was said so far, and how the next reply is drawn.

    Attributes:
        sampling: How to draw replies.
        system: System message; empty for none.
        is_terminal: A person is typing: explain, and go on after a mistake.
        turns: Questions and answers, alternating.
        kept: What the model has already read of it.
    """

    sampling: SampleSettings
    system: str
    is_terminal: bool
    turns: list[Message] = field(default_factory=list)
    kept: KeptCache = field(default_factory=KeptCache)

    @property
    def messages(self) -> list[Message]:
        """The system message, if any, and all turns."""
        head: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def forget(self) -> None:
        """Begin anew."""
        self.turns.clear()
        self.kept.clear()


def chat(console: Console, run: Trained, sampling: SampleSettings, system: str = "") -> None:
    """Read questions from standard input and stream the answers until the input ends.

    Ctrl-C stops a reply; at the prompt it leaves, as Ctrl-D does.

    Args:
        console: Where to print.
        run: Model, tokenizer and template.
        sampling: How to draw replies, until `/set` changes it.
        system: System message of the chat.

    Raises:
        SftKitError: Something went wrong while the input is not a terminal.
    """
    dialogue = Dialogue(sampling, system, sys.stdin.isatty())
    if dialogue.is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() editing and history)
    _note(console, dialogue, "Ctrl-C stops a reply, Ctrl-D leaves, /help lists the commands")
    goes_on = True
    while goes_on and (line := _read_line(dialogue.is_terminal)) is not None:
        goes_on = _take(console, run, dialogue, line)


def change_sampling(
    sampling: SampleSettings, changes: Mapping[str, object], where: str
) -> SampleSettings:
    """Return `sampling` with some settings changed, each checked against its bounds.

    Args:
        sampling: The settings so far.
        changes: New values by name; text is read as a number.
        where: Name of the place the changes come from, for messages.

    Raises:
        ConfigError: Unknown names and values that are not accepted, all at once.
    """
    hints = get_type_hints(SampleSettings, include_extras=True)
    del hints["prompts"]
    accepted: dict[str, object] = {}
    problems = []
    for name, value in changes.items():
        if name not in hints:
            hint = did_you_mean(nearest(name, hints)) or f"accepts {', '.join(hints)}"
            problems.append(Problem(where, name, "unknown setting", hint))
            continue
        try:
            adapter = TypeAdapter[object](hints[name], config=ConfigDict(allow_inf_nan=False))
            accepted[name] = adapter.validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input should be", "accepts")
            problems.append(Problem(where, name, f"found {value!r}, {reason}"))
    if problems:
        raise ConfigError("these sampling settings can't be used", problems)
    return replace(sampling, **accepted)  # type: ignore[arg-type]


def _read_line(is_terminal: bool) -> str | None:
    """Return the next line, or None when there is none."""
    try:
        line = input("you> " if is_terminal else "")
        line.encode()  # where the locale is not UTF-8, broken bytes only fail here
    except EOFError:
        return None
    except UnicodeError as error:
        raise DataError(f"standard input is not UTF-8 text: {error}") from error
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        return None
    return line


def _take(console: Console, run: Trained, dialogue: Dialogue, line: str) -> bool:
    """Answer a line or obey its command; False when the chat is over."""
    try:
        if line.startswith("/"):
            return _obey(console, dialogue, line)
        if line.strip():
            _answer(console, run, dialogue, line.strip())
    except SftKitError as error:
        if not dialogue.is_terminal:
            raise
        _note(console, dialogue, f"error: {error}")
    return True


def _answer(console: Console, run: Trained, dialogue: Dialogue, question: str) -> None:
    """Add a question and its answer to the dialogue; neither stays when there is no answer."""
    dialogue.turns.append({"role": "user", "content": question})
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        _write(console, harmless(piece) if console.is_terminal else piece)

    comment = ""
    try:
        num_dropped = _drop_oldest(run, dialogue)
        if num_dropped:
            note = f"the context is full: {num_dropped} earlier messages were forgotten"
            _note(console, dialogue, note)
        reply = stream(
            run.model,
            run.tokenizer,
            run.template,
            dialogue.messages,
            dialogue.sampling,
            show,
            dialogue.kept,
        )
        if not reply.stopped:
            comment = f"(cut after {len(reply.ids)} tokens; see /set max_new_tokens)"
    except KeyboardInterrupt:
        if not dialogue.is_terminal:
            raise
        comment = "(stopped)"
    finally:
        text = "".join(pieces).strip()
        if text:
            dialogue.turns.append({"role": "assistant", "content": text})
        else:
            dialogue.turns.pop()
    _write(console, "\n")
    _note(console, dialogue, comment or ("" if text else "(an empty reply)"))


def _drop_oldest(run: Trained, dialogue: Dialogue) -> int:
    """Forget the oldest question and answer until a reply has room; return the messages dropped."""
    context = context_length(run.model.config)
    if context is None:
        return 0
    # A length limit near the whole context must not make every chat forget everything.
    room = min(dialogue.sampling.max_new_tokens, context // 2)
    num_before = len(dialogue.turns)
    if not _fits_alone(run, dialogue, context):
        return 0  # and the refusal of the question leaves the chat as it was
    while len(dialogue.turns) > 1:
        ids = encode_prompt(run.tokenizer, run.template, dialogue.messages)
        if len(ids) + room <= context:
            break
        del dialogue.turns[:2]
    return num_before - len(dialogue.turns)


def _fits_alone(run: Trained, dialogue: Dialogue, context: int) -> bool:
    alone = replace(dialogue, turns=dialogue.turns[-1:])
    return len(encode_prompt(run.tokenizer, run.template, alone.messages)) < context


def _obey(console: Console, dialogue: Dialogue, line: str) -> bool:
    """Carry out a command; False when it ends the chat."""
    name, _, rest = line.partition(" ")
    if name == "/exit":
        return False
    if name not in _COMMANDS:
        known = [*_COMMANDS, "/exit"]
        hint = did_you_mean(nearest(name, known)) or "/help lists the commands"
        raise ConfigError(f"unknown command {name!r} ({hint})")
    command, _ = _COMMANDS[name]
    command(console, dialogue, rest.strip())
    return True


def _reset(console: Console, dialogue: Dialogue, _: str) -> None:
    dialogue.forget()
    _note(console, dialogue, "a new chat")


def _system(console: Console, dialogue: Dialogue, text: str) -> None:
    dialogue.system = text
    dialogue.forget()
    _note(console, dialogue, "a new chat" + ("" if text else " without system message"))


def _set(console: Console, dialogue: Dialogue, text: str) -> None:
    parts = [part.partition("=") for part in text.split()]
    unclear = [Problem("/set", name, "accepts NAME=VALUE") for name, sign, _ in parts if not sign]
    if unclear:
        raise ConfigError("this can't be set", unclear)
    changes = {name: value for name, _, value in parts}
    dialogue.sampling = change_sampling(dialogue.sampling, changes, "/set")
    settings = asdict(dialogue.sampling)
    del settings["prompts"]
    _note(console, dialogue, " ".join(f"{name}={value}" for name, value in settings.items()))


def _help(console: Console, dialogue: Dialogue, _: str) -> None:
    for name, (_command, meaning) in _COMMANDS.items():
        _note(console, dialogue, f"{name:8} {meaning}")
    _note(console, dialogue, "/exit    leave")
    _note(
        console,
        dialogue,
        "Everything else is a question; put a space before one that begins with /.",
    )


_COMMANDS: Mapping[str, tuple[Callable[[Console, Dialogue, str], None], str]] = {
    "/help": (_help, "list the commands"),
    "/reset": (_reset, "forget what was said"),
    "/system": (_system, "TEXT  begin a new chat with this system message"),
    "/set": (_set, "temperature=0.7 top_k=40 top_p=0.9 seed=1 max_new_tokens=64; alone: show them"),
}


def _note(console: Console, dialogue: Dialogue, text: str) -> None:
    if text and dialogue.is_terminal:
        console.out(text, style="dim", highlight=False)


def _write(console: Console, text: str) -> None:
    # `console.print` and `console.out` would turn tabs into spaces, counted from the piece's start.
    console.file.write(text)
    console.file.flush()


def harmless(text: str) -> str:
    """Replace control characters, with which a reply could rewrite a terminal."""
    return "".join(
        "\ufffd"
        if unicodedata.category(character) == "Cc" and character not in "\n\t"
        else character
        for character in text
    )
