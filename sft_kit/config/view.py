"""The checked settings as the rules of `sft_kit.config.rules` see them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sft_kit.errors import Problem


@dataclass(frozen=True, slots=True)
class View:
    """The checked settings as rules see them.

    Attributes:
        sections: Section -> key -> value; None is a section that says `null`.
        origins: Dotted key -> `file:line`, "command line" or "default".
        faulty: Dotted keys that have a problem already.
        hub_cache: Folder of the Hub's local cache.
    """

    sections: Mapping[str, Mapping[str, object] | None]
    origins: Mapping[str, str]
    faulty: frozenset[str]
    hub_cache: Path

    def get(self, dotted: str) -> object:
        """A value; None when the section is null or absent."""
        section, _, key = dotted.partition(".")
        return (self.sections.get(section) or {}).get(key)

    def number(self, dotted: str) -> float:
        """A value that is a number; 0 when it is not set."""
        value = self.get(dotted)
        return value if isinstance(value, int | float) else 0

    def is_given(self, dotted: str) -> bool:
        """Whether the YAML or the command line says it."""
        return self.origins.get(dotted, "default") != "default"

    def can_check(self, *dotted: str) -> bool:
        """Whether the recipe has all these keys and none of them is faulty."""
        return all(key in self.origins and key not in self.faulty for key in dotted)

    def problem(self, dotted: str, message: str, todo: str = "") -> Problem:
        """A problem at the place of a key, or of its section where the key has its default."""
        section = dotted.partition(".")[0]
        own = self.origins.get(dotted, "default")
        where = own if own != "default" else self.origins.get(section, "default")
        return Problem(where, dotted, message, todo)


Rule: TypeAlias = Callable[[View], Iterator[Problem]]
"""What is wrong with settings that are each fine, problem by problem."""
