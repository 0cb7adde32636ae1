r"""Random matrices whose products have Lyapunov exponents in closed form.

Where the law of W does not change under W → WO for orthogonal O, the factors R of a QR sweep are independent and have
the law of the R of one W, so that :math:`\lambda_i = E\log|r_{ii}|` exactly, at every depth. Triangular and commuting
matrices, and a few in the plane, have exponents for other reasons. Proofs and sources: docs/theory/deep.md.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import psi  # digamma

from .types import refuse

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Solvable:
    """Hold an ensemble and its exponents.

    Parameters
    ----------
    draw : (generator, n) -> (n, D, D), independent matrices.
    exponents : D numbers, descending, nats per layer.
    why : formula or source, in a few words.
    """

    draw: Draw
    exponents: tuple[float, ...]
    why: str

    @property
    def width(self) -> int:
        """D."""
        return len(self.exponents)


def newman(width: int) -> np.ndarray:
    r"""Return the exponents of products of standard Gaussian matrices.

    .. math:: \lambda_i = \tfrac12\left(\log 2 + \psi\left(\tfrac{D-i+1}{2}\right)\right)

    References
    ----------
    C. M. Newman, The distribution of Lyapunov exponents: exact results for random matrices, 1986.

    Examples
    --------
    >>> [round(float(x), 4) for x in newman(2)]
    [0.058, -0.6352]
    """
    return 0.5 * (math.log(2) + psi(0.5 * np.arange(width, 0, -1)))


def _sorted(values: Any) -> tuple[float, ...]:
    return tuple(float(x) for x in sorted(np.ravel(values), reverse=True))


def _gaussian(rng: np.random.Generator, n: int, rows: int, columns: int | None = None) -> np.ndarray:
    return rng.standard_normal((n, rows, rows if columns is None else columns))


def haar(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Draw Haar-distributed orthogonal matrices, (n, D, D)."""
    q, r = np.linalg.qr(_gaussian(rng, n, width))
    return q * np.where(np.einsum("nii->ni", r) < 0, -1.0, 1.0)[:, None, :]


def _ginibre(width: int, scale: float = 1.0) -> Solvable:
    return Solvable(lambda rng, n: scale * _gaussian(rng, n, width), _sorted(newman(width) + math.log(scale)),
                    "Newman 1986")  # fmt: skip


def _inverse(width: int) -> Solvable:
    return Solvable(lambda rng, n: np.linalg.inv(_gaussian(rng, n, width)), _sorted(-newman(width)),
                    "Newman 1986, inverted")  # fmt: skip


def _spherical(width: int) -> Solvable:
    i = np.arange(1, width + 1)
    return Solvable(
        lambda rng, n: np.linalg.solve(_gaussian(rng, n, width), _gaussian(rng, n, width)),
        _sorted(0.5 * (psi(0.5 * (width - i + 1)) - psi(0.5 * i))),
        "inverse Gaussian times Gaussian: exponents add",
    )


def _product_of_two(width: int) -> Solvable:
    return Solvable(lambda rng, n: _gaussian(rng, n, width) @ _gaussian(rng, n, width), _sorted(2 * newman(width)),
                    "two Gaussian factors: exponents add")  # fmt: skip


def _induced(width: int, rows: int) -> Solvable:
    """Take the positive root of a rectangular Gram matrix behind a Haar frame."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        r = np.linalg.qr(_gaussian(rng, n, rows, width), mode="r")
        return haar(rng, n, width) @ r

    return Solvable(draw, _sorted(0.5 * (math.log(2) + psi(0.5 * (rows - np.arange(width))))), "induced: chi_{m-i+1}")


def _truncated(width: int, more: int) -> Solvable:
    i = np.arange(1, width + 1)
    found = 0.5 * (psi(0.5 * (width - i + 1)) - psi(0.5 * (width + more - i + 1)))
    return Solvable(lambda rng, n: haar(rng, n, width + more)[:, :width, :width], _sorted(found),
                    "corner of a Haar frame: Forrester 2015")  # fmt: skip


def _complex(width: int) -> Solvable:
    """Write complex Gaussian matrices with E|z|^2 = 1 as real ones of twice the size."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        a, b = rng.standard_normal((2, n, width, width)) / math.sqrt(2)
        return np.block([[a, -b], [b, a]])

    return Solvable(draw, _sorted(np.repeat(0.5 * psi(np.arange(width, 0, -1.0)), 2)), "complex Gaussian: psi(D-i+1)/2")


def _quaternion(width: int) -> Solvable:
    """Write quaternion Gaussian matrices with E|q|^2 = 4 as real ones of four times the size."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        a, b, c, d = rng.standard_normal((4, n, width, width))
        return np.block([[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]])

    found = 0.5 * (math.log(2) + psi(2.0 * np.arange(width, 0, -1)))
    return Solvable(draw, _sorted(np.repeat(found, 4)), "quaternion Gaussian: chi_{4(D-i+1)}")


def _rotated(values: tuple[float, ...], first: float) -> Solvable:
    """Put Haar frames on both sides of fixed singular values; `first` is E log |diag(values) x|, x uniform."""
    d = np.asarray(values)
    rest = float(np.log(d).sum()) - first
    exponents: tuple[float, ...] = (first, rest)
    if len(d) == 3:  # the last is minus the first of the inverse
        last = -_spheroid(1 / d[0], 1 / d[2])
        exponents = (first, rest - last, last)
    return Solvable(lambda rng, n: haar(rng, n, len(d)) * d @ haar(rng, n, len(d)), _sorted(exponents),
                    "fixed singular values between Haar frames")  # fmt: skip


def _spheroid(a: float, b: float) -> float:
    """Return E log |diag(a, a, b) x| for x uniform on the sphere."""
    if b > a:
        return math.log(b) - 1 + a / math.sqrt(b * b - a * a) * math.atan(math.sqrt(b * b - a * a) / a)
    return math.log(b) - 1 + a / math.sqrt(a * a - b * b) * math.atanh(math.sqrt(a * a - b * b) / a)


def _skewed(a: float, b: float) -> Solvable:
    """Scale the rows of a Gaussian matrix in the plane."""
    first = 0.5 * (math.log(2) + float(psi(1.0))) + math.log(0.5 * (a + b))
    total = math.log(a * b) + float(newman(2).sum())
    return Solvable(lambda rng, n: np.array([a, b])[:, None] * _gaussian(rng, n, 2), (first, total - first),
                    "rows scaled by a and b: log (a+b)/2 more than Newman's mean of log chi_2")  # fmt: skip


def _diagonal(draws: list[Callable[[np.random.Generator, int], np.ndarray]], means: list[float], why: str) -> Solvable:
    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.stack([one(rng, n) for one in draws], axis=1)[:, :, None] * np.eye(len(draws))

    return Solvable(draw, _sorted(means), why)


def _triangular(means: tuple[float, ...], spread: float, upper: bool) -> Solvable:
    """Draw log-normal diagonals and Gaussian entries on one side of them."""
    width, mask = len(means), np.triu if upper else np.tril

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        diagonal = np.exp(np.asarray(means) + spread * rng.standard_normal((n, width)))
        return mask(_gaussian(rng, n, width), 1 if upper else -1) + diagonal[:, :, None] * np.eye(width)

    return Solvable(draw, _sorted(means), f"{'upper' if upper else 'lower'} triangular: E log of the diagonal")


def _circulant(width: int) -> Solvable:
    """Draw the first column of a circulant matrix from N(0, 1): all commute."""
    index = np.subtract.outer(np.arange(width), np.arange(width)) % width
    real = 0.5 * (math.log(2 * width) + float(psi(0.5)))
    double = 0.5 * (math.log(width) + float(psi(1.0)))
    singles = 1 if width % 2 else 2
    exponents = _sorted([real] * singles + [double] * (width - singles))
    draw = lambda rng, n: rng.standard_normal((n, width))[:, index]
    return Solvable(draw, exponents, "circulant: E log of the Fourier sums")


def _monomial(means: tuple[float, ...]) -> Solvable:
    """Permute coordinates at random, then scale each by its own log-normal: every path sees all scales alike."""
    width = len(means)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        scale = np.exp(np.asarray(means) + 0.3 * rng.standard_normal((n, width)))
        frames = np.eye(width)[np.argsort(rng.random((n, width)), axis=1)]
        return scale[:, :, None] * frames

    return Solvable(draw, (float(np.mean(means)),) * width, "scaled permutations: the mean of all E log")


def _fixed(matrix: Any, exponents: tuple[float, ...], why: str) -> Solvable:
    return Solvable(lambda rng, n: np.broadcast_to(np.asarray(matrix, float), (n, *np.shape(matrix))), exponents, why)


def _lloyd(energy: float, width: float) -> Solvable:
    """Draw transfer matrices of a chain with Cauchy-distributed potentials."""
    up, down = math.hypot(2 + energy, width), math.hypot(2 - energy, width)
    exponent = math.acosh(0.25 * (up + down))

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        w = np.tile([[0.0, -1.0], [1.0, 0.0]], (n, 1, 1))
        w[:, 0, 0] = energy - width * rng.standard_cauchy(n)
        return w

    return Solvable(draw, (exponent, -exponent), "Lloyd's model: Thouless 1972")


def _fibonacci() -> Solvable:
    """Draw f_{n+1} = f_n ± f_{n-1} with fair signs."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        w = np.tile([[1.0, 0.0], [1.0, 0.0]], (n, 1, 1))
        w[:, 0, 1] = rng.choice([-1.0, 1.0], n)
        return w

    return Solvable(draw, (math.log(1.13198824879), -math.log(1.13198824879)), "random Fibonacci: Viswanath 2000")


def _plane_diagonal() -> Solvable:
    euler = -float(psi(1.0))
    draws = [lambda rng, n: rng.uniform(0, 4, n), lambda rng, n: rng.standard_exponential(n),
             lambda rng, n: rng.standard_gamma(5.0, n), lambda rng, n: rng.standard_gamma(0.5, n)]  # fmt: skip
    means = [math.log(4) - 1, -euler, float(psi(5.0)), float(psi(0.5))]
    return _diagonal(draws, means, "diagonal: E log of uniform, exponential and two gamma numbers")


_GOLDEN = math.log(0.5 * (1 + math.sqrt(5)))

ENSEMBLES: Mapping[str, Solvable] = {
    **{f"gaussian {d}": _ginibre(d) for d in (2, 3, 4, 6, 8)},
    "gaussian 4, scaled by 1/2": _ginibre(4, 0.5),
    "inverse gaussian 3": _inverse(3),
    "spherical 4": _spherical(4),
    "two gaussian factors 3": _product_of_two(3),
    "induced 3, 7 rows": _induced(3, 7),
    "truncated 2 of 3": _truncated(2, 1),
    "truncated 4 of 8": _truncated(4, 4),
    "complex gaussian 3": _complex(3),
    "quaternion gaussian 2": _quaternion(2),
    "haar 4": Solvable(lambda rng, n: haar(rng, n, 4), (0.0,) * 4, "orthogonal: no growth at all"),
    "rotated (3, 1/3)": _rotated((3.0, 1 / 3), math.log(0.5 * (3 + 1 / 3))),
    "rotated (2, 1)": _rotated((2.0, 1.0), math.log(1.5)),
    "rotated (1, 1, 3)": _rotated((1.0, 1.0, 3.0), _spheroid(1.0, 3.0)),
    "gaussian 2, rows (4, 1)": _skewed(4.0, 1.0),
    "diagonal 4": _plane_diagonal(),
    "upper triangular 4": _triangular((0.3, 0.1, -0.2, -0.5), 0.4, upper=True),
    "lower triangular 3": _triangular((0.2, -0.1, -0.6), 0.5, upper=False),
    "circulant 5": _circulant(5),
    "monomial 4": _monomial((0.5, 0.2, -0.1, -0.8)),
    "fibonacci": _fixed([[1.0, 1.0], [1.0, 0.0]], (_GOLDEN, -_GOLDEN), "golden ratio"),
    "random fibonacci": _fibonacci(),
    "lloyd, E=0.5, width 1": _lloyd(0.5, 1.0),
    "lloyd, E=0, width 0.3": _lloyd(0.0, 0.3),
}


def solvable(name: str) -> Solvable:
    """Return an ensemble by name.

    Raises
    ------
    InputError
        On a name that is not in `ENSEMBLES`.

    Examples
    --------
    >>> solvable("haar 4").exponents
    (0.0, 0.0, 0.0, 0.0)
    """
    if name not in ENSEMBLES:
        refuse(f"ensemble {name!r}", f"one of {', '.join(ENSEMBLES)}", "'gaussian 4'")
    return ENSEMBLES[name]
