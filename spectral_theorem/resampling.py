"""Draw clips again to say how sure a number is: intervals of means and of any other statistic.

A clip is the unit, or a cluster of clips where several share a recording or a speaker: units are drawn again, whole.
What the intervals cover is counted in docs/benchmarks/statistics.md.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .types import refuse

RESAMPLES = 1999
# units from which an interval covers what it says, on data as skewed as the benchmark's
STUDENTISED = 200  # units up to which "auto" prefers bootstrap-t for a mean
NOMINAL = {"BCa": 50, "bootstrap-t": 20, "jackknife": 50}
TOO_SMALL = "n is too small for the nominal level"


@dataclasses.dataclass(frozen=True)
class Interval:
    """Hold an interval and how far to trust it.

    Parameters
    ----------
    low, high : ends, in the unit of the statistic; NaN where one unit gives no interval.
    level : nominal coverage.
    method : "BCa", "bootstrap-t", "normal", "DeLong" and so on, or "none".
    n : units that were drawn again: clips, or clusters of them.
    nominal : whether n is large enough for the level to be meant. note : why not, else "".

    Examples
    --------
    >>> found = Interval(-1.0, 2.0, 0.95, "BCa", 60, True)
    >>> found.contains(0.0), str(found)
    (True, '[-1, 2]')
    """

    low: float
    high: float
    level: float
    method: str
    n: int
    nominal: bool
    note: str = ""

    def contains(self, value: float) -> bool:
        """Tell whether a value lies inside; an interval that does not exist contains nothing."""
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"


def interval(
    values: Any,
    *,
    statistic: Callable[..., Any] = np.mean,
    clusters: Any = None,
    level: float = 0.95,
    seed: int = 0,
    method: str = "auto",
) -> Interval:
    r"""Estimate an interval of a statistic by drawing clips, or whole clusters, again.

    Parameters
    ----------
    values : (n,) finite.
    statistic : takes `axis`; of `values`. The mean by default.
    clusters : (n,) labels, or None for clips of their own.
    level : nominal coverage. seed : of the resampling.
    method : "auto" is bootstrap-t for the mean of fewer than 200 units, else BCa.

    Returns
    -------
    Interval

    Raises
    ------
    InputError
        On no values, values that are not finite, labels of another length, or another method.

    Notes
    -----
    BCa covers 84 to 91 % at n = 10 to 20, and 90 % at n = 50 when the data are as skewed as a lognormal; bootstrap-t,
    :math:`(m^*-m)/s^*`, is closer, for statistics that have a standard error: for others than the mean a small n is
    flagged instead. 1,999 resamples.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, chapters 12 and 14.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> found = interval(rng.normal(size=200))
    >>> found.method, found.contains(0.0), found.nominal
    ('BCa', True, True)
    >>> interval(np.arange(12.0), clusters=[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]).note
    'n is too small for the nominal level'
    """
    x = finite(values, "values")
    groups = groups_of(x.size, clusters)
    if statistic is not np.mean:
        if clusters is None:
            return interval_of(lambda index: statistic(x[index], axis=-1), x.size, level=level, seed=seed, vector=True)
        return interval_of(lambda index: statistic(x[index], axis=-1), x.size, clusters, level=level, seed=seed)
    sums, sizes = totals(x, groups)
    if method not in ("auto", "BCa", "bootstrap-t"):
        refuse(f"method {method!r}", "auto, BCa or bootstrap-t", 'method="auto"')
    if method == "bootstrap-t" or (method == "auto" and sums.size < STUDENTISED):
        return studentised(sums, sizes, level=level, seed=seed)
    mean = lambda index: sums[index].sum(-1) / sizes[index].sum(-1)
    return bca(mean, sums.size, level=level, seed=seed, resamples=RESAMPLES)


def interval_of(
    statistic: Callable[[np.ndarray], Any],
    n: int,
    clusters: Any = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 1999,
    vector: bool = False,
) -> Interval:
    """Estimate a BCa interval of any statistic of rows, by drawing rows, or whole clusters of them, again.

    Parameters
    ----------
    statistic : takes row numbers, (m,) int, and returns a number; with `vector`, takes (..., m) to (...).
    n : rows. clusters : (n,) labels, or None.
    level, seed, resamples : as in `interval`.

    Returns
    -------
    Interval
        Resamples for which the statistic is not finite are left out, and counted in the note.

    Raises
    ------
    InputError
        On no rows, or labels of another length.

    Notes
    -----
    `resamples` plus n calls of the statistic where it takes one resample at a time.

    Examples
    --------
    >>> x = np.arange(60.0)
    >>> y = x + np.tile([-3.0, 0.0, 3.0], 20)
    >>> found = interval_of(lambda rows: np.corrcoef(x[rows], y[rows])[0, 1], 60, resamples=499)
    >>> found.n, bool(0.98 < found.low < found.high < 1.0)
    (60, True)
    """
    groups = groups_of(n, clusters)
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    if vector and clusters is None:
        return bca(statistic, n, level=level, seed=seed, resamples=resamples)

    def each(index: np.ndarray) -> np.ndarray:
        flat = index.reshape(-1, index.shape[-1])
        values = [statistic(np.concatenate([members[g] for g in row])) for row in flat]
        return np.asarray(values, dtype=float).reshape(index.shape[:-1])

    return bca(each, len(members), level=level, seed=seed, resamples=resamples)


def totals(x: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the size of each cluster.

    Examples
    --------
    >>> [part.tolist() for part in totals(np.asarray([1.0, 2.0, 5.0]), np.asarray([0, 0, 1]))]
    [[3.0, 5.0], [2.0, 1.0]]
    """
    return np.bincount(groups, weights=x), np.bincount(groups).astype(float)


def standard_error(sums: np.ndarray, sizes: np.ndarray) -> Any:
    r"""Return the standard error of :math:`\sum s_c/\sum n_c` over clusters, along the last axis, to first order."""
    n = sums.shape[-1]
    mean = sums.sum(-1, keepdims=True) / sizes.sum(-1, keepdims=True)
    return np.sqrt(n / max(n - 1, 1) * ((sums - mean * sizes) ** 2).sum(-1)) / sizes.sum(-1)


def bca(statistic: Callable[[np.ndarray], Any], n: int, *, level: float, seed: int, resamples: int) -> Interval:
    """Return SciPy's BCa interval of a statistic of unit numbers, (..., m) to (...).

    Notes
    -----
    Where some resamples have no finite value, or BCa none, the percentile interval of the finite ones is returned.
    """
    from scipy import stats

    if n < 2:
        return Interval(np.nan, np.nan, level, "none", n, False, TOO_SMALL)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # SciPy warns of what the note says
        found = stats.bootstrap(
            (np.arange(n),), lambda index, axis: statistic(index), vectorized=True, axis=-1, method="BCa",
            n_resamples=resamples, confidence_level=level, batch=max(1, 2_000_000 // n),
            rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = (float(end) for end in found.confidence_interval)
    nominal = n >= NOMINAL["BCa"]
    note = "" if nominal else TOO_SMALL
    if np.isfinite(low) and np.isfinite(high):
        return Interval(low, high, level, "BCa", n, nominal, note)
    drawn = np.asarray(found.bootstrap_distribution)
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size < resamples / 2:
        return Interval(np.nan, np.nan, level, "none", n, False, "most resamples have no finite value")
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2]).tolist()
    lost = resamples - drawn.size
    said = f"{lost} of {resamples} resamples had no finite value" if lost else "all resamples lie on one side"
    note = "all values are equal" if low == high and not lost else "; ".join(filter(None, [said, note]))
    return Interval(low, high, level, "percentile", n, False, note)


def studentised(sums: np.ndarray, sizes: np.ndarray, *, level: float, seed: int) -> Interval:
    """Return the bootstrap-t interval of the mean of units with these sums and sizes."""
    n = sums.size
    index = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    there = (sums[index].sum(-1) / sizes[index].sum(-1), standard_error(sums[index], sizes[index]))
    here = (float(sums.sum() / sizes.sum()), float(standard_error(sums, sizes)))
    return by_t(*here, *there, n=n, level=level)


def by_t(value: float, error: float, values: np.ndarray, errors: np.ndarray, *, n: int, level: float) -> Interval:
    r"""Return the bootstrap-t interval :math:`m - t^*_{1-q}s, m - t^*_qs` from a value, its error, and resampled ones.

    Parameters
    ----------
    value, error : of the sample. values, errors : (resamples,). n : units, of the smaller group if there are two.
    """
    if n < 2:
        return Interval(np.nan, np.nan, level, "none", n, False, TOO_SMALL)
    tiny = 1e-14 * abs(value)  # numbers that are all the same differ from their mean by rounding
    if not error > tiny:
        return Interval(value, value, level, "bootstrap-t", n, False, "all values are equal")
    # resamples of one unit, again and again, have no spread and say nothing
    seen = np.isfinite(values) & (errors > tiny)
    t = (values[seen] - value) / errors[seen]
    if t.size < values.size / 2:
        return Interval(np.nan, np.nan, level, "none", n, False, "most resamples have no spread")
    low, high = np.quantile(t, [0.5 - level / 2, 0.5 + level / 2]).tolist()
    note = "" if n >= NOMINAL["bootstrap-t"] else TOO_SMALL
    return Interval(value - high * error, value - low * error, level, "bootstrap-t", n, not note, note)


def finite(values: Any, name: str) -> np.ndarray:
    """Take one finite number per clip, or refuse."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size == 0:
        refuse(f"{name} of shape {x.shape}", "one number per clip, at least one", "a group with clips in it")
    if not np.isfinite(x).all():
        refuse(f"{name} with {int((~np.isfinite(x)).sum())} that are not finite", "finite values", "leaving them out")
    return x


def groups_of(n: int, clusters: Any) -> np.ndarray:
    """Return the number of the cluster of each row, from 0; without labels each row is one."""
    if n < 1:
        refuse(f"{n} rows", "at least one", "a group with clips in it")
    if clusters is None:
        return np.arange(n)
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        refuse(f"clusters of shape {labels.shape}", f"one label for each of {n} values", "clusters=speakers")
    return np.unique(labels, return_inverse=True)[1]
