import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from sft_kit.errors import CheckpointError
from sft_kit.models.pickles import refuse_other_than_tensors

TENSORS = {
    "float": torch.ones(2, 3),
    "half": torch.ones(2, dtype=torch.float16),
    "bfloat": torch.ones(2, dtype=torch.bfloat16),
    "packed": torch.ones(2, dtype=torch.int8),
    "bytes": torch.ones(2, dtype=torch.uint8),
    "flags": torch.ones(2, dtype=torch.bool),
    "slice": torch.arange(10)[2:5],
    "parameter": nn.Parameter(torch.ones(3)),
}


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("exit 1",)


def saved(path: Path, content: object, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_tensors_of_every_kind_pass(tmp_path: Path, zipped: bool):
    refuse_other_than_tensors(saved(tmp_path / "a.bin", TENSORS, zipped=zipped))
    module = nn.Linear(2, 2).state_dict()  # an OrderedDict with an attribute
    refuse_other_than_tensors(saved(tmp_path / "b.bin", module, zipped=zipped))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_call_is_named_and_not_made(tmp_path: Path, zipped: bool):
    path = saved(tmp_path / "a.bin", {"w": torch.ones(2), "x": [Payload()]}, zipped=zipped)
    with pytest.raises(CheckpointError, match=r"more than tensors \(posix\.system\); nothing"):
        refuse_other_than_tensors(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_with_a_call_is_refused(tmp_path: Path, protocol: int):
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(Payload(), protocol=protocol))
    with pytest.raises(CheckpointError, match="more than tensors"):
        refuse_other_than_tensors(path)


def test_a_second_pickle_in_the_archive_is_read_too(tmp_path: Path):
    path = saved(tmp_path / "a.bin", TENSORS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps(Payload(), protocol=2))
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        refuse_other_than_tensors(path)


def test_an_archive_that_grows_is_refused(tmp_path: Path):
    plain = saved(tmp_path / "a.bin", {"w": torch.zeros(100_000)})
    packed = tmp_path / "b.bin"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="grows when it is opened"):
        refuse_other_than_tensors(packed)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02", b"\xff" * 99])
def test_a_damaged_file_is_a_message(tmp_path: Path, data: bytes):
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="it is damaged"):
        refuse_other_than_tensors(path)


def test_cut_anywhere_it_is_refused_or_harmless(tmp_path: Path):
    buffer = io.BytesIO()
    torch.save({"w": Payload()}, buffer)
    path = tmp_path / "a.bin"
    for end in range(0, len(buffer.getvalue()) - 1, 7):
        path.write_bytes(buffer.getvalue()[:end])
        with pytest.raises(CheckpointError):
            refuse_other_than_tensors(path)
