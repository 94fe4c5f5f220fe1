"""DeepSpeed's ZeRO-2 and ZeRO-3 of two CPU processes against one: curve, result, going on.

`pip install deepspeed` first; its first run compiles an extension, with a C++ compiler and ninja.
Nothing is moved to the CPU here, where all is: the optimizer that this takes compiles for minutes.
"""

import pytest

from .test_fsdp import CLASSIFY, SFT, check_against_one_process, settings_of

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

ZERO2 = ("recipes/launch/zero2.yaml",)
ZERO3 = ("recipes/launch/zero3_offload.yaml",
         "--offload_optimizer_device", "none", "--offload_param_device", "none")  # fmt: skip
CASES = {
    "gradients in parts": (SFT, {}, ZERO2),
    "weights in parts": (SFT, {}, ZERO3),
    "every weight": (SFT, {"adapter": "null"}, ZERO3),
    "classifying": (CLASSIFY, {}, ZERO3),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_of_deepspeed_give_the_run_of_one(case, trained_tokenizer, tmp_path):
    stem, changes, launch = CASES[case]
    settings = settings_of(stem, changes, tmp_path, trained_tokenizer)
    check_against_one_process(stem, settings, tmp_path, *launch)
