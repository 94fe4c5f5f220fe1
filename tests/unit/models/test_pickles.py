"""Pickles read as words: what they describe, and that nothing they ask for is done.

What is right is said by torch's pickler, whose programs these are, and by pickletools.
"""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sft_kit.models.pickles import MoreThanTensorsError, Storage, StoredTensor, stored_tensors

EMPTY = b"}."
HEAD = b"\x80\x02}"


def program(content: object) -> bytes:
    """The pickle in a file of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


def item(value: bytes) -> bytes:
    """A dictionary with one value."""
    return HEAD + b"X\x01\x00\x00\x00w" + value + b"s."


def word(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def storage(*, kind: str = "FloatStorage", name: str = "0", length: bytes = b"K\x04") -> bytes:
    words = word("storage") + b"ctorch\n" + kind.encode() + b"\n" + word(name) + word("cpu")
    return b"(" + words + length + b"tQ"


def tensor(*, of: bytes = storage(), offset: bytes = b"K\x00", rest: bytes = b"") -> bytes:
    called = b"ctorch._utils\n_rebuild_tensor_v2\n("
    shape = b"K\x04\x85K\x01\x85"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return called + of + offset + shape + hooks + rest + b"tR"


def test_every_tensor_is_described_by_its_place():
    base = torch.arange(24, dtype=torch.float16).view(4, 6)
    content = {
        "whole": base,
        "turned": base.T,
        "part": base[1:3, 2:],
        "one": torch.tensor(7),
        "parameter": nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
    }
    halves = Storage("0", torch.float16, 24)
    assert stored_tensors(program(content)) == {
        "whole": StoredTensor(halves, 0, (4, 6), (6, 1)),
        "turned": StoredTensor(halves, 0, (6, 4), (1, 6)),
        "part": StoredTensor(halves, 8, (2, 4), (6, 1)),
        "one": StoredTensor(Storage("1", torch.int64, 1), 0, (), ()),
        "parameter": StoredTensor(Storage("2", torch.bfloat16, 3), 0, (3,), (1,)),
    }


def test_a_state_with_attributes_and_more_tensors_than_a_byte_counts_is_read_in_order():
    state = nn.Sequential(*(nn.Linear(2, 2) for _ in range(200))).state_dict()
    assert hasattr(state, "_metadata")
    found = stored_tensors(program(state))
    assert list(found) == list(state)
    assert {one.storage.length for one in found.values()} == {2, 4}


def test_the_hand_written_programs_of_this_file_are_read():
    expected = StoredTensor(Storage("0", torch.float32, 4), 0, (4,), (1,))
    assert stored_tensors(item(tensor())) == {"w": expected}
    assert stored_tensors(item(tensor(rest=b"N"))) == {"w": expected}
    assert stored_tensors(EMPTY + b"what follows is not looked at") == {}


class Payload:
    def __init__(self, called: Callable[..., object], *arguments: object) -> None:
        self.words = called, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.words


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["alone", "deep", "in place of a tensor", "as a key"])
def test_a_call_is_not_made_in_any_protocol(tmp_path: Path, protocol: int, kind: str):
    mark = tmp_path / "was_run"
    trap = Payload(os.system, f"touch {mark}")
    content = {
        "alone": trap,
        "deep": {"a": [{"b": (1, {"c": trap})}]},
        "in place of a tensor": {"w": trap},
        "as a key": {trap: 1},
    }[kind]
    data = pickle.dumps(content, protocol=protocol)
    with pytest.raises(MoreThanTensorsError):
        stored_tensors(data)
    assert not mark.exists()
    if kind == "alone":
        pickle.loads(data)
        assert mark.exists(), "the trap would have sprung"


ATTACKS = {
    "a name that is not needed": (item(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R"), r"os\.system"),
    "a name that is not called": (item(b"cbuiltins\neval\n"), r"builtins\.eval"),
    "a name with a dot": (item(b"ctorch\n_utils._rebuild_tensor_v2\n"), "torch._utils"),
    "a name in torch": (item(b"ctorch.hub\nload\n"), r"torch\.hub\.load"),
    "torch's own load": (item(b"ctorch\nload\n"), r"torch\.load"),
    "a sparse tensor": (program({"w": torch.eye(2).to_sparse()}), "_rebuild_sparse_tensor"),
    "a module": (program(nn.Linear(2, 2)), "torch.nn.modules"),
    "a numpy array": (program({"w": torch.ones(2).numpy()}), "numpy"),
    "a name on the stack": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "SHORT_BINUNICODE"),
    "names on the stack": (HEAD + word("os") + word("system") + b"\x93.", "STACK_GLOBAL"),
    "an instance": (HEAD + b"(S'ls'\nios\nsystem\n.", "instruction STRING"),
    "an object of an instance": (HEAD + b"(cos\nsystem\no.", r"os\.system"),
    "a new object": (HEAD + b")\x81.", "NEWOBJ"),
    "an extension": (HEAD + b"\x82\x01.", "EXT1"),
    "a list": (item(b"]"), "EMPTY_LIST"),
    "bytes": (item(b"C\x01a"), "SHORT_BINBYTES"),
    "a storage called": (item(b"ctorch\nFloatStorage\nK\x04\x85R"), "FloatStorage called in other"),
    "a dictionary with content": (item(b"ccollections\nOrderedDict\n}\x85R"), "OrderedDict called"),
    "a word called": (item(word("os.system") + b")R"), "a value called in other words"),
    "a tensor of a tensor": (item(tensor(of=tensor())), "_rebuild_tensor_v2 called in other"),
    "a tensor of a word": (item(tensor(of=word("0"))), "_rebuild_tensor_v2 called in other"),
    "marks of a tensor": (
        item(tensor(rest=b"}" + word("conj") + b"\x88s")),
        "_rebuild_tensor_v2 called in other",
    ),
    "an offset in words": (item(tensor(offset=word("0"))), "_rebuild_tensor_v2 called in other"),
    "a storage of objects": (item(tensor(of=storage(kind="UntypedStorage"))), "UntypedStorage"),
    "a storage of names": (item(b"(" + word("storage") + b"tQ"), "a storage in other words"),
    "a complex tensor": (program({"w": torch.ones(2) * 1j}), "ComplexFloatStorage"),
    "no dictionary": (program(torch.ones(2)), "no dictionary"),
    "a number": (program({"w": torch.ones(2), "step": 3}), "'step' is no tensor"),
    "a dictionary in a dictionary": (program({"state": {"w": torch.ones(2)}}), "is no tensor"),
    "keys that are numbers": (program({0: torch.ones(2)}), "keys are no names"),
    "items of a word": (HEAD + word("a") + word("b") + word("c") + b"s.", "keys are no names"),
    "two values": (HEAD + b"}.", "no dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_anything_but_tensors_is_named_and_refused(name: str):
    data, found = ATTACKS[name]
    with pytest.raises(MoreThanTensorsError, match=found):
        stored_tensors(data)


def test_sizes_that_are_no_numbers_are_refused():
    data = item(tensor()).replace(b"K\x04\x85K\x01\x85", b"N\x85K\x01\x85")
    with pytest.raises(MoreThanTensorsError, match="sizes that are no numbers"):
        stored_tensors(data)


def test_a_dictionary_that_holds_itself_and_one_nested_deeply_are_refused():
    itself = b"\x80\x02}q\x00" + word("w") + b"h\x00s."
    with pytest.raises(MoreThanTensorsError, match="'w' is no tensor"):
        stored_tensors(itself)
    nested = HEAD + word("w") + b")" + b"\x85" * 100_000 + b"s."
    with pytest.raises(MoreThanTensorsError, match="'w' is no tensor"):
        stored_tensors(nested)


@pytest.mark.parametrize(
    "data", [b"", HEAD, b"\xff", HEAD + b"s.", HEAD + b"h\x05.", HEAD + b"t.", HEAD + b"X\xff"]
)
def test_a_damaged_pickle_is_an_error_of_its_own(data: bytes):
    with pytest.raises(ValueError, match=r"pickle|opcode|not enough") as caught:
        stored_tensors(data)
    assert not isinstance(caught.value, MoreThanTensorsError)


def test_cut_or_changed_anywhere_a_pickle_is_read_or_refused_and_nothing_else():
    data = program(OrderedDict(a=torch.ones(2, 3), b=nn.Parameter(torch.ones(2).half())))
    for end in range(len(data) - 1):
        with pytest.raises(ValueError):  # noqa: PT011 - one of many
            stored_tensors(data[:end])
    num_read = 0
    for place in range(len(data)):
        for flipped in (1, 16, 128):
            changed = data[:place] + bytes([data[place] ^ flipped]) + data[place + 1 :]
            try:
                found = stored_tensors(changed)
            except ValueError:
                continue
            num_read += 1
            assert all(isinstance(one, StoredTensor) for one in found.values())
    assert num_read > 20, "a bit of a name or of a number stays readable"
