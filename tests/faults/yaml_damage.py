"""Ways to damage the YAML of a recipe, each knowing where it struck and what must come of it."""

import re
from dataclasses import dataclass, field

from .yaml_reading import Entry, read_text

LETTERS = "abcdefghijklmnopqrstuvwxyz_"
WRONG_TYPES = ("text", "[1, 2]", "{a: 1}", "'8'", "1_000", "2026-01-01", "12:30:45", "8 9", "!")
YAML_11_WORDS = ("yes", "no", "on", "off", "y", "n", "Yes", "NO", "Off", "TRUE", "none", "None")
NUMBERS = (
    "2e-4", "1E-3", "1e+3", "2.0e4", "2.0e-4", "1.10", "0123", "0o17", "0x1F", "12:30:45", "1_000",
    ".5", "5.", "+3", "-0", "1e5", "0.1e1", "0b11", "1,000", "1e", "e5", "0x", "1.2.3", "１２",
    "1e400",
)  # fmt: skip
OUT_OF_RANGE = ("-1", "-0.5", "1e999", ".inf", "-.inf", ".nan", "99999999999999999999", "1e-400")
NULLS = ("", "null", "~", "Null", "NULL")
TAGS = (
    "!!python/object/apply:os.system ",
    "!!str ",
    "!!int ",
    "!foo ",
    "! ",
    "!!float ",
    "!!binary ",
)
GARBAGE = (
    "}", "]", ": :", "%%%", "@x: 1", "---\na: 1", "...\nb", "\x07", "- a", "'open", '"open',
    "\tx: 1", "*", "&", "? ", "|", "`", "key", "%YAML 1.1\n---", "\ufeff", "\u0085x",
    "{a: b", "? [a]\n: b",
)  # fmt: skip
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Damaged:
    """A damaged YAML.

    Attributes:
        data: Its bytes.
        lines: Where the damage stands, and where a reader may notice it; empty for anywhere.
        keys: Names, one of which a message about the damage has; empty where no key is concerned.
        must: "refuse", "load", or "" where another reader of YAML decides.
        meant: The name a typo was made in.
    """

    data: bytes
    lines: frozenset = frozenset()
    keys: tuple = ()
    must: str = ""
    meant: str = ""


@dataclass(frozen=True)
class Base:
    """The YAML of a recipe, with the place of everything in it."""

    text: str
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def of(cls, text):
        return cls(text, read_text(text).entries)

    @property
    def lines(self):
        return self.text.rstrip("\n").split("\n")

    def sections(self):
        return [entry for entry in self.entries if len(entry.path) == 1]

    def of_sections(self):
        return [entry for entry in self.entries if len(entry.path) == 2]

    def scalars(self, of=object):
        return [e for e in self.of_sections() if e.value_at and isinstance(e.value, of)]

    def with_value(self, entry, written, **more):
        start, end = entry.value_at
        text = self.text[:start] + written + self.text[end:]
        lines = range(entry.line, entry.line + written.count("\n") + 1)
        return damaged(text, lines, (entry.key,), **more)

    def with_lines(self, lines, at, keys=(), **more):
        return damaged("\n".join(lines) + "\n", at, keys, **more)


def damaged(text, lines=(), keys=(), **more):
    return Damaged(text.encode(errors="surrogatepass"), frozenset(lines), tuple(keys), **more)


def edit(name, rng):
    """Change a name by one letter, or swap two neighbours."""
    at = rng.randrange(len(name))
    letter = rng.choice(LETTERS)
    edits = [
        name[:at] + name[at + 1 :],
        name[:at] + letter + name[at:],
        name[:at] + letter + name[at + 1 :],
    ]
    if at + 1 < len(name):
        edits.append(name[:at] + name[at + 1] + name[at] + name[at + 2 :])
    edits = [one for one in edits if one and one != name]
    return rng.choice(edits or [name + letter])


def _typo(base, rng, entries):
    entry = rng.choice(entries)
    start, end = entry.key_at
    written = edit(entry.key, rng)
    text = base.text[:start] + written + base.text[end:]
    # An edit may give another key (`eval_steps`, `save_steps` are two apart, `r` and `q` are not).
    known = {".".join(other.path) for other in base.entries}
    must = "" if ".".join((*entry.path[:-1], written)) in known else "refuse"
    return damaged(text, [entry.line], (written,), must=must, meant=entry.key)


def typo_of_a_key(base, rng):
    return _typo(base, rng, base.of_sections())


def typo_of_a_section(base, rng):
    return _typo(base, rng, base.sections())


CHOICES = (
    "task_type", "quantization", "lr_scheduler_type", "eval_strategy", "save_strategy",
    "loss_on", "report_to", "objective", "no_stop", "normalise", "value",
    "include_num_input_tokens_seen", "train_sampling_strategy", "class_weights", "on_long_row",
    "count_by",
)  # fmt: skip


def typo_of_a_choice(base, rng):
    entry = rng.choice([e for e in base.scalars(str) if e.key in CHOICES])
    written = edit(entry.value, rng)
    is_known = written in {"mlm", "wwm", "steps", "epoch", "none", "no", "nf4", "gpt2", "bert"}
    must = "" if is_known else "refuse"
    return base.with_value(entry, written, must=must, meant=entry.value)


def wrong_type(base, rng):
    entry = rng.choice(base.scalars(bool | int | float))
    return base.with_value(entry, rng.choice(WRONG_TYPES), must="refuse")


def number_for_a_text(base, rng):
    # They take the number of a column, a switch, and a mapping too.
    others = {"group", "include_num_input_tokens_seen", "class_weights"}
    entry = rng.choice([e for e in base.scalars(str) if e.key not in others])
    written = rng.choice(["7", "0.5", "false", "{a: 1}", ".inf", "0x10"])
    return base.with_value(entry, written, must="refuse")


def out_of_range(base, rng):
    entry = rng.choice(base.scalars(bool | int | float))
    written = rng.choice(OUT_OF_RANGE)
    must = "refuse" if written not in {"-1", "-0.5"} else ""
    return base.with_value(entry, written, must=must)


def null(base, rng):
    return base.with_value(rng.choice(base.scalars()), rng.choice(NULLS))


def null_section(base, rng):
    section = rng.choice(base.sections())
    lines = base.lines
    end = next((i for i in range(section.line, len(lines)) if not lines[i].startswith(" ")), None)
    lines[section.line - 1 : end] = [f"{section.key}: {rng.choice(NULLS)}"]
    return base.with_lines(lines, [], ())


def words_of_yaml_11(base, rng):
    switches = base.scalars(bool) or base.scalars()
    entry = rng.choice(rng.choice([switches, base.scalars()]))
    return base.with_value(entry, rng.choice(YAML_11_WORDS))


def spelling_of_a_number(base, rng):
    return base.with_value(rng.choice(base.scalars(int | float)), rng.choice(NUMBERS))


def quoted(base, rng):
    entry = rng.choice(base.scalars(str))
    form = rng.choice(["'{}'", '"{}"', '"{}', "'{}", "{}'", "|-\n    {}", ">-\n    {}", '"\\u{}"'])
    return base.with_value(entry, form.format(entry.value))


def duplicate_key(base, rng):
    entry = rng.choice(base.scalars())
    lines = base.lines
    of_section = [e.last_line for e in base.of_sections() if e.path[0] == entry.path[0]]
    at = rng.choice([line for line in of_section if line >= entry.line])
    lines.insert(at, lines[entry.line - 1])
    return base.with_lines(lines, [at + 1], (entry.key,), must="refuse")


def duplicate_section(base, rng):
    section = rng.choice(base.sections())
    lines = [*base.lines, f"{section.key}: {{}}"]
    return base.with_lines(lines, [len(lines)], (section.key,), must="refuse")


def alias(base, rng):
    first, second = sorted(rng.sample(base.scalars(), 2), key=lambda entry: entry.line)
    text = base.text[: second.value_at[0]] + "*x" + base.text[second.value_at[1] :]
    start = first.value_at[0]
    text = f"{text[:start]}&x {text[start:]}"
    # The value may be wrong at either end: the alias stands where it is used.
    return damaged(text, [second.line], (second.key,))


def unknown_alias(base, rng):
    return base.with_value(rng.choice(base.scalars()), "*nowhere", must="refuse")


def merge_key(base, rng):
    lines = base.lines
    section = rng.choice([e for e in base.sections() if isinstance(e.value, dict)])
    lines[section.line - 1] = f"{section.key}: &all"
    other = rng.choice([e for e in base.sections() if e.line > section.line] or [None])
    if other is None or not isinstance(other.value, dict):
        lines += ["more:", "  <<: *all"]
        return base.with_lines(lines, [len(lines) - 1], ("more",), must="refuse")
    lines.insert(other.line, "  <<: *all")
    return base.with_lines(lines, [other.line + 1], ("<<",), must="refuse")


def alias_bomb(base, rng):
    width, depth = rng.randint(8, 12), rng.randint(5, 9)
    lines = ["l0: &l0 [" + ", ".join(["x"] * width) + "]"]
    for level in range(1, depth):
        items = ", ".join([f"*l{level - 1}"] * width)
        lines.append(f"l{level}: &l{level} [{items}]")
    at = rng.choice([0, len(base.lines)])
    bomb = range(at + 1, at + len(lines) + 1)
    every = base.lines
    every[at:at] = lines
    return base.with_lines(every, bomb, must="refuse")


def tab(base, rng):
    entry = rng.choice(base.of_sections())
    lines = base.lines
    lines[entry.line - 1] = (
        rng.choice(["\t", " \t", "\t ", "\t\t"]) + lines[entry.line - 1].lstrip()
    )
    near = range(entry.line - 1, entry.line + 2)
    return base.with_lines(lines, near, (), must="refuse")


def indentation(base, rng):
    entry = rng.choice(base.of_sections())
    lines = base.lines
    spaces = " " * rng.choice([0, 1, 3, 4, 6])
    lines[entry.line - 1] = spaces + lines[entry.line - 1].lstrip()
    # Which of two neighbours is indented wrongly is a matter of taste.
    below = base.entries[base.entries.index(entry) :][:2]
    near = range(entry.line - 1, entry.last_line + 2)
    return base.with_lines(lines, near, [entry.path[0], *(one.key for one in below)])


def section_without_indent(base, rng):
    section = rng.choice([e for e in base.sections() if isinstance(e.value, dict) and e.value])
    lines = base.lines
    inside = [e for e in base.of_sections() if e.path[0] == section.key]
    for number in range(section.line, inside[-1].last_line):
        lines[number] = lines[number].removeprefix("  ")
    names = (section.key, *(e.key for e in inside))
    return base.with_lines(
        lines, range(section.line, inside[-1].last_line + 2), names, must="refuse"
    )


def deep_nesting(base, rng):
    entry = rng.choice(base.scalars())
    depth = rng.choice([1, 3, 25, 400])
    opening, closing = rng.choice([("[", "]"), ("{a: ", "}")])
    written = f"{opening * depth}1{closing * depth}"
    must = "refuse" if depth > 20 else ""
    return base.with_value(entry, written, must=must)


def tag(base, rng):
    entry = rng.choice(base.scalars())
    start, end = entry.value_at
    written = rng.choice(TAGS) + base.text[start:end]
    return base.with_value(entry, written, must="refuse")


def other_encoding(base, rng):
    name = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-7"])
    data = base.text.encode(name)
    if name == "utf-7":  # all ASCII: another text, but text
        return Damaged(data)
    return Damaged(data, frozenset([1]), (), must="refuse")


def wrong_byte(base, rng):
    data = base.text.encode()
    at = rng.randrange(len(data))
    bad = rng.choice(
        ["é".encode("latin-1"), b"\xc4\xe3", b"\xff", b"\x80", b"\xed\xa0\x80", b"\xc0\xaf"]
    )
    while data[at] & 0xC0 == 0x80:  # not inside a character, where it could complete another one
        at -= 1
    line = data.count(b"\n", 0, at) + 1
    return Damaged(data[:at] + bad + data[at:], frozenset([line]), (), must="refuse")


def control_character(base, rng):
    data = base.text
    at = rng.randrange(len(data))
    bad = rng.choice("\x00\x01\x07\x08\x0b\x0c\x1b\x7f\x80\x9f\ufffe\uffff")
    line = data.count("\n", 0, at) + 1
    return damaged(data[:at] + bad + data[at:], [line], (), must="refuse")


def byte_order_mark(base, rng):
    return Damaged(BOM + base.text.encode(), must="load")


def line_ends(base, rng):
    ends = rng.choice(["\r\n", "\r", "\n\n", " \n", "\n# note\n"])
    return damaged(base.text.replace("\n", ends), must="load")


def other_order(base, rng):
    lines = base.lines
    entries = [e for e in base.of_sections() if e.line == e.last_line and e.value_at]
    section = rng.choice(sorted({e.path[0] for e in entries}))
    numbers = [e.line - 1 for e in entries if e.path[0] == section]
    shuffled = rng.sample(numbers, len(numbers))
    lines = [lines[dict(zip(numbers, shuffled, strict=True)).get(i, i)] for i in range(len(lines))]
    return base.with_lines(lines, [], must="load")


def comment_without_mark(base, rng):
    lines = base.lines
    numbers = [e.line for e in base.of_sections() if re.search(r"\S\s+#", lines[e.line - 1])]
    if not numbers:
        return null(base, rng)
    number = rng.choice(numbers)
    lines[number - 1] = re.sub(
        r"(\s+)#\s*", rng.choice([r"\1", "#", " ; "]), lines[number - 1], count=1
    )
    key = lines[number - 1].split(":")[0].strip()
    return base.with_lines(lines, [number, number + 1], (key,))


def truncated_file(base, rng):
    return damaged(base.text[: rng.randrange(len(base.text))])


def truncated_line(base, rng):
    lines = base.lines
    number = rng.randrange(len(lines))
    lines[number] = lines[number][: rng.randrange(len(lines[number]) + 1)]
    return base.with_lines(lines, [])


def deleted_line(base, rng):
    lines = base.lines
    del lines[rng.randrange(len(lines))]
    return base.with_lines(lines, [])


def deleted_colon(base, rng):
    entry = rng.choice(base.entries[1:])
    at = base.text.index(":", entry.key_at[1])
    text = base.text[:at] + base.text[at + 1 :]
    return damaged(text, range(entry.line - 1, entry.last_line + 3), ())


def changed_character(base, rng):
    letter = rng.choice("abc019.:-[]{}#&*!|>'\"%@` \t,?~é\u2028\u00a0")
    at = rng.randrange(len(base.text))
    text = base.text[:at] + letter + base.text[at + rng.randint(0, 1) :]
    return damaged(text)


def garbage(base, rng):
    lines = base.lines
    at, written = rng.randint(0, len(lines)), rng.choice(GARBAGE)
    lines.insert(at, written)
    # What stands above all sections is noticed where the first one begins.
    near = {*range(max(1, at - 1), at + 4), base.sections()[0].line + written.count("\n") + 1}
    return base.with_lines(lines, near)


def second_document(base, rng):
    lines = base.lines
    number = rng.randint(base.sections()[0].line, len(lines))
    lines.insert(number, rng.choice(["---", "--- # more"]))
    lines.append("more: 1")
    return base.with_lines(lines, range(number, len(lines) + 1), must="refuse")


def huge_file(base, rng):
    what = rng.choice(["notes", "many notes", "scalar"])
    lines = base.lines
    if what == "scalar":
        lines.append("name: " + "x" * 300_000)
    else:
        lines += ["# " + "x" * 97] * (500 if what == "notes" else 3_000)
    return base.with_lines(lines, [], must="load" if what == "notes" else "refuse")


KINDS = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        typo_of_a_key, typo_of_a_section, typo_of_a_choice, wrong_type, number_for_a_text,
        out_of_range, null, null_section, words_of_yaml_11, spelling_of_a_number, quoted,
        duplicate_key, duplicate_section, alias, unknown_alias, merge_key, alias_bomb, tab,
        indentation, section_without_indent, deep_nesting, tag, other_encoding, wrong_byte,
        control_character, byte_order_mark, line_ends, other_order, comment_without_mark,
        truncated_file, truncated_line, deleted_line, deleted_colon, changed_character, garbage,
        second_document, huge_file,
    )
}  # fmt: skip
