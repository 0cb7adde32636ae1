"""Hold one answer of a run: a verdict on a statement, a sentence with its number, tables, and a figure's arrays.

A section runs no model and draws nothing; `report` does the second from what is on disk.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .association import Estimate
from .resampling import Interval, interval
from .statistics import Change, change_of
from .storage import json_ready
from .tables import Table

Answer = Literal["HOLDS", "VIOLATED", "UNDECIDED", "NOT COMPUTED"]
Columns = Mapping[str, np.ndarray]
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Section:
    """Hold what a run says about one question.

    Parameters
    ----------
    id : by which figures and reports know it. title : the question, or what is shown.
    verdict : on the statement that `sentence` begins with.
    sentence : words, with the number, its interval and what chance would give.
    tables : in order. data : small arrays, plain values.
    why : the reason if it was not computed.

    Examples
    --------
    >>> Section("nulls", "Chance", "HOLDS", "It is not chance.").to_json()["verdict"]
    'HOLDS'
    """

    id: str
    title: str
    verdict: Answer
    sentence: str
    tables: tuple[Table, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; numbers that are none become null."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json_ready(found | {"tables": [table.to_json() for table in self.tables]})[0]


def not_computed(id: str, title: str, why: str) -> Section:
    """Return the section that says why a question has no answer.

    Examples
    --------
    >>> not_computed("nulls", "Chance", "no clip").why
    'no clip'
    """
    return Section(id, title, "NOT COMPUTED", f"Not computed: {why}.", why=why)


def finite_of(values: Any, clusters: Any) -> tuple[np.ndarray, np.ndarray]:
    """Leave out values that are not finite, and the labels of their clips.

    Examples
    --------
    >>> [part.tolist() for part in finite_of([1.0, float("nan")], ["a", "b"])]
    [[1.0], ['a']]
    """
    x, labels = np.asarray(values, float), np.asarray(clusters)
    keep = np.isfinite(x)
    return x[keep], labels[keep]


def mean_of(values: Any, clusters: Any, *, seed: int = 0) -> Estimate:
    """Estimate a mean with its interval over clusters, leaving out values that are not finite.

    Parameters
    ----------
    values : (n,). clusters : (n,) labels of clips.

    Returns
    -------
    Estimate
        NaN with no interval where nothing is left.

    Examples
    --------
    >>> mean_of([1.0, float("nan"), 3.0], ["a", "a", "b"]).value
    2.0
    """
    x, labels = finite_of(values, clusters)
    if not x.size:
        return Estimate(float("nan"), Interval(np.nan, np.nan, 0.95, "none", 0, False, "no finite value"))
    return Estimate(float(x.mean()), interval(x, clusters=labels, seed=seed))


def shown(found: Any, digits: int = 3) -> str:
    """Write a number with its interval, and with n where that is too small for the nominal level.

    Parameters
    ----------
    found : an `Estimate` or a `Change`.

    Examples
    --------
    >>> shown(Estimate(1.23456, Interval(1.0, 1.5, 0.95, "BCa", 60, True)))
    '1.23 [1, 1.5]'
    """
    low, high = found.interval.low, found.interval.high
    few = "" if found.interval.nominal else f"; only n = {found.interval.n}"
    ends = f"[{low:.{digits}g}, {high:.{digits}g}{few}]" if np.isfinite(low) else "[no interval]"
    return f"{found.value:.{digits}g} {ends}"


def as_cell(value: float | None) -> float | None:
    """Return a number for a table; None for what is none.

    Examples
    --------
    >>> as_cell(float("nan")), as_cell(1.0)
    (None, 1.0)
    """
    return None if value is None or not np.isfinite(value) else float(value)


def as_cells(found: Any, value: float | None = None) -> tuple[float | None, float | None, float | None]:
    """Return value, low and high end for a table, all None where nothing was found.

    Parameters
    ----------
    found : an `Estimate`, a `Change`, or anything with an `interval` if `value` is given; or None.
    """
    if found is None:
        return (None, None, None)
    return as_cell(found.value if value is None else value), as_cell(found.interval.low), as_cell(found.interval.high)


def above(found: Any, limit: float) -> Answer:
    """Judge "is above the limit" by the interval of an `Estimate`; one below its nominal level decides nothing.

    Examples
    --------
    >>> above(Estimate(2.0, Interval(1.5, 2.5, 0.95, "BCa", 60, True)), 1.0)
    'HOLDS'
    >>> above(Estimate(2.0, Interval(2.0, 2.0, 0.95, "bootstrap-t", 2, False)), 1.0)
    'UNDECIDED'
    """
    if not found.interval.nominal:
        return "UNDECIDED"
    if found.interval.low > limit:
        return "HOLDS"
    return "VIOLATED" if found.interval.high < limit else "UNDECIDED"


def exceeds(found: Change) -> Answer:
    """Judge "is above 0" by the permutation test of a `Change`, which is exact however few clips there are.

    Examples
    --------
    >>> [exceeds(change_of(sign * np.arange(1.0, 9.0))) for sign in (1, -1)], exceeds(change_of([1.0, 2.0]))
    (['HOLDS', 'VIOLATED'], 'UNDECIDED')
    """
    if not found.p < LEVEL:
        return "UNDECIDED"
    return "HOLDS" if found.value > 0 else "VIOLATED"


def mean_exceeds(values: Any, clusters: Any, limit: float = 0.0, *, seed: int = 0) -> Answer:
    """Judge "the mean is above the limit" by flipping the signs of whole clusters about it.

    Examples
    --------
    >>> mean_exceeds(np.arange(1.0, 9.0), list("abcdefgh")), mean_exceeds([float("nan")], ["a"])
    ('HOLDS', 'UNDECIDED')
    """
    x, labels = finite_of(values, clusters)
    return exceeds(change_of(x - limit, clusters=labels, seed=seed)) if x.size else "UNDECIDED"


def together(verdicts: Iterable[Answer]) -> Answer:
    """Judge "all of them": one that is violated is enough against, one that is undecided leaves it open.

    Examples
    --------
    >>> together(["HOLDS", "UNDECIDED"]), together(["UNDECIDED", "VIOLATED"])
    ('UNDECIDED', 'VIOLATED')
    """
    found = set(verdicts)
    for verdict in ("VIOLATED", "UNDECIDED"):
        if verdict in found:
            return verdict
    return "HOLDS" if found == {"HOLDS"} else "UNDECIDED"


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Turn flat rows into arrays; a number that a row lacks, or that is None, is NaN.

    Examples
    --------
    >>> as_columns([{"clip": "a", "lam": 1.0}, {"clip": "b", "lam": None}])["lam"].tolist()
    [1.0, nan]
    """
    names = dict.fromkeys(name for row in rows for name in row)
    found = {}
    for name in names:
        values = [row.get(name) for row in rows]
        text = any(isinstance(value, str) for value in values)
        found[name] = np.asarray([("" if v is None else v) if text else (np.nan if v is None else v) for v in values])
    return found


def rows_where(columns: Columns, **chosen: Any) -> dict[str, np.ndarray]:
    """Keep the rows in which columns have given values.

    Examples
    --------
    >>> rows_where({"layer": np.arange(3), "lam": np.ones(3)}, layer=2)["lam"].tolist()
    [1.0]
    """
    keep = np.ones(len(next(iter(columns.values()))), bool)
    for name, value in chosen.items():
        keep &= columns[name] == value
    return {name: column[keep] for name, column in columns.items()}
