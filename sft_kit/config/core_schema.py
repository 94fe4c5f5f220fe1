"""Unquoted scalars by the core schema of YAML 1.2, to the letter.

`2e-4` is a number, `no` is text, `1_000` and `2024-01-01` are text.

Source: YAML 1.2.2, section 10.3.2.
"""

import math
import re
from typing import TypeAlias

Scalar: TypeAlias = "str | int | float | bool | None"

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def resolve(written: str) -> tuple[Scalar, str]:
    """Resolve a scalar.

    Returns:
        Its value, and why it can't be used as written where it is a number out of reach; else "".
    """
    if written in _NULL:
        return None, ""
    if written in _TRUE:
        return True, ""
    if written in _FALSE:
        return False, ""
    if base := _base_of_integer(written):
        return _integer(written, base)
    if _FLOAT.fullmatch(written):
        return _number(written)
    if _NOT_FINITE.fullmatch(written):
        return written, "accepts finite numbers"
    return written, ""


def _base_of_integer(written: str) -> int:
    if _DECIMAL.fullmatch(written):
        return 10
    if _OCTAL.fullmatch(written):
        return 8
    return 16 if _HEXADECIMAL.fullmatch(written) else 0


def _integer(written: str, base: int) -> tuple[Scalar, str]:
    digits = written if base == 10 else written[2:]
    # 64 characters hold any 64-bit number in these bases; Python refuses to convert very long ones.
    value = int(digits, base) if len(digits.lstrip("+-0")) <= 64 else 2**63
    if not -(2**63) <= value < 2**63:
        return written, "accepts whole numbers of at most 64 bits"
    return value, ""


def _number(written: str) -> tuple[Scalar, str]:
    value = float(written)
    if math.isinf(value):
        return written, "accepts numbers up to 1.8e308"
    mantissa = re.split("[eE]", written)[0]
    if value == 0.0 and mantissa.strip("+-0."):
        return written, "accepts 0 or numbers from 5e-324"
    return value, ""
