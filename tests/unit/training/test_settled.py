"""What stands before a block is passed over by the garbage collector, what it leaves is not."""

import gc
import weakref

from sft_kit.training.settled import settled_objects


class Node:
    """An object that can refer to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_objects_of_before_are_passed_over_and_looked_at_again_afterwards() -> None:
    gc.collect()
    before = Node()
    kept = weakref.ref(before)
    with settled_objects():
        del before
        inside = Node()
        gone = weakref.ref(inside)
        del inside
        gc.collect()
        assert kept() is not None
        assert gone() is None, "a cycle made inside is collected as ever"
    gc.collect()
    assert kept() is None
    assert gc.get_freeze_count() == 0
