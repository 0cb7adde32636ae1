"""Say which configs a sweep visits: a grid, or a random design, over the fields of a frozen dataclass."""

import dataclasses
import itertools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .configs import as_field, check_keys, typed
from .types import InputError, refuse

SET_HINT = "--set sigma=0.5,1,2 or --set sigma=0.5:2:4"
ENDS = ("from", "to")


@dataclasses.dataclass(frozen=True)
class Span:
    """Hold an interval of numbers to place values in, at equal distances or at random.

    Parameters
    ----------
    low, high : ends, both included.
    count : values of a grid; None where they are drawn only.
    log : equal ratios in place of equal distances.

    Examples
    --------
    >>> Span(1.0, 100.0, 3, log=True).grid(whole=False)
    [1.0, 10.0, 100.0]
    """

    low: float | int
    high: float | int
    count: int | None = None
    log: bool = False

    def grid(self, *, whole: bool) -> list[Any]:
        """Return the values in order; whole numbers where the field wants them."""
        between = np.geomspace if self.log else np.linspace
        values = between(self.low, self.high, self.count or 0)
        values[:1], values[1:][-1:] = self.low, self.high  # the ends are meant exactly as they were typed
        return [round(value) for value in values.tolist()] if whole else values.tolist()

    def draw(self, generator: np.random.Generator, *, whole: bool) -> Any:
        """Draw one value."""
        if whole and not self.log:
            return int(generator.integers(round(self.low), round(self.high), endpoint=True))
        if self.log:
            drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = float(generator.uniform(self.low, self.high))
        return round(drawn) if whole else drawn


Axis = tuple[Any, ...] | Span


@dataclasses.dataclass(frozen=True)
class Design:
    """Hold what a sweep visits.

    Parameters
    ----------
    fixed : field → the value it has in every cell.
    axes : field → values, or a `Span`.
    random : cells to draw, each field from its axis; None for the grid of all combinations.
    seed : of the draws.

    Examples
    --------
    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     sigma: float = 1.0
    ...     seed: int = 0
    >>> Design(axes={"sigma": (1.0, 2.0), "seed": Span(0, 1, 2)}).configs(Config)[1:3]
    [Config(sigma=1.0, seed=1), Config(sigma=2.0, seed=0)]
    """

    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, Axis] = dataclasses.field(default_factory=dict)
    random: int | None = None
    seed: int = 0

    def configs(self, kind: Any) -> list[Any]:
        """Return the configs in order, each once.

        Parameters
        ----------
        kind : the frozen dataclass.

        Raises
        ------
        InputError
            On an empty grid, a span without a count in a grid, or values that the dataclass refuses.

        Notes
        -----
        A random design gives every cell a seed of its own, its place, where seed is a field and no axis names it.
        """
        whole = {field.name: isinstance(field.default, int) for field in dataclasses.fields(kind)}
        for name, axis in self.axes.items():
            if isinstance(axis, Span) and axis.count is None and self.random is None:
                refuse(
                    f"{name} from {axis.low:g} to {axis.high:g} in a grid",
                    "how many values",
                    f"{SET_HINT}, or --random",
                )
            if not (axis.count != 0 if isinstance(axis, Span) else axis):
                refuse(f"{name} without values, an empty grid", "at least one value for every axis", SET_HINT)
        if self.random is not None:
            found = self._drawn(kind, whole)
        else:
            values = [
                axis.grid(whole=whole[name]) if isinstance(axis, Span) else axis for name, axis in self.axes.items()
            ]
            found = [dict(zip(self.axes, cell, strict=True)) for cell in itertools.product(*values)]
        return list(dict.fromkeys(_made(kind, {**self.fixed, **cell}) for cell in found))

    def _drawn(self, kind: Any, whole: Mapping[str, bool]) -> list[dict[str, Any]]:
        if self.random is None or self.random < 1:
            refuse(f"--random {self.random}, an empty design", "at least one cell", "--random 100")
        named = {**self.fixed, **self.axes}
        cells = []
        for place in range(self.random):
            # one stream per cell: the first cells of a longer design are those of a shorter one
            generator = np.random.default_rng([self.seed, place])
            cell = {"seed": place} if "seed" in whole and "seed" not in named else {}
            for name, axis in self.axes.items():
                drawn = isinstance(axis, Span)
                cell[name] = (
                    axis.draw(generator, whole=whole[name]) if drawn else axis[int(generator.integers(len(axis)))]
                )
            cells.append(cell)
        return cells


def read_design(path: Path, kind: Any) -> Design:
    r"""Read a design in TOML.

    Parameters
    ----------
    path : a file of fields and their values, a table `grid` of axes, and, for a random design, a table `random` with
        `cells`, `seed` and axes. An axis is a list of values, or `{from = 0.5, to = 2.0, count = 4, scale = "log"}`.
    kind : the frozen dataclass.

    Raises
    ------
    InputError
        If the file cannot be read, holds an unknown key, or a value of another type.

    Examples
    --------
    >>> import dataclasses, tempfile
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     layers: int = 8
    ...     sigma: float = 1.0
    >>> with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
    ...     _ = file.write("layers = 4\n[grid]\nsigma = {from = 1, to = 2, count = 2}\n")
    ...     file.flush()
    ...     read_design(Path(file.name), Config).configs(Config)
    [Config(layers=4, sigma=1.0), Config(layers=4, sigma=2.0)]
    """
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        refuse(f"{path} ({' '.join(str(error).split())})", "a design in TOML", "docs/guides/sweep.md, which shows one")
    grid, random = described.pop("grid", {}), described.pop("random", None)
    for name, table in (("grid", grid), ("random", {} if random is None else random)):
        if not isinstance(table, dict):
            refuse(f"{name}={table!r} in {path}", f"a table [{name}]", f"[{name}]")
    if grid and random is not None:
        refuse(f"both [grid] and [random] in {path}", "one of them", "[random] with the axes of both")
    cells, seed = None, 0
    if random is not None:
        if "cells" not in random:
            refuse(f"[random] without cells in {path}", "how many cells to draw", "cells = 100")
        cells = as_field("cells", random.pop("cells"), 100, path)
        seed = as_field("seed", random.pop("seed", 0), 0, path)
    axes = random if random is not None else grid
    return Design(typed(described, kind, path), axes_of(axes, kind, path), cells, seed)


def axes_of(axes: Mapping[str, Any], kind: Any, source: Any) -> dict[str, Axis]:
    """Return axes of plain values, lists and tables, as the fields of a dataclass want them.

    Raises
    ------
    InputError
        On an unknown field, or values of another type.
    """
    check_keys(axes, kind, source)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: _axis(name, axis, defaults[name], source) for name, axis in axes.items()}


def read_settings(settings: Sequence[str], kind: Any) -> dict[str, Axis]:
    """Read axes as the command line has them.

    Parameters
    ----------
    settings : `name=values`: values with commas between, `low:high:count`, the same with `:log`, or `low:high` for a
        random design; for a field that is a tuple, a list in JSON, or a list of lists.
    kind : the frozen dataclass.

    Raises
    ------
    InputError
        On an unknown field, or values of another type.

    Examples
    --------
    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     sigma: float = 1.0
    ...     bulk: str = "flat"
    >>> read_settings(["bulk=flat,linear", "sigma=1:2:5"], Config)
    {'bulk': ('flat', 'linear'), 'sigma': Span(low=1.0, high=2.0, count=5, log=False)}
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    axes: dict[str, Axis] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            refuse(f"--set {setting}", "name=values", SET_HINT)
        check_keys([name], kind, "--set")
        default = defaults[name]
        spanned = ":" in text and isinstance(default, (int, float)) and not isinstance(default, bool)
        axes[name] = _span(name, text, default) if spanned else tuple(_parsed(name, text, default))
    return axes


def _axis(name: str, axis: Any, default: Any, source: Any) -> Axis:
    if isinstance(axis, Span):
        return axis
    if isinstance(axis, Mapping):
        unknown = [key for key in axis if key not in (*ENDS, "count", "scale")]
        if unknown or not all(end in axis for end in ENDS):
            refuse(
                f"{name}={dict(axis)!r} in {source}",
                "from, to, count and scale",
                f"{name} = {{from = 0, to = 1, count = 5}}",
            )
        low, high = (as_field(name, axis[end], 0.0, source) for end in ENDS)
        count = axis.get("count")
        count = None if count is None else as_field(f"{name}.count", count, 1, source)
        scale = axis.get("scale", "linear")
        if scale not in ("linear", "log"):
            refuse(f"scale={scale!r} of {name} in {source}", "linear or log", 'scale = "log"')
        return _checked(name, Span(low, high, count, scale == "log"), default, source)
    if isinstance(axis, np.ndarray):
        axis = axis.tolist()
    if not isinstance(axis, (list, tuple)):
        axis = [axis]
    return tuple(as_field(name, item, default, source) for item in axis)


def _span(name: str, text: str, default: Any) -> Span:
    parts = text.split(":")
    log = parts[-1] == "log"
    parts = parts[: len(parts) - log]
    try:
        low, high = float(parts[0]), float(parts[1])
        count = int(parts[2]) if len(parts) == 3 else None
        if len(parts) > 3:
            raise ValueError(text)
    except (ValueError, IndexError):
        refuse(f"--set {name}={text}", "low:high, low:high:count or low:high:count:log", SET_HINT)
    return _checked(name, Span(low, high, count, log), default, "--set")


def _checked(name: str, span: Span, default: Any, source: Any) -> Span:
    got = f"{name} from {span.low:g} to {span.high:g} in {source}"
    if not isinstance(default, (int, float)) or isinstance(default, bool):
        refuse(got, f"values of a {type(default).__name__}", f"a list for {name}")
    if not (math.isfinite(span.low) and math.isfinite(span.high) and span.low <= span.high):
        refuse(got, "two finite numbers, the smaller first", SET_HINT)
    if span.log and span.low <= 0:
        refuse(f"{got} at equal ratios", "ends above 0", SET_HINT)
    if span.count is not None and span.count < 0:
        refuse(f"{span.count} values of {name} in {source}", "at least 1", SET_HINT)
    return span


def _parsed(name: str, text: str, default: Any) -> list[Any]:
    """Read values of one type with commas between them."""
    try:
        if isinstance(default, tuple):
            found = json.loads(text)
            several = isinstance(found, list) and bool(found) and all(isinstance(item, list) for item in found)
            found = found if several else [found]
        elif not text:
            found = []
        elif isinstance(default, bool):
            found = [{"true": True, "false": False}[item.lower()] for item in text.split(",")]
        else:
            found = [type(default)(item) for item in text.split(",")]
    except (ValueError, KeyError):
        refuse(f"--set {name}={text}", f"values of a {type(default).__name__}", SET_HINT)
    return [as_field(name, item, default, "--set") for item in found]


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    """Build one config; what its own checks say comes with the values."""
    try:
        return kind(**values)
    except InputError:
        raise
    except (TypeError, ValueError) as problem:
        refuse(f"{dict(values)} ({problem})", f"values that {kind.__name__} takes", SET_HINT)
