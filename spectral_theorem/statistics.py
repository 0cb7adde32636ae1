"""Judge changes between conditions: tests by permutation, effect sizes, corrections, and what could have been seen.

Thin over `scipy.stats`. What the tests find by chance, and how often they find what is there, is counted in
docs/benchmarks/statistics.md.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from .resampling import (
    RESAMPLES,
    Interval,
    by_t,
    finite,
    groups_of,
    interval,
    standard_error,
    totals,
)
from .types import refuse

PERMUTATIONS = 9999
COMPLETE = 13  # units up to which all choices of signs are made: 8,192


@dataclasses.dataclass(frozen=True)
class Change:
    """Hold a change between two conditions with all that is needed to judge it.

    Parameters
    ----------
    value : second condition minus first. interval : of the value.
    p : two-sided, by permutation; uncorrected (see `corrected`).
    effect : the change in standard deviations, `effect_name` says of what.
    rank_biserial : -1 to 1; share of pairs (weighted by rank) that went up, minus those that went down.
    n : units. smallest_detectable : size of change that a sample like this one finds with `power` 0.8.

    Examples
    --------
    >>> found = paired_change([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.5, 2.7, 3.4, 4.6, 5.5, 6.9])
    >>> round(found.value, 3), found.p, found.interval.nominal
    (0.6, 0.03125, False)
    """

    value: float
    interval: Interval
    p: float
    effect: float
    effect_name: str
    rank_biserial: float
    n: int
    smallest_detectable: float
    note: str = ""


def paired_change(
    clean: Any, stressed: Any, *, clusters: Any = None, level: float = 0.95, seed: int = 0, power: float = 0.8
) -> Change:
    """Estimate the mean change of the same clips from one condition to the other.

    Parameters
    ----------
    clean, stressed : (n,) finite, in the same order.
    clusters : (n,) labels, or None. level, seed : as in `interval`. power : of `smallest_detectable`.

    Returns
    -------
    Change
        `effect` is Hedges' g of the differences. The test flips signs, of whole clusters where there are any: it is
        exact when clean and stressed could be exchanged, and complete up to 13 units.

    Raises
    ------
    InputError
        On no pairs, groups of different lengths, or values that are not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clean = rng.normal(size=80)
    >>> found = paired_change(clean, clean + rng.normal(0.5, 1.0, 80))
    >>> found.p < 0.01, found.interval.contains(0.5), found.effect_name
    (True, True, "Hedges' g of the differences")
    """
    a, b = finite(clean, "clean"), finite(stressed, "stressed")
    if a.size != b.size:
        refuse(f"{a.size} clean and {b.size} stressed values", "one of each per clip", "the clips both have")
    return change_of(b - a, clusters=clusters, level=level, seed=seed, power=power)


def change_of(
    differences: Any,
    *,
    clusters: Any = None,
    level: float = 0.95,
    seed: int = 0,
    power: float = 0.8,
    bars: Interval | None = None,
) -> Change:
    """Judge differences that are already taken, one per clip; as `paired_change`.

    Parameters
    ----------
    differences : (n,) finite. clusters, level, seed, power : as in `paired_change`.
    bars : the interval, where it is known already.

    Examples
    --------
    >>> change_of([0.0, 0.0, 0.0]).note
    'all differences are equal'
    """
    d = finite(differences, "differences")
    found = bars or interval(d, clusters=clusters, level=level, seed=seed)
    sums, sizes = totals(d, groups_of(d.size, clusters))
    mean, n = float(d.mean()), int(sums.size)
    if np.ptp(d) == 0:
        p = 1.0 if mean == 0 else float(min(1.0, 2.0 ** (1 - n)))
        effect = 0.0 if mean == 0 else float("nan")
        note = "all differences are equal"
        return Change(mean, found, p, effect, "Hedges' g of the differences", float(np.sign(mean)), n, 0.0, note)
    error = standard_error(sums, sizes)
    least = smallest_detectable(error, n, level=level, power=power)
    effect = _hedges(d.size - 1) * mean / float(d.std(ddof=1))
    return Change(
        mean, found, sign_flip_p(sums, seed=seed), effect, "Hedges' g of the differences", _matched_ranks(d), n, least
    )


def sign_flip_p(units: Any, *, seed: int = 0) -> Any:
    """Return the two-sided p-value of a zero mean by flipping signs of the units.

    Parameters
    ----------
    units : (n,) differences, or sums of them over a cluster; (n, m) for m numbers at once, by the same signs.

    Returns
    -------
    float, or (m,) array
        All 2^n choices of signs are made up to n = 13, else 9,999 random ones, and the least p is then 1/10,000.

    Examples
    --------
    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    x = np.asarray(units, dtype=float)
    flips = sign_flips(len(x), seed=seed)
    here = np.abs(x.sum(0))
    # sums that are equal but for the order of adding count as equal
    reach = np.abs(flips @ x) >= here - 1e-12 * np.abs(x).sum(0)
    p = reach.mean(0) if len(x) <= COMPLETE else (1 + reach.sum(0)) / (1 + len(flips))
    return float(p) if x.ndim == 1 else p


@functools.lru_cache(maxsize=2)
def sign_flips(n: int, *, seed: int = 0) -> np.ndarray:
    """Return choices of signs for n units as rows: all of them up to n = 13, else 9,999 random ones.

    Examples
    --------
    >>> sign_flips(2).tolist(), sign_flips(14).shape
    ([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], (9999, 14))
    """
    if n <= COMPLETE:
        flips = np.asarray(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        flips = 2.0 * np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, n), dtype=np.int8) - 1.0
    flips.flags.writeable = False  # callers share it
    return flips


def group_difference(
    first: Any,
    second: Any,
    *,
    clusters: tuple[Any, Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
    power: float = 0.8,
) -> Change:
    """Estimate the difference of the means of two groups of different clips.

    Parameters
    ----------
    first, second : (n,) and (m,) finite. clusters : labels of both, or None.
    level, seed, power : as in `paired_change`.

    Returns
    -------
    Change
        Of second minus first; `effect` is Hedges' g with the pooled deviation.

    Raises
    ------
    InputError
        On a group with fewer than two clips, or values that are not finite.

    Notes
    -----
    Labels of clips are exchanged, by Welch's t, whose permutation test keeps its level when only the means agree. With
    clusters: labels of whole clusters where each lies in one group. Where some have clips in both, the signs of the
    clusters' contributions to the difference are flipped; up to 13 such clusters, too few for signs, labels are
    exchanged inside each, and p then judges what differs inside clusters.

    References
    ----------
    Hemerik, Goeman and Finos 2020, on flipping signs of contributions.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> found = group_difference(rng.normal(size=60), rng.normal(1.0, 3.0, 90))
    >>> found.interval.contains(1.0), found.p < 0.05, found.n
    (True, True, 150)
    """
    from scipy import stats

    a, b = finite(first, "first group"), finite(second, "second group")
    if min(a.size, b.size) < 2:
        refuse(f"groups of {a.size} and {b.size} clips", "at least two in each", "more clips, or another split")
    both, member = np.concatenate([a, b]), np.repeat([0, 1], [a.size, b.size])
    labels = None
    if clusters is not None:
        if len(clusters[0]) != a.size or len(clusters[1]) != b.size:
            refuse(f"{len(clusters[0])} and {len(clusters[1])} labels", "one per clip", "clusters=(first, second)")
        labels = np.concatenate([np.asarray(each) for each in clusters])
    groups = groups_of(both.size, labels)
    units = int(groups.max()) + 1
    if clusters is None:
        found = _two_means(a, b, level=level, seed=seed)
        error = float(np.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size))
    else:
        found, error = _clustered_means(both, member, groups, level=level, seed=seed)
    value, p = float(b.mean() - a.mean()), _exchange_p(both, member, groups, seed)
    spread = np.sqrt(((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / (both.size - 2))
    effect = float(_hedges(both.size - 2) * value / spread) if spread > 0 else float("nan")
    ranks = float(2 * stats.mannwhitneyu(b, a).statistic / (a.size * b.size) - 1)
    least = smallest_detectable(error, units, level=level, power=power, parameters=2)
    return Change(value, found, p, effect, "Hedges' g", ranks, units, least)


def corrected(p_values: Any, method: str = "bh") -> np.ndarray:
    """Correct p-values for their number.

    Parameters
    ----------
    p_values : any shape; NaN marks a test that was not made, and stays.
    method : "bh" and "by" bound the share of false discoveries, Benjamini-Yekutieli under any dependence;
        "holm" the chance of a single one.

    Returns
    -------
    array of the same shape

    Raises
    ------
    InputError
        On a p-value outside [0, 1], or another method.

    Examples
    --------
    >>> corrected([0.01, 0.02, 0.5]).tolist(), corrected([0.01, float("nan"), 0.03], "holm").tolist()
    ([0.03, 0.03, 0.5], [0.02, nan, 0.03])
    """
    from scipy import stats

    p = np.asarray(p_values, dtype=float)
    made = ~np.isnan(p)
    if ((p[made] < 0) | (p[made] > 1)).any():
        refuse("a p-value outside [0, 1]", "p-values", "the p of paired_change")
    if method not in ("bh", "by", "holm"):
        refuse(f"method {method!r}", "bh, by or holm", 'method="bh"')
    out = np.full_like(p, np.nan)
    if made.any():
        q = p[made]
        if method == "holm":
            order = np.argsort(q)
            steps = np.maximum.accumulate(q[order] * np.arange(q.size, 0, -1))
            q[order] = np.minimum(steps, 1.0)
        else:
            q = stats.false_discovery_control(q, method=method)
        out[made] = q
    return out


def smallest_detectable(error: float, n: int, *, level: float = 0.95, power: float = 0.8, parameters: int = 1) -> float:
    r"""Return the change that a two-sided t test on n units finds with probability `power`.

    Parameters
    ----------
    error : standard error of the estimate. n : units. level : of the test is 1 - level.
    parameters : estimated means, which the degrees of freedom are less by.

    Returns
    -------
    float
        In the unit of `error`; NaN where no degree of freedom is left.

    Examples
    --------
    >>> round(smallest_detectable(1.0, 1000), 2)
    2.8
    """
    from scipy import optimize, stats

    freedom = n - parameters
    if freedom < 1 or not np.isfinite(error):
        return float("nan")
    limit = stats.t.ppf(0.5 + level / 2, freedom)
    missed = lambda shift: stats.nct.cdf(limit, freedom, shift) - (1 - power)
    shift: Any = optimize.brentq(missed, 0.0, 4 * limit + 10.0)  # the stubs know of a second form of answer
    return float(error * shift)


def _hedges(freedom: int) -> float:
    return 1 - 3 / (4 * max(freedom, 1) - 1)


def _matched_ranks(d: np.ndarray) -> float:
    from scipy import stats

    d = d[d != 0]
    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum()) if d.size else 0.0


def _two_means(a: np.ndarray, b: np.ndarray, *, level: float, seed: int) -> Interval:
    """Return the interval of the difference of two means: bootstrap-t, as both groups have errors of their own."""
    rng = np.random.default_rng(seed)
    error = lambda x, y: np.sqrt(x.var(-1, ddof=1) / x.shape[-1] + y.var(-1, ddof=1) / y.shape[-1])
    x, y = (each[rng.integers(0, each.size, (RESAMPLES, each.size))] for each in (a, b))
    there = (y.mean(-1) - x.mean(-1), error(x, y))
    return by_t(float(b.mean() - a.mean()), float(error(a, b)), *there, n=min(a.size, b.size), level=level)


def _clustered_means(
    x: np.ndarray, member: np.ndarray, groups: np.ndarray, *, level: float, seed: int
) -> tuple[Interval, float]:
    """Return the bootstrap-t interval of the difference of means over clusters, and its standard error."""
    sums = np.stack([totals(np.where(member == side, x, 0.0), groups)[0] for side in (0, 1)])
    sizes = np.stack([totals((member == side).astype(float), groups)[0] for side in (0, 1)])
    n = sums.shape[1]

    def judged(total: np.ndarray, size: np.ndarray) -> tuple[Any, Any]:
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total.sum(-1, keepdims=True) / size.sum(-1, keepdims=True)
            # to first order each cluster moves the difference by its residuals, on both sides at once
            share = (total - size * mean) / size.sum(-1, keepdims=True)
        error = np.sqrt(n / max(n - 1, 1) * ((share[1] - share[0]) ** 2).sum(-1))
        return (mean[1] - mean[0])[..., 0], error

    value, error = judged(sums, sizes)
    index = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    there = judged(sums[:, index], sizes[:, index])
    each = int((sizes > 0).sum(1).min())
    return by_t(float(value), float(error), *there, n=each, level=level), float(error)


def _exchange_p(x: np.ndarray, member: np.ndarray, groups: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of equal means when labels are exchanged in a way that respects clusters."""
    if np.ptp(x) == 0:
        return 1.0
    count = int(groups.max()) + 1
    sizes = np.bincount(groups)
    shares = np.bincount(groups, weights=member) / sizes
    split = bool(((shares > 0) & (shares < 1)).any())
    if split and count > COMPLETE:
        weights = np.where(member == 1, 1 / member.sum(), -1 / (1 - member).sum())
        return float(sign_flip_p(totals(weights * (x - x.mean()), groups)[0], seed=seed))
    rng = np.random.default_rng(seed)
    if split:
        # a random order inside each cluster, all resamples at once; what clusters differ by is not exchanged
        x = x - (np.bincount(groups, weights=x) / sizes)[groups]
        order = np.argsort(groups + rng.random((PERMUTATIONS, x.size)), axis=-1)
        home = np.argsort(groups, kind="stable")
        labels = np.empty(order.shape)
        np.put_along_axis(labels, order, np.broadcast_to(member[home].astype(float), order.shape), axis=-1)
    else:
        x = x - x.mean()
        labels = rng.permuted(np.broadcast_to(shares, (PERMUTATIONS, count)), axis=-1)[:, groups]
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.abs(_welch(x, labels))
        here = np.abs(_welch(x, member.astype(float)))
    # where both groups are constant, or one is empty, t is not a number: as extreme as can be
    reach = np.nan_to_num(size, nan=np.inf) >= np.nan_to_num(here, nan=np.inf) * (1 - 1e-9)
    return float((1 + reach.sum()) / (1 + PERMUTATIONS))


def _welch(x: np.ndarray, labels: np.ndarray) -> Any:
    """Return Welch's t of the clips with label 1 against those with label 0, for rows of labels."""
    n = labels.sum(-1)
    m = x.size - n
    one, square = labels @ x, labels @ x**2
    mean, other = one / n, (x.sum() - one) / m
    spread = (square / n - mean**2) / (n - 1) + ((x @ x - square) / m - other**2) / (m - 1)
    return (mean - other) / np.sqrt(np.maximum(spread, 0.0))
