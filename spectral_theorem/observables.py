r"""Describe the spread of activations over directions: effective rank, slope and Kirchhoff index of eigenvalues.

:math:`\mu_1\ge\mu_2\ge\dots` are the eigenvalues of the covariance over positions. *Window* K means the first K of
them: the paper's "dominant modes" are taken as K = 10 and its "tails" as K = 50, and any other may be asked for.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from .moments import Moments
from .types import refuse

WINDOWS = (10, 50)
LEAST_MODES = 6  # a line through fewer points fits whatever the law
LEAST_R2 = 0.9


@dataclasses.dataclass(frozen=True)
class Slope:
    r"""Hold the fit of :math:`\log\mu_i = c-\alpha\log i`.

    Parameters
    ----------
    alpha : steeper is larger. error : half-width of its 95 % interval.
    r2 : of the fit. status : "OK" or "FAILED". reason : why it failed, else "". modes : eigenvalues in the fit.

    Examples
    --------
    >>> spectral_slope(2.0 ** -np.arange(20)).status
    'FAILED'
    """

    alpha: float
    error: float
    r2: float
    status: Literal["OK", "FAILED"]
    reason: str
    modes: int


@dataclasses.dataclass(frozen=True)
class Observables:
    """Hold all observables of one window of one spectrum.

    Parameters
    ----------
    modes : the window asked for. kept : eigenvalues in it above the cut-off.
    effective_rank, participation_ratio, kirchhoff_scale_free : dimensionless. kirchhoff : 1 over the unit of an
        eigenvalue. alpha, alpha_error, r2, alpha_status, alpha_reason : as in `Slope`.

    Examples
    --------
    >>> round(observe(np.ones(20), 10).effective_rank, 12)
    10.0
    """

    modes: int
    kept: int
    effective_rank: float
    participation_ratio: float
    alpha: float
    alpha_error: float
    r2: float
    alpha_status: str
    alpha_reason: str
    kirchhoff: float
    kirchhoff_scale_free: float


def spectrum(activations: Any) -> np.ndarray:
    r"""Return the eigenvalues of the covariance of the rows, largest first, those above the cut-off.

    :math:`\mu_i = s_i^2/(n-1)`, s the singular values of the rows less their mean; kept where :math:`s_i > \max(n,D)\,
    \epsilon\,s_1`.

    Parameters
    ----------
    activations : (n, D) finite; positions by channels. Computed in float64, with :math:`\epsilon` of the precision they
        come in: the rounding of float32 activations is no mode.

    Returns
    -------
    (kept,) array
        At most min(n - 1, D) eigenvalues.

    Raises
    ------
    InputError
        On fewer than two rows, or values that are not finite.

    Notes
    -----
    Singular values, because an eigenvalue solver loses all below eps times the largest *square*.

    References
    ----------
    docs/theory/observables.md

    Examples
    --------
    >>> spectrum([[1.0, 0.0], [-1.0, 0.0]]).round(12).tolist()
    [2.0]
    """
    return Moments.of(activations).spectrum()


def effective_rank(eigenvalues: Any, modes: int | None = None) -> Any:
    r"""Return :math:`N_\mathrm{eff} = \exp(-\sum_i p_i\log p_i)`, :math:`p_i = \mu_i/\sum\mu`.

    Parameters
    ----------
    eigenvalues : (..., n) in any order. modes : use the largest K only.

    Returns
    -------
    float, or array of the leading shape
        Between 1 and the number of eigenvalues; NaN where all are 0.

    Raises
    ------
    InputError
        On no eigenvalues, or values that are negative beyond rounding or not finite.

    Examples
    --------
    >>> round(effective_rank([1.0, 1.0, 1.0, 0.0]), 12), effective_rank([5.0, 0.0])
    (3.0, 1.0)
    """
    p = _shares(_window(eigenvalues, modes))
    return _plain(np.exp(-(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)))


def participation_ratio(eigenvalues: Any, modes: int | None = None) -> Any:
    r"""Return :math:`(\sum\mu)^2/\sum\mu^2`, which large eigenvalues rule more than they do the effective rank.

    Parameters
    ----------
    eigenvalues, modes : as in `effective_rank`.

    Examples
    --------
    >>> participation_ratio([1.0, 1.0, 0.0]), participation_ratio([3.0, 1.0])
    (2.0, 1.6)
    """
    return _plain(1 / (_shares(_window(eigenvalues, modes)) ** 2).sum(-1))


def kirchhoff_index(eigenvalues: Any, modes: int | None = None) -> Any:
    r"""Return :math:`Kf = n\sum_i 1/\mu_i` over the n kept eigenvalues.

    Parameters
    ----------
    eigenvalues, modes : as in `effective_rank`; kept are those with :math:`\sqrt{\mu_i} > n\,\epsilon\sqrt{\mu_1}`.

    Returns
    -------
    float, or array
        NaN where none is kept. Twice the activations make a quarter of it: see `kirchhoff_scale_free`.

    Notes
    -----
    The smallest kept eigenvalue rules it. Those of a numerical covariance matrix that should be 0 are of the size
    of rounding, far above this cut-off: take them from `spectrum`.

    Examples
    --------
    >>> kirchhoff_index([1.0, 0.5, 0.0])
    6.0
    """
    mu = _window(eigenvalues, modes)
    return _plain(np.where((mu > 0).any(-1), (mu > 0).sum(-1) * _inverse(mu), np.nan))


def kirchhoff_scale_free(eigenvalues: Any, modes: int | None = None) -> Any:
    r"""Return :math:`\sum\mu\cdot\sum 1/\mu` over the kept eigenvalues: at least n², and the same in every unit.

    Parameters
    ----------
    eigenvalues, modes : as in `kirchhoff_index`.

    Examples
    --------
    >>> kirchhoff_scale_free([2.0, 2.0]), kirchhoff_scale_free([2.0, 1.0]) == kirchhoff_scale_free([4.0, 2.0])
    (4.0, True)
    """
    mu = _window(eigenvalues, modes)
    return _plain(np.where((mu > 0).any(-1), mu.sum(-1) * _inverse(mu), np.nan))


def spectral_slope(eigenvalues: Any, modes: int | None = None, *, samples: int | None = None) -> Slope:
    r"""Fit the power law :math:`\mu_i\propto i^{-\alpha}` by least squares of logarithms, and say whether it fits.

    Parameters
    ----------
    eigenvalues : (n,) in any order; those that are 0 (cut-off of `kirchhoff_index`) are left out.
    modes : use the largest K only.
    samples : positions that the covariance was taken over, if known: adds what drawing them costs to the error.

    Returns
    -------
    Slope
        FAILED where fewer than six eigenvalues are left, R² is below 0.9, or an exponential fits better.

    Raises
    ------
    InputError
        On no eigenvalues, or values that are negative beyond rounding or not finite.

    Notes
    -----
    The points are ordered, so their residuals go together: the error of least squares is widened by what the
    residuals' correlation with their neighbours says. `pooled` has the interval that draws clips again.

    References
    ----------
    docs/theory/observables.md

    Examples
    --------
    >>> found = spectral_slope(3.0 * np.arange(1.0, 31.0) ** -1.5)
    >>> found.status, bool(abs(found.alpha - 1.5) <= found.error < 1e-9)
    ('OK', True)
    >>> spectral_slope([4.0, 2.0, 1.0]).reason
    '3 eigenvalues, fewer than 6'
    """
    found = spectral_slopes(np.asarray(eigenvalues, dtype=np.float64).reshape(-1), modes, samples=samples)
    n, r2, failed = int(found.modes), float(found.r2), REASONS[int(found.failed)]
    reason = failed.format(n=n, r2=r2, modes=LEAST_MODES, least=LEAST_R2)
    return Slope(float(found.alpha), float(found.error), r2, "FAILED" if reason else "OK", reason, n)


@dataclasses.dataclass(frozen=True)
class Slopes:
    """Hold fits of many spectra, arrays of one shape.

    Parameters
    ----------
    alpha, error, r2, modes : as in `Slope`. failed : place in `REASONS`; 0 means that the fit is OK.
    """

    alpha: Any
    error: Any
    r2: Any
    failed: Any
    modes: Any


# what a fit may fail by, the first that applies
REASONS = (
    "",
    "{n} eigenvalues, fewer than {modes}",
    "all eigenvalues are equal: there is no slope",
    "an exponential fits better",
    "R² = {r2:.2f}, below {least}",
)


def spectral_slopes(eigenvalues: Any, modes: int | None = None, *, samples: Any = None) -> Slopes:
    """Fit many spectra at once, as `spectral_slope` fits one.

    Parameters
    ----------
    eigenvalues : (..., n) in any order. modes : as there. samples : number, or one for each spectrum.

    Raises
    ------
    InputError
        As `spectral_slope`.

    Examples
    --------
    >>> found = spectral_slopes(np.arange(1.0, 31.0) ** -np.asarray([[1.0], [2.0]]))
    >>> found.alpha.round(9).tolist(), found.failed.tolist()
    ([1.0, 2.0], [0, 0])
    """
    mu = _window(eigenvalues, modes)
    used = mu > 0
    n = used.sum(-1)
    place = np.arange(1.0, mu.shape[-1] + 1)
    y = np.log(np.where(used, mu, 1.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        slope, r2, rest, spread = _lines(np.log(place), y, used, n)
        exponential = _lines(place, y, used, n)[2]
        square = (rest**2).sum(-1)
        neighbours = (rest[..., 1:] * rest[..., :-1]).sum(-1) / np.maximum(square, 1e-300)
        # a correlation from few points comes out too small by about this much
        r = np.clip(neighbours + (1 + 3 * neighbours) / n, 0.0, 0.9)
        drawn = 0.0 if samples is None else 2 / np.asarray(samples, np.float64)
        variance = square / (n - 2) * (1 + r) / (1 - r) + drawn
        rounding = 64 * np.finfo(float).eps * np.maximum(1.0, np.abs(y).max(-1))
        error = _t_limit(n - 2) * np.sqrt(variance / spread) + rounding
        # two fits that are both exact to rounding are not told apart by which of them rounds better
        better = ((exponential**2).sum(-1) <= square) & (np.abs(rest).max(-1) > rounding)
        last = np.take_along_axis(y, np.maximum(n - 1, 0)[..., None], axis=-1)[..., 0]
        tests = [n < LEAST_MODES, y[..., 0] - last <= rounding, better, ~(r2 >= LEAST_R2)]
    failed = np.select(tests, range(1, 5), 0)
    known = lambda x: np.where(n < 3, np.nan, x)
    return Slopes(known(-slope), known(error), known(r2), failed, n)


def observe(eigenvalues: Any, modes: int = 10, *, samples: int | None = None) -> Observables:
    """Compute all observables of a window.

    Parameters
    ----------
    eigenvalues : (n,), best from `spectrum`. modes : the window K. samples : as in `spectral_slope`.

    Raises
    ------
    InputError
        On a window below 1, no eigenvalues, or values that are negative beyond rounding or not finite.

    Examples
    --------
    >>> found = observe(np.arange(1.0, 61.0) ** -2.0, 50)
    >>> found.kept, round(found.alpha, 9), found.alpha_status
    (50, 2.0, 'OK')
    """
    mu = _window(eigenvalues, modes)
    slope = spectral_slope(mu, samples=samples)
    return Observables(
        modes=modes,
        kept=int((mu > 0).sum()),
        effective_rank=effective_rank(mu),
        participation_ratio=participation_ratio(mu),
        alpha=slope.alpha,
        alpha_error=slope.error,
        r2=slope.r2,
        alpha_status=slope.status,
        alpha_reason=slope.reason,
        kirchhoff=kirchhoff_index(mu),
        kirchhoff_scale_free=kirchhoff_scale_free(mu),
    )


def per_clip(activations: Any, modes: int = 10) -> Observables | None:
    """Compute the observables of one clip, where its positions allow the window.

    Parameters
    ----------
    activations : (T, D). modes : the window K.

    Returns
    -------
    Observables or None
        None where T - 1 < K: a covariance of T rows has rank T - 1 at most.

    Examples
    --------
    >>> per_clip(np.eye(5), 10) is None, per_clip(np.random.default_rng(0).normal(size=(12, 20)), 10).kept
    (True, 10)
    """
    x = np.asarray(activations, dtype=np.float64)
    if x.ndim == 2 and x.shape[0] - 1 < modes:
        return None
    return observe(spectrum(x), modes, samples=len(x))


def _window(eigenvalues: Any, modes: int | None) -> np.ndarray:
    """Sort, cut off, and keep the largest K; what is cut off is 0."""
    mu = np.asarray(eigenvalues, dtype=np.float64)
    if mu.ndim == 0 or mu.shape[-1] == 0:
        refuse(f"eigenvalues of shape {mu.shape}", "at least one", "spectrum(activations)")
    if not np.isfinite(mu).all():
        refuse("eigenvalues that are not finite", "finite numbers", "spectrum(activations)")
    if modes is not None and modes < 1:
        refuse(f"modes={modes}", "modes >= 1", "modes=10")
    mu = -np.sort(-mu, axis=-1)
    n, eps = mu.shape[-1], np.finfo(np.float64).eps
    top = mu[..., :1]
    if (mu < -1e-8 * np.maximum(top, 0)).any():
        refuse(f"an eigenvalue of {mu.min():.3g}", "none below 0", "spectrum(activations)")
    mu = np.where(mu > (n * eps) ** 2 * top, mu, 0.0)
    return mu[..., :modes]


def _shares(mu: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return mu / mu.sum(-1, keepdims=True)


def _inverse(mu: np.ndarray) -> Any:
    return np.where(mu > 0, 1 / np.where(mu > 0, mu, 1.0), 0.0).sum(-1)


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def _lines(x: np.ndarray, y: np.ndarray, used: np.ndarray, n: Any) -> tuple[Any, ...]:
    """Return slopes, R², residuals and spreads of x of the least-squares lines through the points in use."""
    mean = lambda values: (values * used).sum(-1, keepdims=True) / n[..., None]
    off, height = (x - mean(x)) * used, (y - mean(y)) * used
    spread = (off**2).sum(-1)
    slope = (off * height).sum(-1) / spread
    rest = height - slope[..., None] * off
    total = (height**2).sum(-1)
    return slope, np.where(total > 0, 1 - (rest**2).sum(-1) / total, np.nan), rest, spread


def _t_limit(freedom: Any) -> Any:
    from scipy.special import stdtrit

    return stdtrit(freedom, 0.975)
