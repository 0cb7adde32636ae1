"""Keep what the covariance of a stream of positions needs, in memory that does not grow with the stream."""

import dataclasses
from typing import Any

import numpy as np

from .types import refuse


@dataclasses.dataclass(frozen=True)
class Moments:
    """Hold all that the covariance of a stream of rows needs, in memory that does not grow with the stream.

    Parameters
    ----------
    count : rows so far. mean : (D,) of them. factor : (m, D) with factorᵀ factor the sum of squares about the mean,
        m at most 2 D after `add`. eps : of the precision that the rows came in, which what is 0 is known to.

    Notes
    -----
    A triangular factor rather than the matrix of products keeps small singular values as exact as the rows are.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(50, 3))
    >>> stream = Moments.of(rows[:20]).add(rows[20:])
    >>> bool(np.allclose(stream.spectrum(), Moments.of(rows).spectrum(), rtol=1e-12)), stream.count
    (True, 50)
    """

    count: int
    mean: np.ndarray
    factor: np.ndarray
    eps: float = float(np.finfo(np.float64).eps)

    @classmethod
    def of(cls, rows: Any) -> "Moments":
        """Start with rows, (n, D)."""
        given = np.asarray(rows)
        coarse = np.issubdtype(given.dtype, np.floating) and given.dtype.itemsize < 8
        eps = float(np.finfo(given.dtype if coarse else np.float64).eps)
        x = given.astype(np.float64)
        if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] < 1:
            refuse(
                f"activations of shape {x.shape}", "(positions, channels), at least one of each", "activations[layer]"
            )
        if not np.isfinite(x).all():
            refuse("activations that are not finite", "finite numbers", "leaving this clip out")
        mean = x.mean(0)
        return cls(len(x), mean, x - mean, eps)

    def add(self, rows: Any) -> "Moments":
        """Return these moments with more rows, (n, D)."""
        return self.merge(Moments.of(rows))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both streams together."""
        if self.mean.shape != other.mean.shape:
            refuse(f"rows of {other.mean.size} channels", f"{self.mean.size}, as before", "one component at a time")
        count = self.count + other.count
        apart = (other.mean - self.mean) * np.sqrt(self.count * other.count / count)
        factor = np.concatenate([self.factor, other.factor, apart[None]])
        if len(factor) > 2 * self.mean.size:
            factor = np.asarray(np.linalg.qr(factor, mode="r"))
        mean = self.mean + (other.mean - self.mean) * (other.count / count)
        return Moments(count, mean, factor, max(self.eps, other.eps))

    def spectrum(self) -> np.ndarray:
        """Return the eigenvalues of the covariance above the cut-off, as `spectrum` does."""
        if self.count < 2:
            refuse(f"{self.count} position", "at least two, since one has no covariance", "more positions or clips")
        s = np.linalg.svd(self.factor, compute_uv=False)
        s = s[: min(self.count - 1, self.mean.size)]
        cut = max(self.count, self.mean.size) * self.eps * s[0]
        # what is left of rows that are all equal is the rounding of their mean
        floor = self.eps * np.abs(self.mean).max() * np.sqrt(self.count)
        return s[s > max(cut, floor)] ** 2 / (self.count - 1)
