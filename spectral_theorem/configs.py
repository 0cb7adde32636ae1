"""Take plain values, as files and command lines hold them, to the fields of a frozen dataclass."""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .types import refuse


def typed(
    described: Mapping[str, Any], kind: Any, source: Any, *, known: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return entries as the fields of a dataclass want them.

    Parameters
    ----------
    described : field → value; whole numbers may stand for floats, lists for tuples, text for paths.
    kind : the dataclass; the type of a field is that of its default.
    source : where the entries are from, for messages.
    known : fields that may be named; all of them if absent.

    Raises
    ------
    InputError
        On an unknown key, with the nearest known one, or a value of another type.

    Examples
    --------
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     layers: int = 8
    ...     sigma: float = 1.0
    >>> typed({"sigma": 2}, Config, "a.toml")
    {'sigma': 2.0}
    >>> typed({"sigm": 2}, Config, "a.toml")
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got the key 'sigm' in a.toml; expected one of layers, sigma; try sigma
    """
    check_keys(described, kind, source, known=known)
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: as_field(name, given, fields[name], source) for name, given in described.items()}


def check_keys(names: Iterable[str], kind: Any, source: Any, *, known: Iterable[str] | None = None) -> None:
    """Refuse names that are no fields of a dataclass, and suggest the nearest that is.

    Parameters
    ----------
    names : to check. kind, source, known : as in `typed`.

    Raises
    ------
    InputError
        On the first that is unknown.
    """
    fields = [field.name for field in dataclasses.fields(kind)]
    wanted = set(fields if known is None else known)
    allowed = [name for name in fields if name in wanted]
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, n=1)
            hint = near[0] if near else f"{source} without it"
            refuse(f"the key {name!r} in {source}", f"one of {', '.join(allowed)}", hint)


def as_field(name: str, given: Any, default: Any, source: Any) -> Any:
    """Return a value as the field whose default is `default` wants it.

    Raises
    ------
    InputError
        When it is of another type.

    Examples
    --------
    >>> as_field("sizes", [1, 2], (8,), "a.toml"), as_field("sigma", 1, 0.5, "a.toml")
    ((1, 2), 1.0)
    """
    if isinstance(default, tuple):
        fits = isinstance(given, (list, tuple))
        if fits and default:
            given = [as_field(name, item, default[0], source) for item in given]
        found = tuple(given) if fits else given
    elif isinstance(default, float):
        fits = isinstance(given, (int, float)) and not isinstance(given, bool)
        found = float(given) if fits else given
    elif isinstance(default, Path):
        fits = isinstance(given, (str, Path))
        found = Path(given) if fits else given
    else:
        fits, found = type(given) is type(default), given
    if not fits:
        what = "Path" if isinstance(default, Path) else type(default).__name__
        refuse(f"{name}={given!r} in {source}", f"a {what}", f"{name} = {_example(default)}")
    return found


def _example(default: Any) -> str:
    """Write a value as TOML would."""
    return json.dumps(list(default) if isinstance(default, tuple) else default, default=str)
