"""How a recipe or a command ends: its exit code and its last words."""

import os
import sys
from collections.abc import Callable

from sft_kit.errors import NonFiniteError, SftKitError, StoppedError
from sft_kit.stopping import end_on_terminate, exit_code

EXIT_USER_ERROR = 2
EXIT_NOT_A_NUMBER = 3
EXIT_INTERRUPTED = 130


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe so that a user's mistake ends in a message instead of a traceback.

    Exit code 2 means that something in settings or data is wrong, 3 that a loss or a gradient was
    not a number, 130 that Ctrl-C stopped it, 143 that SIGTERM did. With several processes on a
    machine only the first one prints.
    """
    try:
        with end_on_terminate():
            main()
    except StoppedError as stopped:
        _print_error(str(stopped))
        raise SystemExit(exit_code(stopped.signal_number)) from None
    except SftKitError as error:
        _print_error(f"error: {error}")
        is_number = not isinstance(error, NonFiniteError)
        raise SystemExit(EXIT_USER_ERROR if is_number else EXIT_NOT_A_NUMBER) from None
    except KeyboardInterrupt:
        _print_error("stopped by Ctrl-C; a run with checkpoints continues with `--resume`")
        raise SystemExit(EXIT_INTERRUPTED) from None


def _print_error(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"{text}\n")
