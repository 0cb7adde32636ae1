"""Spectra of the newest positions of a stream, one for every position that comes: a window that slides."""

import dataclasses
from typing import Any

import numpy as np

from .types import refuse


@dataclasses.dataclass(frozen=True)
class Rolling:
    """Hold what a sliding window needs of the positions before: the newest rows of several places at once.

    Parameters
    ----------
    window : positions that a spectrum is taken over, at most; the first ones have fewer.
    rows : (P, m, D) of P places, m below the window, in the precision they came in; None at the start.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(1, 6, 3))
    >>> stream, first = Rolling(4).add(rows[:, :2])
    >>> _, rest = stream.add(rows[:, 2:])
    >>> first.positions.tolist(), rest.positions.tolist(), rest.eigenvalues.shape
    ([1, 2], [3, 4, 4, 4], (4, 1, 3))
    """

    window: int
    rows: Any = None

    def __post_init__(self) -> None:
        if self.window < 2:
            refuse(f"window={self.window}", "at least two positions, since one has no covariance", "window=16")

    def add(self, rows: Any) -> "tuple[Rolling, Windows]":
        """Return the stream with more rows, (P, k, D), and the spectrum of the window that ends with each of them.

        Raises
        ------
        InputError
            On rows that are not finite.
        """
        rows = np.asarray(rows)
        if not np.isfinite(rows).all():
            refuse("activations that are not finite", "finite numbers", "a checkpoint without NaN")
        every = rows if self.rows is None else np.concatenate([self.rows, rows], axis=1)
        found = _windows(every, rows.shape[1], self.window)
        return Rolling(self.window, every[:, max(every.shape[1] - self.window + 1, 0) :]), found


@dataclasses.dataclass(frozen=True)
class Windows:
    """Hold the spectra of k windows at P places.

    Parameters
    ----------
    eigenvalues : (k, P, M) of the covariance, largest first, 0 beyond those that `Moments.spectrum` keeps.
    positions : (k,) in each window.
    """

    eigenvalues: np.ndarray
    positions: np.ndarray


def _windows(rows: np.ndarray, count: int, window: int) -> Windows:
    """Return the spectra of the windows that end with the last `count` rows."""
    places, n, width = rows.shape
    ends = np.arange(n - count + 1, n + 1)
    positions = np.minimum(ends, window)
    eps = float(np.finfo(rows.dtype).eps)
    x = rows.astype(np.float64)
    sums = np.concatenate([np.zeros((places, 1, width)), x.cumsum(1)], axis=1)
    means = (sums[:, ends] - sums[:, ends - positions]) / positions[:, None]  # (P, k, D)
    s = (_by_products if rows.dtype.itemsize < 8 else _by_rows)(x, means, ends, positions)
    most = max(min(int(positions.max()) - 1, width), 1)
    s = np.moveaxis(s, 0, 1)[:, :, :most]  # (k, P, M)
    # the cut-offs of `Moments.spectrum`
    cut = np.maximum(positions, width)[:, None] * eps * s[:, :, :1].max(-1, initial=0.0)
    floor = eps * np.abs(means).max(-1).T * np.sqrt(positions)[:, None]
    kept = (s > np.maximum(cut, floor)[:, :, None]) & (np.arange(most) < positions[:, None, None] - 1)
    return Windows(np.where(kept, s**2 / np.maximum(positions - 1, 1)[:, None, None], 0.0), positions)


def _by_products(x: np.ndarray, means: np.ndarray, ends: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return singular values (P, k, m) of centred windows from inner products, which all windows share.

    Squares lose what is below 1e-8 of the largest value, in double precision; rows that came in single precision are
    cut off far above that.
    """
    x = x - x.mean(1, keepdims=True)
    products = x @ np.swapaxes(x, 1, 2)
    longest = int(positions.max())
    # rows before a window's first are taken out, so that windows of all lengths are of one size
    at = ends[:, None] - longest + np.arange(longest)
    inside = np.arange(longest) >= longest - positions[:, None]
    at = np.maximum(at, 0)
    gram = products[:, at[:, :, None], at[:, None, :]] * (inside[:, :, None] & inside[:, None, :])
    share = inside / positions[:, None]
    across = (gram * share[:, None, :]).sum(-1)  # mean over the window's rows
    whole = (across * share).sum(-1)
    gram = gram - across[..., :, None] - across[..., None, :] + whole[..., None, None]
    gram = gram * (inside[:, :, None] & inside[:, None, :])
    return np.sqrt(np.clip(np.linalg.eigvalsh(gram)[..., ::-1], 0.0, None))


def _by_rows(x: np.ndarray, means: np.ndarray, ends: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return singular values (P, k, m) of centred windows from their rows, exact to the last digit of doubles."""
    longest = int(positions.max())
    found = np.zeros((x.shape[0], len(ends), longest))
    for i, (end, size) in enumerate(zip(ends, positions, strict=True)):
        s = np.linalg.svd(x[:, end - size : end] - means[:, i, None], compute_uv=False)
        found[:, i, : s.shape[-1]] = s
    return found
