"""What this machine offers, and how many processes were started on it.

Settings that depend on the machine may say `auto`; here is what they become, with the reason.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sft_kit.errors import LaunchError, Problem
from sft_kit.host_memory import free_host_bytes
from sft_kit.parts import notes_on_speed, pick_parts

if TYPE_CHECKING:
    import torch

_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
_ISA_WITH_BF16 = {
    "ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX",
    "AVX512_CORE_AMX_FP16", "AVX10_1_512", "AVX10_1_512_AMX", "AVX10_1_512_AMX_FP16",
}  # fmt: skip
_LAUNCH_FILE = str(Path("accelerate", "commands", "launch.py"))

Sections = Mapping[str, Mapping[str, object] | None]


@dataclass(slots=True)
class Resolution:
    """Values for the settings that said `auto`.

    Attributes:
        updates: Section -> key -> value.
        notes: What was picked and why, one sentence each.
        problems: Settings that this machine can't do.
    """

    updates: dict[str, dict[str, object]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The device a run would use.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        name: For the reader.
        bf16: Whether it computes in bfloat16.
        fp16: Whether it computes in float16.
        is_fast_in_bf16: Whether its matrix products are faster then.
    """

    kind: str
    name: str
    bf16: bool
    fp16: bool
    is_fast_in_bf16: bool = False


def resolve(sections: Sections) -> Resolution:
    """Pick device and precision, and check the ones that were asked for.

    On a GPU the linear algebra runs in bf16 where the hardware has it, else in fp16 with loss
    scaling; on a CPU in bf16 where it has instructions for it; else everything is float32. PPO on a
    CPU is float32: it compares probabilities that were computed in two ways. Adapters are float32
    everywhere.
    """
    result = Resolution()
    train = dict(sections.get("train") or {})
    model = sections.get("model") or {}
    wants_cpu = train.get("use_cpu", "auto")
    if wants_cpu == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        wants_cpu = True
    found = find_accelerator(only_cpu=wants_cpu is True)
    if found.kind == "mps" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found = find_accelerator(only_cpu=True)  # MPS has no backend for several processes
    precision, reason = _pick_precision(train, found, result, may_round="ppo" not in sections)
    trains_all = "adapter" in sections and sections["adapter"] is None
    result.updates["train"] = {
        "use_cpu": found.kind == "cpu",
        "bf16": precision == "bfloat16",
        "fp16": precision == "float16",
    }
    dtype = model.get("dtype")
    if dtype is not None:
        _check_dtype(str(dtype), found, result)
        if trains_all and dtype in ("bfloat16", "float16"):
            result.problems.append(_rounded_away(str(dtype)))
        if dtype == "auto":
            dtype = "bfloat16" if precision == "bfloat16" and not trains_all else "float32"
            result.updates["model"] = {"dtype": dtype}
    parts = pick_parts(sections, on_cpu=found.kind == "cpu", precision=precision)
    if parts:
        result.updates["model"] = result.updates.get("model", {}) | parts
    why = "asked for" if wants_cpu is True else "no GPU found" if found.kind == "cpu" else "found"
    result.notes.append(f"device: {found.kind} ({found.name}, {why})")
    compute = f"{precision} autocast" if precision else "float32"
    adapter = ", adapter float32" if sections.get("adapter") is not None else ""
    key = "; model.dtype" if "dtype" in model else ""
    result.notes.append(
        f"precision: {compute} ({reason}; train.bf16), weights {dtype or 'float32'}{adapter}{key}"
    )
    result.notes += notes_on_speed({**model, **parts}, train)
    return result


def mixed_precision(train: Mapping[str, object]) -> str:
    """Say resolved `bf16` and `fp16` in accelerate's word: "bf16", "fp16" or "no"."""
    return "bf16" if train.get("bf16") else "fp16" if train.get("fp16") else "no"


def find_accelerator(*, only_cpu: bool = False) -> Accelerator:
    """Look for a GPU: CUDA (or ROCm) first, then Apple's MPS, else the CPU."""
    import torch

    if not only_cpu and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name()
        return Accelerator("cuda", name, bf16=has_bf16, fp16=True, is_fast_in_bf16=has_bf16)
    if not only_cpu and torch.backends.mps.is_available():
        return Accelerator("mps", "Apple GPU", bf16=False, fp16=False)
    fast = cpu_is_fast_in_bf16()
    name = f"{usable_cores()} cores{', bf16 instructions' if fast else ''}"
    return Accelerator("cpu", name, bf16=True, fp16=False, is_fast_in_bf16=fast)


def cpu_is_fast_in_bf16() -> bool:
    """Whether there are instructions for products of bfloat16; elsewhere they are emulated, slowly.

    oneDNN, which multiplies for torch, uses none beyond what ONEDNN_MAX_CPU_ISA allows.
    """
    import torch

    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    has = torch.cpu.get_capabilities()
    return allowed in _ISA_WITH_BF16 and any(has.get(name, False) for name in _BF16_INSTRUCTIONS)


def usable_cores() -> int:
    """Count the physical cores this process may run on."""
    import psutil

    allowed = len(psutil.Process().cpu_affinity() if hasattr(os, "sched_getaffinity") else [])
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, allowed) if allowed else physical)


def peak_memory_bytes() -> int:
    """Peak memory of this process so far: allocated on the GPU if there is one, else resident."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return host_peak_bytes()


def host_peak_bytes() -> int:
    """Peak of this process's resident memory so far."""
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.is_file():  # Linux counts a launcher's memory into its child's ru_maxrss
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), flags=re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory_bytes(device: "torch.device") -> int:
    """Memory that a new model could take: free on the GPU, or available on this machine."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    return free_host_bytes()


def use_all_cores() -> str | None:
    """Undo the single thread that launchers give every process.

    `accelerate launch` and `torchrun` set OMP_NUM_THREADS=1 unless it is set already, which halves
    the speed on two cores and more so on larger machines. The cores of this machine are shared
    among the processes that were started on it.

    Returns:
        What was done, or None where the launcher or the user chose another number.
    """
    import torch

    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if not launched or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return None
    num_threads = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(num_threads)
    return f"threads: {num_threads} per process (the launcher had set 1)"


def check_launch(parent_command: Sequence[str] | None = None) -> None:
    """Stop when fewer processes started than the launcher was asked for.

    On a machine without GPU `accelerate launch --num_processes 2` starts one process and says
    nothing; the global batch would silently be half of what was meant.

    Args:
        parent_command: Command line of the launcher; None reads that of the parent process.

    Raises:
        LaunchError: With the commands that do start several processes.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    command = _parent_command() if parent_command is None else list(parent_command)
    asked = asked_processes(command)
    if asked is None and _left_a_port_for_others():
        asked = 2  # an abbreviated flag; at least two were meant
    if asked is None or asked <= started:
        return
    if started > 1:
        raise LaunchError(
            f"the launcher was asked for {asked} processes and started {started}: each machine "
            "starts as many. Give --num_processes a multiple of --num_machines"
        )
    options = _accelerate_options(command) or []
    script = next((word for word in options if word.endswith(".py")), "recipes/<recipe>.py")
    raise LaunchError(
        f"the launcher was asked for {asked} processes and started {started}. Without GPUs use "
        f"`torchrun --nproc_per_node {asked} {script}` or `accelerate launch --config_file "
        f"recipes/launch/ddp_cpu.yaml --num_processes {asked} {script}`"
    )


def check_processes(num_gpus: int) -> None:
    """Stop when the processes that found each other are not those that were started.

    Args:
        num_gpus: GPUs of this process. More than one would make the Trainer replicate the model
            inside the process, which scales the loss wrongly.

    Raises:
        LaunchError: With the command that uses all of them.
    """
    from accelerate import PartialState

    if num_gpus > 1:
        raise LaunchError(
            f"one process was started on a machine with {num_gpus} GPUs. Use `accelerate launch "
            f"--num_processes {num_gpus} ...` for all of them, or set CUDA_VISIBLE_DEVICES=0"
        )
    started, met = int(os.environ.get("WORLD_SIZE", "1")), PartialState().num_processes
    if met != started:
        raise LaunchError(
            f"{started} processes were started but {met} work together: this machine has no "
            "backend between them. Start one process, or set train.use_cpu=true"
        )


def asked_processes(command: Sequence[str]) -> int | None:
    """Read from a launcher's command line how many processes it was asked for.

    Returns:
        None when the command is not `accelerate launch` or does not say.
    """
    options = _accelerate_options(command)
    if options is None:
        return None
    config_file = None
    for index, word in enumerate(options):
        if word.endswith(".py"):
            break
        name, _, value = word.partition("=")
        value = value or (options[index + 1] if index + 1 < len(options) else "")
        name = name.replace("-", "_")
        if name in ("__num_processes", "_n") and value.isdecimal():
            return int(value)
        if name == "__config_file":
            config_file = Path(value)
    return _processes_in(config_file or _default_accelerate_config())


def _accelerate_options(command: Sequence[str]) -> list[str] | None:
    """Cut off what starts the launcher: `accelerate launch`, `accelerate-launch`, `-m ...`."""
    words = list(command)
    for index, word in enumerate(words[:4]):
        name = Path(word).name
        if name in ("accelerate", "accelerate.exe") and words[index + 1 : index + 2] == ["launch"]:
            return words[index + 2 :]
        is_module = name == "accelerate.commands.launch"
        if is_module or name.startswith("accelerate-launch") or word.endswith(_LAUNCH_FILE):
            return words[index + 1 :]
    return None


def _left_a_port_for_others() -> bool:
    """Whether accelerate's single-process launcher was asked for several processes.

    It then names a port for them to meet at, and starts one process without a world size.
    """
    import psutil

    is_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if "WORLD_SIZE" in os.environ or "MASTER_PORT" not in os.environ or not is_accelerate:
        return False
    try:
        parent = psutil.Process().parent()
        return parent is not None and "MASTER_PORT" not in parent.environ()
    except psutil.Error:
        return False


def _default_accelerate_config() -> Path:
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    return Path(home) / "accelerate" / "default_config.yaml"


def _processes_in(config_file: Path) -> int | None:
    try:
        text = config_file.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"(?:^|[{,])\s*\"?num_processes\"?\s*:\s*(\d+)", text, flags=re.MULTILINE)
    return int(found.group(1)) if found else None


def _parent_command() -> list[str]:
    import psutil

    try:
        parent = psutil.Process().parent()
        return [] if parent is None else parent.cmdline()
    except psutil.Error:
        return []


def _pick_precision(
    train: Mapping[str, object], found: Accelerator, result: Resolution, *, may_round: bool
) -> tuple[str | None, str]:
    """Name the type of the linear algebra, None for float32, and why it was picked."""
    bf16, fp16 = train.get("bf16", "auto"), train.get("fp16", "auto")
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if bf16 == fp16 == "auto" and launcher in ("bf16", "fp16"):
        bf16, fp16 = launcher == "bf16", launcher == "fp16"
    if bf16 is True and not found.bf16:
        result.problems.append(_lacks("train", "bf16", "bf16", found))
    if fp16 is True and not found.fp16:
        result.problems.append(_lacks("train", "fp16", "fp16", found))
    if bf16 is True or fp16 is True:
        return "bfloat16" if bf16 is True else "float16", "asked for"
    if bf16 == "auto" and found.is_fast_in_bf16:
        if found.kind == "cuda" or may_round:
            return "bfloat16", "the device has instructions for it"
        return None, "PPO compares probabilities that were computed in two ways"
    if fp16 == "auto" and found.kind == "cuda" and not found.bf16:
        return "float16", "the GPU has no bfloat16"
    if bf16 == "auto":
        return None, "no fast 16-bit instructions found"
    return None, "asked for"


def _check_dtype(dtype: str, found: Accelerator, result: Resolution) -> None:
    if (dtype == "bfloat16" and not found.bf16) or (dtype == "float16" and not found.fp16):
        result.problems.append(_lacks("model", "dtype", dtype, found))


def _rounded_away(dtype: str) -> Problem:
    return Problem(
        "",
        "model.dtype",
        f"found {dtype} without an adapter, accepts auto or float32: small updates of 16-bit "
        "weights are rounded away; train.bf16 computes in 16 bits and keeps the weights",
    )


def _lacks(section: str, key: str, precision: str, found: Accelerator) -> Problem:
    can = [name for name, has in (("bf16", found.bf16), ("fp16", found.fp16)) if has]
    accepted = ", ".join([*can, "float32 (auto)"])
    return Problem(
        "",
        f"{section}.{key}",
        f"found {precision}, which {found.kind} ({found.name}) doesn't compute; accepts {accepted}",
    )
