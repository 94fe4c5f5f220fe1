"""`.bin` files without an unpickler; torch's own reader says what is in them."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sft_kit.errors import CheckpointError
from sft_kit.models.tensor_archive import read_tensors

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def check_as_torch_reads(path: Path) -> dict[str, torch.Tensor]:
    """Compare with `torch.load` bit by bit, in order, shape, strides and what shares memory."""
    found, expected = read_tensors(path), torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        ours = found[name]
        assert (ours.dtype, ours.shape, ours.stride()) == (
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
        )
        assert ours.storage_offset() == tensor.storage_offset()
        assert torch.equal(ours, tensor), name

    def shared(tensors: dict[str, torch.Tensor]) -> list[list[bool]]:
        places = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
        return [[one == other for other in places] for one in places]

    filled = [name for name, tensor in expected.items() if tensor.untyped_storage().nbytes()]
    assert shared({n: found[n] for n in filled}) == shared({n: expected[n] for n in filled})
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_number_is_read_as_torch_reads_it(tmp_path: Path, dtype: torch.dtype):
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)) * 100
    content = {
        "a": values.to(dtype),
        "scalar": values[0, 0].to(dtype),
        "none": values[:0].to(dtype),
    }
    found = check_as_torch_reads(saved(tmp_path / "a.bin", content))
    assert found["a"].dtype == dtype


def test_views_parameters_and_shared_storages_are_read_as_torch_reads_them(tmp_path: Path):
    base = torch.arange(60, dtype=torch.float32).view(3, 4, 5)
    content = OrderedDict(
        whole=base,
        turned=base.permute(2, 0, 1),
        part=base[1:, ::2, 1:4],
        last=base[2, 3, 4],
        diagonal=base[0].diagonal(),
        none=base[:, :0],
        parameter=nn.Parameter(base[0] + 1),
        frozen=nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False),
        channels=torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        alone=torch.ones(3),
    )
    check_as_torch_reads(saved(tmp_path / "a.bin", content))


def test_the_state_of_a_module_is_read_as_torch_reads_it(tmp_path: Path):
    module = nn.Sequential(nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 7, bias=False))
    module[2].weight = module[0].weight
    found = check_as_torch_reads(saved(tmp_path / "a.bin", module.state_dict()))
    fresh = nn.Sequential(nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 7, bias=False))
    fresh.load_state_dict(found)


def test_the_published_layout_is_read_as_torch_reads_it(chatglm_fixtures: Path):
    files = sorted(chatglm_fixtures.glob("*/pytorch_model*.bin"))
    assert len(files) == 4
    for file in files:
        check_as_torch_reads(file)


def test_an_empty_dictionary_is_empty(tmp_path: Path):
    assert read_tensors(saved(tmp_path / "a.bin", {})) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_the_numbers_stay_on_the_disk_and_writing_to_them_leaves_the_file(tmp_path: Path):
    path = saved(tmp_path / "a.bin", {"w": torch.arange(2_000_000)})
    before = path.read_bytes()
    found = read_tensors(path)["w"]
    mapped = [
        line for line in Path("/proc/self/smaps").read_text().split("VmFlags") if str(path) in line
    ]
    kilobytes = [int(part.split("Private_Dirty:")[1].split()[0]) for part in mapped]
    assert kilobytes == [0], "mapped once, and no page of it copied"
    found += 1
    assert found[-1] == 2_000_000
    assert path.read_bytes() == before


def test_what_an_older_torch_left_out_is_not_needed(tmp_path: Path):
    content = {"w": torch.ones(2, 3)}
    path = rewritten(tmp_path, content, drop=("byteorder", ".format_version", ".storage_alignment"))
    assert torch.equal(read_tensors(path)["w"], content["w"])


# --- what is refused -----------------------------------------------------------------------------


def rewritten(
    folder: Path,
    content: object,
    change: Callable[[str, bytes], bytes] = lambda _, data: data,
    *,
    drop: tuple[str, ...] = (),
    shift: int = 0,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file of `torch.save` with other files in it; numbers begin at multiples of 64."""
    buffer, path = io.BytesIO(), folder / "changed.bin"
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", compression) as target:
        for entry in source.namelist():
            name = entry.partition("/")[2]
            if name not in drop:
                written = zipfile.ZipInfo(entry)
                begin = target.fp.tell() + 30 + len(entry) + 4  # type: ignore[union-attr]
                pad = -begin % 64 + shift
                written.extra = struct.pack("<HH", 0x4246, pad) + bytes(pad)
                written.compress_type = compression
                target.writestr(written, change(name, source.read(entry)))
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


def test_a_call_is_named_and_not_made_nor_is_torch_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    monkeypatch.setattr(torch, "load", None)
    mark = tmp_path / "mark"
    path = saved(tmp_path / "a.bin", {"w": torch.ones(2), "x": [Payload(mark)]})
    assert "more than tensors" in refused(path)
    path = saved(tmp_path / "b.bin", {"w": Payload(mark)})
    assert "more than tensors (posix.system); nothing of it was run (take the" in refused(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused_whatever_it_holds(tmp_path: Path, protocol: int):
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "mark"), protocol=protocol))
    assert ("found a bare pickle" if protocol >= 2 else "it is damaged") in refused(path)
    assert not (tmp_path / "mark").exists()


def test_a_file_of_torch_before_1_6_is_called_that(tmp_path: Path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert "torch wrote before 1.6" in refused(tmp_path / "a.bin")


@pytest.mark.parametrize(
    "name", ["archive/data.pkl", "other/data.pkl", "archive/data/0", "data.pkl"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_a_name_and_two_folders_are_refused(tmp_path: Path, name: str):
    path = rewritten(tmp_path, {"w": torch.ones(2)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, pickle.dumps({}, protocol=2))
    assert "two of a file, or of folders" in refused(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_grows_is_refused_before_it_has_grown(tmp_path: Path, compression: int):
    path = rewritten(tmp_path, {"w": torch.zeros(100_000)}, compression=compression)
    assert path.stat().st_size < 40_000
    assert "grows when it is opened" in refused(path)


def test_a_pickle_that_takes_minutes_to_read_is_refused(tmp_path: Path):
    path = rewritten(
        tmp_path, {}, lambda name, data: data + bytes(3_000_000) if name == "data.pkl" else data
    )
    assert "bytes of names" in refused(path)


def sizes(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        assert name != "data.pkl" or old in data
        return data.replace(old, new) if name == "data.pkl" else data

    return change


SHAPE, LENGTH = b"K\x02K\x03\x86", b"K\x06t"
BEYOND = {
    "more rows than there are": sizes(SHAPE, b"K\x03K\x03\x86"),
    "a row behind the last": sizes(b"QK\x00", b"QK\x01"),
    "a negative place": sizes(b"QK\x00", b"QJ\xff\xff\xff\xff"),
    "strides beyond the end": sizes(b"K\x03K\x01\x86", b"K\x04K\x01\x86"),
    "negative strides": sizes(b"K\x03K\x01\x86", b"J\xfd\xff\xff\xffK\x01\x86"),
    "a negative size": sizes(SHAPE, b"J\xff\xff\xff\xffK\x03\x86"),
    "a size of 2 to the 62": sizes(SHAPE, b"\x8a\x08" + bytes(7) + b"\x40K\x03\x86"),
    "a size of 2 to the 2000": sizes(SHAPE, b"\x8a\xfa" + bytes(249) + b"\x01K\x03\x86"),
    "no numbers at 2 to the 2000": sizes(
        SHAPE + b"q\x08K\x03K\x01\x86", b"K\x00K\x03\x86\x8a\xfa" + bytes(249) + b"\x01K\x01\x86"
    ),
    "one number a billion times": sizes(
        SHAPE + b"q\x08K\x03K\x01\x86", b"J\x00\xca\x9a\x3bK\x06\x86K\x00K\x01\x86"
    ),
    "fewer strides than sizes": sizes(b"K\x03K\x01\x86", b"K\x01\x85"),
    "a longer storage": sizes(LENGTH, b"K\x07t"),
    "a shorter storage": sizes(LENGTH, b"K\x05t"),
    "wider numbers": sizes(b"FloatStorage", b"DoubleStorage"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_tensor_that_is_not_wholly_in_its_storage_is_refused(tmp_path: Path, name: str):
    path = rewritten(tmp_path, {"w": torch.ones(2, 3)}, BEYOND[name])
    assert "'w' does not fit its storage" in refused(path)


def test_numbers_that_are_missing_or_short_are_refused(tmp_path: Path):
    content = {"w": torch.ones(2, 3)}
    assert "it has no data/0" in refused(rewritten(tmp_path, content, drop=("data/0",)))
    assert "it has no data.pkl" in refused(rewritten(tmp_path, content, drop=("data.pkl",)))
    short = rewritten(tmp_path, content, lambda name, data: data[:-4] if name == "data/0" else data)
    assert "does not fit its storage" in refused(short)
    other = sizes(b"X\x01\x00\x00\x000", b"X\x04\x00\x00\x00../0")
    assert "it has no data/../0" in refused(rewritten(tmp_path, content, other))


def test_numbers_between_the_places_that_their_width_allows_are_refused(tmp_path: Path):
    content = {"w": torch.ones(2, 3)}
    assert torch.equal(read_tensors(rewritten(tmp_path, content, shift=4))["w"], content["w"])
    assert "does not fit its storage" in refused(rewritten(tmp_path, content, shift=2))


def test_numbers_of_the_other_byte_order_are_refused(tmp_path: Path):
    path = rewritten(
        tmp_path, {"w": torch.ones(2)}, lambda name, data: b"big" if name == "byteorder" else data
    )
    assert "its numbers are big-endian" in refused(path)


def test_numbers_that_an_archive_places_behind_its_end_are_refused(tmp_path: Path):
    """The zip's own directory is believed by nobody."""
    path = rewritten(tmp_path, {"w": torch.ones(2, 3)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("archive/data/0")
    directory = data.index(b"PK\x01\x02")
    at = data.index(entry.filename.encode(), directory) - 46
    for place, value in ((20, 1 << 20), (24, 1 << 20)):  # the two sizes
        data[at + place : at + place + 4] = struct.pack("<I", value)
    path.write_bytes(bytes(data))
    assert "ends behind the file" in refused(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\xff" * 99])
def test_a_damaged_file_is_a_message(tmp_path: Path, data: bytes):
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    assert "it is damaged" in refused(path)


def test_a_pointer_of_git_lfs_is_called_one_and_a_missing_file_missing(tmp_path: Path):
    (tmp_path / "a.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "only points to the file (git-lfs)" in refused(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "b.bin")


def test_cut_anywhere_a_file_is_refused(tmp_path: Path):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    path = tmp_path / "a.bin"
    for end in range(0, len(buffer.getvalue()) - 1, 23):
        path.write_bytes(buffer.getvalue()[:end])
        refused(path)


def test_with_any_bit_turned_a_file_is_read_or_refused_and_no_tensor_leaves_its_storage(
    tmp_path: Path,
):
    content = {"w": torch.ones(3), "v": torch.arange(4)}
    path = saved(tmp_path / "a.bin", content)
    data = path.read_bytes()
    num_refused = 0
    for place in range(0, len(data), 8):
        path.write_bytes(
            data[:place] + bytes([data[place] ^ (1 << place // 8 % 8)]) + data[place + 1 :]
        )
        try:
            found = read_tensors(path)
        except CheckpointError:
            num_refused += 1
            continue
        assert {name: one.shape for name, one in found.items()} == {
            name: one.shape for name, one in content.items()
        }
    assert num_refused > 30
