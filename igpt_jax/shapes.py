"""One line for a result that holds arrays: their types and shapes instead of their numbers."""

import dataclasses
import reprlib
from typing import Any

MOST = 3  # entries of a list or a dict that are described


def describe(result: Any) -> str:
    """Return Name(field=uint8 [1, 4, 16, 16, 3], ...) of a NamedTuple or a dataclass, as its `__repr__`."""
    names = [field.name for field in dataclasses.fields(result)] if dataclasses.is_dataclass(result) else result._fields
    return f"{type(result).__name__}({', '.join(f'{name}={_short(getattr(result, name))}' for name in names)})"


def _short(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {list(value.shape)}"
    if type(value) in (list, tuple):
        return f"[{_joined([_short(entry) for entry in value[:MOST]], len(value))}]"
    if isinstance(value, dict):
        return f"{{{_joined([f'{key!r}: {_short(value[key])}' for key in list(value)[:MOST]], len(value))}}}"
    return repr(value) if hasattr(value, "_fields") else reprlib.repr(value)


def _joined(entries: list[str], count: int) -> str:
    return ", ".join(entries + [f"... {count} in all"] * (count > MOST))
