"""What commands that answer row by row share: where the answers go, and how many are done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sft_kit.config.merging import COMMAND_LINE
from sft_kit.errors import ConfigError, Problem


def check_output(
    output: Path,
    source: str,
    option: str,
    suffixes: Sequence[str],
    failure: str,
    *,
    overwrite: bool,
) -> None:
    """Refuse to write over the rows, over an earlier file unasked, or in an unknown form.

    Args:
        output: File to write.
        source: File that the rows come from.
        option: The option that names it.
        suffixes: Endings that can be written.
        failure: What can't be done then.
        overwrite: Replace an earlier file.

    Raises:
        ConfigError: Why not.
    """
    rows = Path(source).expanduser()
    if output.suffix.lower() not in suffixes:
        found = f"found {str(output)!r}, accepts files ending in {' or '.join(suffixes)}"
        problem = Problem(COMMAND_LINE, "--output", found)
    elif output.exists() and rows.exists() and output.samefile(rows):
        problem = Problem(COMMAND_LINE, "--output", f"found the file of {option}", "name another")
    elif output.exists() and (output.is_dir() or not overwrite):
        todo = "name another" if output.is_dir() else "add --overwrite to replace it"
        problem = Problem(COMMAND_LINE, "--output", f"{output} is there already", todo)
    elif not output.parent.is_dir():
        problem = Problem(COMMAND_LINE, "--output", f"there is no folder {output.parent}")
    else:
        return
    raise ConfigError(failure, [problem])


@contextmanager
def row_progress(num_rows: int, rows: str, failure: str) -> Iterator[Callable[[int], None]]:
    """Show in a terminal how many rows are done; say what to do when memory runs out.

    Args:
        num_rows: In all.
        rows: What they are.
        failure: What can't be done without memory.

    Raises:
        ConfigError: A batch is more than memory holds.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(rows, total=num_rows)
            yield lambda count: bar.advance(task, count)
    except torch.OutOfMemoryError as error:
        problem = Problem(COMMAND_LINE, "--batch-size", "is more than memory holds", "lower it")
        raise ConfigError(failure, [problem]) from error
