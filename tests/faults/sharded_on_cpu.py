"""Run a recipe in parts on CPU processes: `accelerate launch ... sharded_on_cpu.py recipes/x.py`.

PyTorch's FSDP2 shards on CPUs too; accelerate sets it aside for CPU processes. DeepSpeed is taken
there, but not on purpose. This project refuses both launches. All that is lifted here, so that
everything else is what a GPU run goes through.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from sft_kit import launch_checks

_initialise = AcceleratorState.__init__


def _initialise_with_fsdp(
    self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any
) -> None:
    _initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if getattr(self, "fsdp_plugin", None) is not None:
        self.distributed_type = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = _initialise_with_fsdp
    launch_checks.check_sharding = lambda *_, **__: None
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
