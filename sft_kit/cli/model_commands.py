"""Commands about a model: chat, generate, merge."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sft_kit.config.core_schema import Scalar
from sft_kit.config.merging import COMMAND_LINE
from sft_kit.config.yaml_text import read_value
from sft_kit.errors import ConfigError, DataError, Problem
from sft_kit.settings import Dtype, Quantization, SampleSettings, StoredDtype

if TYPE_CHECKING:
    from sft_kit.artifacts import LoadedRun, LoadOptions
    from sft_kit.artifacts.plain import LoadedPlain
    from sft_kit.data.rows import Message
    from sft_kit.inference.generate import Reply

CHAT_MAX_NEW_TOKENS = 256

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a finished run, folder of a checkpoint, or Hub id.",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The base checkpoint of a run, if it has moved since."),
]
ForceBase = Annotated[
    bool,
    typer.Option("--force-base", help="Use another base than the run was trained on, and warn."),
]
Adapter = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="An adapter that PEFT saved for the checkpoint MODEL."),
]
QuantizationOption = Annotated[
    Quantization | None,
    typer.Option("--quantization", help="Storage of a checkpoint's linear layers."),
]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Type of a checkpoint's weights.")
]
FastInt4 = Annotated[
    bool,
    typer.Option("--fast-int4", help="ChatGLM int4 on a CPU: faster, in bfloat16, more memory."),
]
Config = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="A field of a checkpoint's config to replace; may be repeated."
    ),
]
System = Annotated[str, typer.Option(metavar="TEXT", help="System message.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy (the default); higher is more random.")
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens; 0 is off.")]
TopP = Annotated[
    float | None, typer.Option(help="Draw from the likeliest tokens with this total probability.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the draw.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest reply in tokens.")]


def chat(
    model: Model,
    base: Base = None,
    force_base: ForceBase = False,
    adapter: Adapter = None,
    quantization: QuantizationOption = None,
    dtype: DtypeOption = None,
    fast_int4: FastInt4 = False,
    config: Config = None,
    system: System = "",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
) -> None:
    """Talk to a model; also with questions from a pipe, one per line."""
    from rich.console import Console

    from sft_kit.artifacts import LoadOptions
    from sft_kit.inference.chat import chat as start_chat

    if max_new_tokens is None:
        max_new_tokens = CHAT_MAX_NEW_TOKENS
    sampling = _sampling(temperature, top_k, top_p, seed, max_new_tokens)
    fields = _fields(config or [])
    options = LoadOptions(base, adapter, quantization, dtype, fast_int4, fields, force_base)
    run = _load(model, options)
    start_chat(Console(), run, sampling, system)


def generate(
    model: Model,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be repeated.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file with one prompt per line.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: prompt, reply, stopped, num_tokens.")
    ] = False,
    base: Base = None,
    force_base: ForceBase = False,
    adapter: Adapter = None,
    quantization: QuantizationOption = None,
    dtype: DtypeOption = None,
    fast_int4: FastInt4 = False,
    config: Config = None,
    system: System = "",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
) -> None:
    """Answer prompts with a model.

    A model that was pretrained continues a prompt, or fills its mask tokens (`[MASK]`,
    `<extra_id_0>`); one that was trained on pairs of texts writes the second to a prompt.
    """
    from sft_kit.artifacts import LoadOptions, load_named_plain
    from sft_kit.inference.generate import generate as answer

    questions = [_checked(text) for text in prompt or []] + _prompts_in(prompt_file)
    if not questions:
        raise ConfigError("there is nothing to answer: give --prompt TEXT or --prompt-file FILE")
    sampling = _sampling(temperature, top_k, top_p, seed, max_new_tokens)
    fields = _fields(config or [])
    options = LoadOptions(base, adapter, quantization, dtype, fast_int4, fields, force_base)
    plain = load_named_plain(model, options)
    if plain is not None:
        replies = _write_plain(plain, questions, system, sampling)
    else:
        run = _load(model, options)
        chats = [_messages(question, system) for question in questions]
        replies = answer(run.model, run.tokenizer, run.template, chats, sampling)
    if as_json:
        rows = [
            {
                "prompt": question,
                "reply": reply.text,
                "stopped": reply.stopped,
                "num_tokens": len(reply.ids),
            }
            for question, reply in zip(questions, replies, strict=True)
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        _print_replies(questions, [reply.text for reply in replies])


def merge(
    model: Model,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write.", show_default=False)
    ],
    dtype: Annotated[
        StoredDtype, typer.Option(help="Type of the weights on disk; what it costs is printed.")
    ] = "float32",
    base: Base = None,
    force_base: ForceBase = False,
    adapter: Adapter = None,
    config: Config = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier merged model in DIR.")
    ] = False,
) -> None:
    """Make adapter and base one model that plain transformers loads."""
    from sft_kit.artifacts import merge_and_save

    merged = merge_and_save(
        model,
        output,
        dtype=dtype,
        base=base,
        adapter=adapter,
        config=_fields(config or []),
        overwrite=overwrite,
        force_base=force_base,
    )
    for line in merged.lines():
        typer.echo(line)
    typer.echo(f"merged model: {merged.folder}")


def _sampling(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    max_new_tokens: int | None,
) -> SampleSettings:
    from sft_kit.inference.chat import change_sampling

    options = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return change_sampling(SampleSettings(), given, COMMAND_LINE)


def _fields(words: Sequence[str]) -> dict[str, Scalar]:
    """Read KEY=VALUE words; a value is YAML, as in the overrides of a recipe."""
    fields: dict[str, Scalar] = {}
    problems = []
    for word in words:
        try:
            key, value = _field(word)
            if key in fields:
                raise _not_a_field("found a second time", "keep one of them")
            fields[key] = value
        except ConfigError as error:
            problems += [replace(one, key=f"--config {word}") for one in error.problems]
    if problems:
        raise ConfigError("these fields can't be set", problems)
    return fields


def _field(word: str) -> tuple[str, Scalar]:
    key, equals, written = word.partition("=")
    if not equals or not key.strip():
        raise _not_a_field("accepts KEY=VALUE")
    node = read_value(written, COMMAND_LINE)
    if node.fault:
        raise _not_a_field(node.fault)
    if isinstance(node.value, list | dict):
        raise _not_a_field("accepts a number, text, true, false or null")
    return key.strip(), node.value


def _not_a_field(found: str, todo: str = "") -> ConfigError:
    return ConfigError("this field can't be set", [Problem(COMMAND_LINE, "", found, todo)])


def _load(name: str, options: "LoadOptions") -> "LoadedRun":
    from sft_kit.artifacts import load_named

    loaded = load_named(name, options)
    if loaded.template.name == "human-assistant" and "recipe" not in loaded.info:
        typer.echo(
            f"note: {name} has no chat template; prompts are written as human-assistant", err=True
        )
    return loaded


def _write_plain(
    run: "LoadedPlain", prompts: Sequence[str], system: str, sampling: SampleSettings
) -> list["Reply"]:
    """Have a model that holds no chats do what it was trained for."""
    from sft_kit.inference.filling import write_plain

    if system:
        found = f"found {system!r}, and the model holds no chats"
        problem = Problem(COMMAND_LINE, "--system", found, "leave it out")
        raise ConfigError("these options can't be used", [problem])
    settings = cast("Mapping[str, Mapping[str, object] | None]", run.info["settings"])
    # What a run put before every source belongs to the model as a chat template does.
    before = str((settings.get("data") or {}).get("prefix") or "")
    return write_plain(
        run.model,
        run.tokenizer,
        [before + prompt for prompt in prompts],
        sampling,
        kind=run.kind,
        objective=run.objective,
    )


def _checked(text: str) -> str:
    if not text.strip():
        raise ConfigError("a prompt is empty: write something after --prompt")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = Problem(COMMAND_LINE, "--prompt", f"found {text!r}, which is not UTF-8 text")
        raise ConfigError("a prompt can't be read", [problem]) from error
    return text


def _prompts_in(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text: found byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} (convert it: iconv -f ENCODING -t UTF-8)"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _messages(question: str, system: str) -> list["Message"]:
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}]


def _print_replies(questions: Sequence[str], replies: Sequence[str]) -> None:
    from sft_kit.inference.chat import harmless

    for question, reply in zip(questions, replies, strict=True):
        if len(questions) > 1:
            typer.echo(f"> {question}")
        shown = harmless(reply) if sys.stdout.isatty() else reply
        typer.echo(f"{shown}\n" if len(questions) > 1 else shown)


COMMANDS = (chat, generate, merge)
