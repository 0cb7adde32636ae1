r"""Pool the positions of many clips into one covariance, and say how sure its observables and their changes are.

A short clip has too few positions for a covariance of its own. Clips, or clusters of them, are the units: the error
comes from each unit's influence on the pooled eigenvalues, :math:`\delta\mu_i = v_i^T(C_c-C)v_i`, and the bias from
leaving out a fold of units at a time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .divergence import jensen_shannon, kl
from .modefunctions import QUANTITIES, ModeFunction
from .moments import Moments
from .observables import WINDOWS, Observables, observe
from .resampling import NOMINAL, TOO_SMALL, Interval, groups_of
from .statistics import Change, change_of, sign_flips
from .types import refuse

FOLDS = 25
MOST_BIAS = 0.5  # of the standard error: with more, the interval is not meant at its level
BIASED = "the window is large for so many clips: their number biases it"


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Hold the observables of one group of clips.

    Parameters
    ----------
    clips, positions : how many. eigenvalues : (kept,) of the pooled covariance, largest first.
    observed : window to its observables. intervals : window to quantity to its interval.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> found = pooled([rng.normal(size=(10, 12)) for _ in range(60)], modes=(10,))
    >>> found.positions, found.intervals[10]["effective_rank"].contains(10.0)
    (600, True)
    """

    clips: int
    positions: int
    eigenvalues: np.ndarray
    observed: dict[int, Observables]
    intervals: dict[int, dict[str, Interval]]


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Hold how far apart two eigenvalue distributions are, in nats.

    Parameters
    ----------
    kl : of stressed from clean. jensen_shannon : at most log 2. interval : of the latter.
    p : by exchanging the conditions of whole units, of energies along the modes of both conditions together.
    chance : what that divergence of energies reaches in 5 % of the exchanges. energies : what it is.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clean = [rng.normal(size=(10, 12)) for _ in range(60)]
    >>> found = pooled_change(clean, [3 * clip for clip in clean], modes=(10,)).divergences[10]
    >>> bool(found.kl < 1e-12), found.p
    (True, 1.0)
    """

    kl: float
    jensen_shannon: float
    interval: Interval
    p: float
    chance: float
    energies: float


@dataclasses.dataclass(frozen=True)
class PooledChange:
    """Hold both groups and every change from clean to stressed.

    Parameters
    ----------
    clean, stressed : each pooled. changes : window to quantity (`modefunctions.QUANTITIES`) to its change.
    divergences : window to how far apart the eigenvalue distributions are.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clean = [rng.normal(size=(10, 12)) for _ in range(60)]
    >>> weaker = np.where(np.arange(12) < 6, 1.0, 0.5)
    >>> found = pooled_change(clean, [clip * weaker for clip in clean], modes=(10,))
    >>> change = found.changes[10]["effective_rank_percent"]
    >>> change.value < 0, change.p < 0.001, change.interval.contains(0.0)
    (True, True, False)
    """

    clean: Pooled
    stressed: Pooled
    changes: dict[int, dict[str, Change]]
    divergences: dict[int, Divergence]


def pooled(
    clips: Sequence[Any], modes: Sequence[int] = WINDOWS, *, clusters: Any = None, level: float = 0.95
) -> Pooled:
    """Compute the observables of clips whose positions are taken together, with intervals over clips.

    Parameters
    ----------
    clips : arrays (positions, D), one per clip. modes : windows.
    clusters : (clips,) labels of recordings or speakers, or None. level : nominal coverage.

    Returns
    -------
    Pooled

    Raises
    ------
    InputError
        On no clips, clips of different width, values that are not finite, or one position in all.

    Notes
    -----
    An interval is centred on the value less its bias, so the value itself may lie outside where the window is large
    for the number of clips; it is then flagged. One singular value decomposition of all positions, and 25 of D by D.

    References
    ----------
    docs/theory/observables.md, docs/benchmarks/statistics.md

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sizes = np.arange(1.0, 21.0) ** -0.75
    >>> found = pooled([sizes * rng.normal(size=(12, 20)) for _ in range(80)], modes=(10,))
    >>> found.intervals[10]["alpha"].contains(1.5), found.observed[10].alpha_status
    (True, 'OK')
    """
    return _pooled(_decompose(clips, modes, clusters), modes, level)


def pooled_change(
    clean: Sequence[Any],
    stressed: Sequence[Any],
    modes: Sequence[int] = WINDOWS,
    *,
    clusters: Any = None,
    level: float = 0.95,
    seed: int = 0,
) -> PooledChange:
    r"""Compute how the pooled observables of the same clips change from one condition to the other.

    Parameters
    ----------
    clean, stressed : arrays (positions, D) of the same clips in the same order; positions may differ in number.
    modes, clusters, level : as in `pooled`. seed : of the tests.

    Returns
    -------
    PooledChange

    Raises
    ------
    InputError
        As `pooled`, and on different numbers of clips.

    Notes
    -----
    Tests exchange the conditions of whole units. What is tested is the change to first order at the covariance of
    both conditions together, :math:`\sum_c \nabla f\cdot(\delta\mu^{s}_c-\delta\mu^{c}_c)`: that covariance is the same
    after every exchange, so the test is exact when clean and stressed could be exchanged. `effect`, `rank_biserial`
    and `smallest_detectable` are of these scores of clips.

    References
    ----------
    docs/theory/observables.md, docs/benchmarks/statistics.md

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> clips = [rng.normal(size=(8, 12)) for _ in range(60)]
    >>> again = [rng.normal(size=(9, 12)) for _ in range(60)]
    >>> pooled_change(clips, again, modes=(10,)).changes[10]["alpha"].p > 0.05
    True
    """
    if len(clean) != len(stressed):
        refuse(f"{len(clean)} clean and {len(stressed)} stressed clips", "the same clips", "the clips both have")
    parts = [_decompose(clips, modes, clusters) for clips in (clean, stressed)]
    both = _exchangeable(clean, stressed, parts[0].units, max(modes))
    changes = {k: {q.changed: _change(parts, both, q, k, level, seed) for q in QUANTITIES} for k in modes}
    divergences = {k: _divergence(parts, both, k, level, seed) for k in modes}
    one, other = (_pooled(part, modes, level) for part in parts)
    return PooledChange(one, other, changes, divergences)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Hold a pooled covariance by units: (U, K) energies along its modes, (F, K) eigenvalues without each fold."""

    spectrum: np.ndarray
    energies: np.ndarray
    counts: np.ndarray
    less: np.ndarray
    units: np.ndarray
    clips: int

    def influence(self, gradient: np.ndarray) -> np.ndarray:
        """Return, per unit, what a mean over units of gives the value's change to first order."""
        k = gradient.size
        offset = self.energies[:, :k] - self.counts[:, None] * self.spectrum[:k]
        return offset @ gradient * (self.counts.size / self.counts.sum())


def _decompose(clips: Sequence[Any], modes: Sequence[int], clusters: Any) -> _Parts:
    arrays = [np.asarray(clip, dtype=np.float64) for clip in clips]
    if not arrays:
        refuse("a group without clips", "at least one clip", "a group with clips in it")
    if any(x.ndim != 2 or x.shape[1] != arrays[0].shape[-1] for x in arrays):
        refuse("clips of different shape", "(positions, channels), channels alike", "one component at a time")
    if not modes or min(modes) < 1:
        refuse(f"modes={tuple(modes)}", "windows of at least 1", "modes=(10, 50)")
    units = groups_of(len(arrays), clusters)
    x = np.concatenate(arrays)
    owner = np.repeat(units, [len(clip) for clip in arrays])
    mu = Moments.of(np.concatenate([np.asarray(clip) for clip in clips])).spectrum()
    x = x - x.mean(0)
    covariance = x.T @ x / (len(x) - 1)
    k = min(max(modes), mu.size)
    energies = _energies(x, np.linalg.eigh(covariance)[1][:, ::-1][:, :k], owner) / (len(x) - 1) * len(x)
    counts = np.bincount(owner, minlength=units.max() + 1).astype(float)
    count = int(units.max()) + 1
    folds = np.arange(count) % min(count, FOLDS)
    less = [_eigenvalues(x[folds[owner] != fold], k) for fold in range(folds.max() + 1)] if count > 1 else []
    return _Parts(mu, energies, counts, np.asarray(less).reshape(-1, k), units, len(arrays))


def _eigenvalues(x: np.ndarray, k: int) -> np.ndarray:
    if len(x) < 2:
        return np.full(k, np.nan)
    x = x - x.mean(0)
    mu = np.linalg.eigvalsh(x.T @ x / (len(x) - 1))[::-1][:k]
    return np.where(mu > len(mu) * np.finfo(float).eps * mu[0], mu, np.nan)


def _energies(x: np.ndarray, modes: np.ndarray, owner: np.ndarray) -> np.ndarray:
    square = (x @ modes) ** 2
    out = np.zeros((owner.max() + 1, square.shape[1]))
    np.add.at(out, owner, square)
    return out


def _pooled(part: _Parts, modes: Sequence[int], level: float) -> Pooled:
    positions = int(part.counts.sum())
    observed = {k: observe(part.spectrum, k, samples=positions) for k in modes}
    intervals = {
        k: {
            q.observed: _told(_bars(*_errors([part], q.value, q.gradient, k), part.counts.size, level, k), q.told)
            for q in QUANTITIES
        }
        for k in modes
    }
    return Pooled(part.clips, positions, part.spectrum, observed, intervals)


def _errors(
    parts: Sequence[_Parts], value: Callable[..., Any], gradient: Callable[..., Any], k: int
) -> tuple[float, float, float]:
    """Return value, bias and standard error of a quantity, or of its change from the first part to the second."""
    if any(part.spectrum.size < k for part in parts):
        return np.nan, np.nan, np.nan
    signs = (1.0,) if len(parts) == 1 else (-1.0, 1.0)
    total = lambda terms: np.asarray(sum(sign * term for sign, term in zip(signs, terms, strict=True)))
    here = total(value(part.spectrum[:k]) for part in parts)
    folds, n = len(parts[0].less), parts[0].counts.size
    if not folds:
        return float(here), np.nan, np.nan
    with np.errstate(invalid="ignore"):
        less = total(value(part.less[:, :k]) for part in parts)
    bias = (folds - 1) * (less.mean() - here)
    u = total(part.influence(gradient(part.spectrum[:k])) for part in parts)
    error = np.sqrt((u**2).sum() / (n * (n - 1)))
    spread = np.sqrt((folds - 1) / folds * ((less - less.mean()) ** 2).sum())
    return float(here), float(bias), float(max(error, spread))


def _bars(value: float, bias: float, error: float, n: int, level: float, k: int) -> Interval:
    from scipy.special import stdtrit

    if not np.isfinite([value, bias, error]).all():
        why = f"the covariance has fewer than {k} modes, or a fold of clips less has" if n > 1 else TOO_SMALL
        return Interval(np.nan, np.nan, level, "none", n, False, why)
    # half of a bias is what its estimate was seen to miss by; see the benchmark
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * np.hypot(error, bias / 2)
    notes = [TOO_SMALL] * (n < NOMINAL["jackknife"]) + [BIASED] * bool(abs(bias) > MOST_BIAS * error)
    return Interval(value - bias - half, value - bias + half, level, "jackknife", n, not notes, "; ".join(notes))


def _told(found: Interval, told: Callable[[Any], Any]) -> Interval:
    return dataclasses.replace(found, low=float(told(found.low)), high=float(told(found.high)))


@dataclasses.dataclass(frozen=True)
class _Both:
    """Hold what stays the same when conditions are exchanged, and the (U, K) offsets that change sides."""

    mu: np.ndarray
    offsets: tuple[np.ndarray, np.ndarray]
    counts: tuple[np.ndarray, np.ndarray]


def _exchangeable(clean: Sequence[Any], stressed: Sequence[Any], units: np.ndarray, k: int) -> _Both:
    sides = [[np.asarray(clip, dtype=np.float64) for clip in clips] for clips in (clean, stressed)]
    owners = [np.repeat(units, [len(clip) for clip in side]) for side in sides]
    rows = [np.concatenate(side) for side in sides]
    middle = np.concatenate(rows).mean(0)
    rows = [x - middle for x in rows]
    n = len(rows[0]) + len(rows[1])
    mu, modes = np.linalg.eigh(sum(x.T @ x for x in rows) / n)
    mu, modes = mu[::-1][:k], modes[:, ::-1][:, :k]
    counts = [np.bincount(owner, minlength=units.max() + 1).astype(float) for owner in owners]
    energies = [_energies(x, modes, owner) for x, owner in zip(rows, owners, strict=True)]
    return _Both(mu, (energies[0], energies[1]), (counts[0], counts[1]))


def _change(parts: Sequence[_Parts], both: _Both, q: ModeFunction, k: int, level: float, seed: int) -> Change:
    value, bias, error = _errors(parts, q.value, q.gradient, k)
    n = parts[0].counts.size
    bars = _told(_bars(value, bias, error, n, level, k), q.change_told)
    if not np.isfinite(value):
        return Change(np.nan, bars, np.nan, np.nan, "none", np.nan, n, np.nan, bars.note)
    mu = both.mu[:k]
    per_position = [e[:, :k] - c[:, None] * mu for e, c in zip(both.offsets, both.counts, strict=True)]
    scale = 2 * n / sum(c.sum() for c in both.counts)
    scores = (per_position[1] - per_position[0]) @ q.gradient(mu) * scale
    tested = change_of(scores, level=level, seed=seed, bars=bars)
    return dataclasses.replace(
        tested,
        value=float(q.change_told(value)),
        effect_name="Hedges' g of the scores of clips",
        smallest_detectable=float(q.change_told(tested.smallest_detectable)),
    )


def _divergence(parts: Sequence[_Parts], both: _Both, k: int, level: float, seed: int) -> Divergence:
    sizes = [part.spectrum.size for part in parts]
    if min(sizes) < k:
        nothing = Interval(np.nan, np.nan, level, "none", parts[0].counts.size, False, f"fewer than {k} modes")
        return Divergence(np.nan, np.nan, nothing, np.nan, np.nan, np.nan)
    clean, stressed = (part.spectrum[:k] for part in parts)
    here, folds = jensen_shannon(clean, stressed), len(parts[0].less)
    n, less = parts[0].counts.size, [part.less[:, :k] for part in parts]
    found = np.asarray(
        [jensen_shannon(a, b) if np.isfinite(a + b).all() else np.nan for a, b in zip(*less, strict=True)]
    )
    error = np.sqrt((folds - 1) / folds * ((found - found.mean()) ** 2).sum()) if folds else np.nan
    bias = (folds - 1) * (found.mean() - here) if folds else np.nan
    bars = _bars(here, float(bias), float(error), n, level, k)
    bars = dataclasses.replace(bars, low=max(bars.low, 0.0), high=min(bars.high, float(np.log(2))))
    a, b = (energy[:, :k] for energy in both.offsets)
    total, half = (a + b).sum(0), sign_flips(n, seed=seed) @ (a - b) / 2
    drawn = _jensen_shannon_rows(total / 2 + half, total / 2 - half)
    energies = float(_jensen_shannon_rows(a.sum(0), b.sum(0)))
    # exchanges that change nothing differ by rounding
    p = float(np.mean(np.append(drawn, energies) >= energies - 1e-14))
    return Divergence(kl(stressed, clean), here, bars, p, float(np.quantile(drawn, 0.95)), energies)


def _jensen_shannon_rows(p: np.ndarray, q: np.ndarray) -> Any:
    # sums of terms that are 0 but for rounding may be below 0
    p, q = (np.maximum(each, 1e-300) / each.sum(-1, keepdims=True) for each in (p, q))
    middle = np.log((p + q) / 2)
    return np.maximum((p * (np.log(p) - middle) + q * (np.log(q) - middle)).sum(-1) / 2, 0.0)
