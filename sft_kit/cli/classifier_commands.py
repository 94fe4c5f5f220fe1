"""Commands about a classifier run: evaluate, classify."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sft_kit.cli.rows_out import check_output, row_progress
from sft_kit.config.merging import COMMAND_LINE
from sft_kit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sft_kit.artifacts.classifier import LoadedClassifier
    from sft_kit.cli.classifier_data import AskedRows
    from sft_kit.data.labelled.rows import LabelledExample
    from sft_kit.evaluation.classification import ClassificationReport
    from sft_kit.inference.classify import Prediction

Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Folder of a finished classifier run.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="data.key=value", help="How FILE is read, where not as the run read its data."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The base checkpoint of the run, if it has moved since."),
]
ForceBase = Annotated[
    bool,
    typer.Option("--force-base", help="Use another base than the run was trained on, and warn."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Texts per forward pass; changes speed and memory only.")
]


def evaluate(
    run: Run,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Labelled texts, in any form that a recipe reads.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: RUN/evaluation/name of FILE."),
    ] = None,
    base: Base = None,
    force_base: ForceBase = False,
    batch_size: BatchSize = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print evaluation.json instead of tables.")
    ] = False,
) -> None:
    """Say how good a classifier is on labelled texts."""
    from rich.console import Console

    from sft_kit.artifacts.classifier import load_classifier_run
    from sft_kit.cli.classifier_data import file_rows, rows_trained_on
    from sft_kit.evaluation.folder import report_folder, write_report
    from sft_kit.evaluation.report import report_files, show_report

    folder = report_folder(run, data, output)
    loaded = load_classifier_run(run, base, force_base=force_base)
    asked = file_rows(loaded, data, overrides or [], needs_labels=True)
    is_trained, note = rows_trained_on(loaded, asked.rows)
    _tell([*asked.notes, note])
    report, not_trained_on = _judge(loaded, asked, is_trained, batch_size)
    about = {"run": run, "data": data, "fingerprint": asked.fingerprint, "training": note}
    files = report_files(report, about=about, not_trained_on=not_trained_on)
    if as_json:
        typer.echo(files["evaluation.json"].decode(), nl=False)
    else:
        show_report(Console(), report)
        if not_trained_on is not None:
            show_report(Console(), not_trained_on, "rows not trained on")
    for path in write_report(folder, files):
        typer.echo(path, err=as_json)


def classify(
    run: Run,
    overrides: Overrides = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text; may be repeated.")
    ] = None,
    text_pair: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="The second text of a pair; one for each --text."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Texts, in any form that a recipe reads."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write .csv (formulas made harmless) or .jsonl (exact), with the line of each "
            "text in the file it comes from. With several labels a text, an empty prediction is no "
            "label, and its probability that of the least sure decision for or against one.",
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Give the probability of every class.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier output file.")
    ] = False,
    base: Base = None,
    force_base: ForceBase = False,
    batch_size: BatchSize = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: text, prediction, probabilities.")
    ] = False,
) -> None:
    """Label texts with a classifier."""
    from sft_kit.artifacts.classifier import load_classifier_run
    from sft_kit.cli.classifier_data import file_rows, given_rows
    from sft_kit.data.inspection import counted
    from sft_kit.inference.prediction_files import SUFFIXES, prediction_rows

    _check_task(text, file, output, overrides, as_json=as_json)
    texts, pairs = _checked(text, "--text"), _checked(text_pair, "--text-pair")
    if output is not None and file is not None:
        failure = "the predictions can't be written"
        check_output(output, file, "--file", SUFFIXES, failure, overwrite=overwrite)
    loaded = load_classifier_run(run, base, force_base=force_base)
    if file is None:
        asked = given_rows(loaded, texts, pairs)
    else:
        asked = file_rows(loaded, file, overrides or [], needs_labels=False)
    _tell(asked.notes)
    found = _predicted(loaded, asked, batch_size)
    if output is not None:
        _write(output, loaded, asked, found, with_probabilities=probabilities)
        typer.echo(f"{output}: {counted(len(found), 'text')}", err=as_json)
    multi_label, with_places = loaded.multi_label, file is not None
    lines = list(
        prediction_rows(asked.rows, found, multi_label=multi_label, with_places=with_places)
    )
    if as_json:
        typer.echo(json.dumps(lines, indent=2, ensure_ascii=False))
    elif output is None:
        _print_predictions(lines, with_probabilities=probabilities)


def _predicted(
    loaded: "LoadedClassifier", asked: "AskedRows", batch_size: int
) -> "list[Prediction]":
    from sft_kit.inference.classify import predict

    examples = _tokenized(loaded, asked)
    with row_progress(len(examples), "texts", "the texts can't be classified") as on_rows:
        return predict(
            loaded.model,
            examples,
            loaded.label_names,
            pad_token_id=_pad_token_id(loaded),
            multi_label=loaded.multi_label,
            batch_size=batch_size,
            on_rows=on_rows,
        )


def _write(
    output: Path,
    loaded: "LoadedClassifier",
    asked: "AskedRows",
    found: "Sequence[Prediction]",
    *,
    with_probabilities: bool,
) -> None:
    from sft_kit.inference.prediction_files import write_predictions

    separator = loaded.data.label_separator if loaded.multi_label else None
    write_predictions(
        output,
        asked.rows,
        found,
        label_separator=separator,
        with_probabilities=with_probabilities,
    )


def _judge(
    loaded: "LoadedClassifier",
    asked: "AskedRows",
    is_trained: Sequence[bool] | None,
    batch_size: int,
) -> "tuple[ClassificationReport, ClassificationReport | None]":
    """Report on all rows and, where some but not all were trained on, on the others."""
    import numpy as np

    from sft_kit.evaluation.classification import evaluate as report_on
    from sft_kit.inference.classify import predict_logits

    examples = _tokenized(loaded, asked)
    with row_progress(len(examples), "texts", "the texts can't be classified") as on_rows:
        logits = predict_logits(
            loaded.model,
            examples,
            pad_token_id=_pad_token_id(loaded),
            batch_size=batch_size,
            on_rows=on_rows,
        )
    labels = np.asarray([example.label for example in examples])
    names, multi_label = loaded.label_names, loaded.multi_label
    report = report_on(logits, labels, asked.rows, names, multi_label=multi_label)
    if is_trained is None or not any(is_trained) or all(is_trained):
        return report, None
    kept = [index for index, one in enumerate(is_trained) if not one]
    rows = [asked.rows[index] for index in kept]
    return report, report_on(logits[kept], labels[kept], rows, names, multi_label=multi_label)


def _tokenized(loaded: "LoadedClassifier", asked: "AskedRows") -> "list[LabelledExample]":
    from sft_kit.data.labelled.tokenization import check_labelled, tokenize_labelled

    examples = tokenize_labelled(asked.rows, loaded.tokenizer, loaded.label_names, asked.settings)
    _tell(check_labelled(examples, loaded.tokenizer, asked.settings))
    return examples


def _pad_token_id(loaded: "LoadedClassifier") -> int:
    return int(cast("int", loaded.tokenizer.pad_token_id))


def _tell(notes: Sequence[str]) -> None:
    for note in filter(None, notes):
        typer.echo(f"note: {note}", err=True)


def _check_task(
    text: Sequence[str] | None,
    file: str | None,
    output: Path | None,
    overrides: Sequence[str] | None,
    *,
    as_json: bool,
) -> None:
    """Refuse to classify nothing, or two things at once, or into nowhere.

    Raises:
        ConfigError: All that is wrong.
    """
    problems = []
    if bool(text) == (file is not None):
        found = "found both" if text else "found neither"
        problems.append(Problem(COMMAND_LINE, "--text, --file", f"{found}, accepts one of them"))
    if file is not None and output is None and not as_json:
        todo = "name a file, or add --json to print"
        problems.append(Problem(COMMAND_LINE, "--output", "found nothing", todo))
    if file is None and output is not None:
        problems.append(Problem(COMMAND_LINE, "--output", "is for --file", "remove it"))
    problems += [
        Problem(COMMAND_LINE, word, "says how --file is read, and there is none", "remove it")
        for word in (overrides or [] if file is None else [])
    ]
    if problems:
        raise ConfigError("these options can't be used", problems)


def _checked(texts: Sequence[str] | None, option: str) -> list[str]:
    """Refuse texts that are empty or no text.

    Raises:
        ConfigError: All of them at once.
    """
    problems = []
    for text in texts or []:
        has_half_characters = any("\ud800" <= one <= "\udfff" for one in text)
        if not text.strip() or has_half_characters:
            found = f"found {text!r}, accepts UTF-8 text that is not blank"
            problems.append(Problem(COMMAND_LINE, option, found))
    if problems:
        raise ConfigError("these texts can't be classified", problems)
    return list(texts or [])


def _print_predictions(lines: Sequence[Mapping[str, Any]], *, with_probabilities: bool) -> None:
    """Print one line a text: what it is, how surely, and the text."""
    from sft_kit.data.token_text import readable

    for line in lines:
        labels = line["prediction"]
        names = labels if isinstance(labels, list) else [labels]
        parts = [", ".join(names) or "no label", f"{line['probability']:.4f}"]
        if with_probabilities:
            parts += [f"{name}={share:.4f}" for name, share in line["probabilities"].items()]
        parts += [line[key] for key in ("text", "text_pair") if key in line]
        typer.echo("\t".join(readable(part).replace("\n", "") for part in parts))


COMMANDS = (evaluate, classify)
