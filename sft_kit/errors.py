"""What can go wrong, as one tree of exceptions with one way to say it.

SftKitError
├── ConfigError (ValueError)       a YAML or a command line that can't be used
├── DataError (ValueError)         a data file or the labels made from it
│   ├── FormatError                rows that don't have the shape of their format
│   └── TemplateError              a chat template that can't serve training
├── CheckpointError (RuntimeError) a checkpoint or run folder that can't be read or trusted
├── TrainingError (RuntimeError)   a run that can't go on, such as one that memory is too small for
│   └── NonFiniteError             a loss or a gradient that is not a number
├── StoppedError (RuntimeError)    a run that a signal has stopped
├── LaunchError (RuntimeError)     fewer processes, or other hardware, than was asked for
└── HubError (RuntimeError)        the Hub can't be reached or says no

Every message answers four questions in order: where, what was found, what is accepted, what to do
next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SHOWN_PROBLEMS = 50
"""Problems written out in a message; `SftKitError.problems` always holds all of them."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where.

    Args:
        where: `file:line`, a file, a folder, or the command line.
        key: Dotted key of a setting (`train.learning_rate`) or field of a row
            (`messages[1].content`); may be empty.
        message: What was found and what is accepted.
        todo: What to do next; may be empty.
    """

    where: str
    key: str
    message: str
    todo: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, self.key) if part)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} ({self.todo})" if self.todo else text


class SftKitError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        summary: One sentence; the whole message when there are no problems to list.
        problems: All that is wrong, in the order of the file.
    """

    def __init__(self, summary: str, problems: Sequence[Problem] = ()) -> None:
        self.summary = summary
        self.problems = tuple(problems)
        lines = [f"  {problem}" for problem in self.problems[:MAX_SHOWN_PROBLEMS]]
        if len(self.problems) > MAX_SHOWN_PROBLEMS:
            lines.append(f"  ... and {len(self.problems) - MAX_SHOWN_PROBLEMS} more")
        super().__init__("\n".join([summary, *lines]))


class ConfigError(SftKitError, ValueError):
    """A YAML, a command-line override or a combination of settings that can't be used."""


class DataError(SftKitError, ValueError):
    """A data file that can't be read, or labels that can't train."""


class FormatError(DataError):
    """Rows that don't have the shape of their format."""


class TemplateError(DataError):
    """A chat template without a stop token, or one whose prompt changes with the answer."""


class CheckpointError(SftKitError, RuntimeError):
    """A checkpoint or a run folder that can't be read, or is not what it says."""


class TrainingError(SftKitError, RuntimeError):
    """A run that can't go on."""


class NonFiniteError(TrainingError):
    """A loss or a gradient that is NaN or infinite, found before it reached the weights."""


class StoppedError(SftKitError, RuntimeError):
    """A run that was asked to stop, did, and can be resumed.

    Args:
        summary: Where it stands, and how to go on.
        signal_number: What asked.
    """

    def __init__(self, summary: str, signal_number: int) -> None:
        super().__init__(summary)
        self.signal_number = signal_number


class LaunchError(SftKitError, RuntimeError):
    """Fewer processes, or other hardware, than was asked for."""


class HubError(SftKitError, RuntimeError):
    """The Hub can't be reached, or refuses."""
