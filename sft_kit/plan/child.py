"""Runs a recipe as it is, but for its training: `python -m sft_kit.plan.child RECIPE FILE ...`.

A recipe names what trains its model; here another thing stands under that name. All before and
after it is the recipe itself. The figures go into a file; what a user would have to see does too.
"""

import importlib.util
import os
import shutil
import sys
import threading
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sft_kit.errors import ConfigError, SftKitError

if TYPE_CHECKING:
    from sft_kit.plan.recorder import Recorder


def main() -> None:
    """Run the recipe that the command line names, with the words that follow."""
    recipe, figures, folder = (Path(word) for word in sys.argv[1:4])
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    sys.argv = [str(recipe), *sys.argv[4:]]
    sys.path[0] = str(recipe.parent.absolute())  # as of a script; it was that of -m
    module = _load(recipe)
    from sft_kit.plan.recorder import Recorder  # after what the recipe itself imports

    recorder = Recorder(figures)
    try:
        _put_in(module, recorder)
        module.main()
        recorder.phase("end")
    except SftKitError as error:
        recorder.write("error", text=str(error))


def _put_in(module: ModuleType, recorder: "Recorder") -> None:
    """Replace what trains.

    Raises:
        ConfigError: The recipe has a loop of its own.
    """
    if hasattr(module, "SafeTrainer"):
        from sft_kit.plan.trainer import MeasuringTrainer

        vars(module)["SafeTrainer"] = partial(MeasuringTrainer, recorder)
    elif hasattr(module, "train_ppo"):
        from sft_kit.plan.ppo import measure_ppo

        vars(module)["train_ppo"] = partial(measure_ppo, recorder)
    else:
        raise ConfigError(
            f"{Path(str(module.__file__)).name} trains in a loop of its own, which can't be "
            "measured: plan a recipe that uses SafeTrainer or train_ppo"
        )


def _load(recipe: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(recipe.stem, recipe)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _end_with_parent(folder: Path) -> None:
    """Leave nothing behind where the process that waits for the figures is gone."""
    os.read(sys.stdin.fileno(), 1)  # ends when the other end is closed
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
