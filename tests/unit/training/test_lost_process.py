import pytest
from torch import distributed

from sft_kit.training.lost_process import is_lost_process, lost_process_error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[pair.cc:553] Connection closed by peer [10.77.0.2]:61591."),
        RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [10.77.0.2]:1: timed out"),
        distributed.DistBackendError("NCCL error: remote process exited"),
    ],
)
def test_a_backend_that_can_not_reach_another_process_is_understood(error: Exception):
    assert is_lost_process(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("gloo"), OSError(5)])
def test_other_errors_are_not_taken_for_a_lost_process(error: Exception):
    assert not is_lost_process(error)


def test_the_words_name_step_processes_folder_and_the_way_on():
    text = str(lost_process_error(5, 16, "runs/sft"))
    for part in ("step 5", "16 that train", "runs/sft", "--resume"):
        assert part in text
