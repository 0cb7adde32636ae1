r"""Linear algebra with Arb balls: numbers that carry a proven radius, at any precision.

A ball is an interval [midpoint +- radius] and every operation returns one that contains the exact result, so a
comparison that comes out True is a proof. Midpoints may come from anywhere: the decomposition below is found by
floating point and its quality is then *measured* in balls (docs/theory/rigour.md#proofs-by-ball-arithmetic).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .types import refuse

_SWEEPS = 60  # of 40 bits or more each, away from values that are still clustered
_CLUSTER = 32.0  # values this many off-diagonal entries apart or less are turned together


@functools.cache
def flint() -> Any:
    """Return the module of Arb balls, or refuse in one line where the extra is not installed."""
    try:
        import flint as found
    except ImportError:
        refuse("no package python-flint", "the extra `certify`", "pip install 'spectral-theorem[certify]'")
    return found


@contextlib.contextmanager
def precision(bits: int) -> Iterator[None]:
    """Work with midpoints of so many bits inside the block; the setting is global to the process."""
    context = flint().ctx
    before = context.prec
    context.prec = int(bits)
    try:
        yield
    finally:
        context.prec = before


def exact(array: Any) -> Any:
    """Return an (n, m) array of floats as a matrix of balls of radius 0.

    Examples
    --------
    >>> exact(np.asarray([[0.1]]))[0, 0].is_exact()
    True
    """
    array = np.asarray(array, dtype=np.float64)  # float32 is exact in it
    return flint().arb_mat(*array.shape, array.ravel().tolist())


def number(x: Any) -> Any:
    """Return a float as a ball of radius 0."""
    return flint().arb(float(x))


def total(balls: Any) -> Any:
    """Add balls up; nothing adds up to 0."""
    return sum(balls, flint().arb(0))


def root(x: Any) -> Any:
    """Return the root of a ball whose exact value is known to be at least 0, whatever its lower end."""
    if x > 0 or x.is_zero() or x.is_nan():
        return x.sqrt()
    return flint().arb(0).union(x.upper().sqrt())


def hypot(*balls: Any) -> Any:
    """Return the root of the sum of squares."""
    return root(total(x * x for x in balls))


def frobenius(matrix: Any) -> Any:
    """Return the Frobenius norm of a matrix of balls."""
    return hypot(*matrix.entries())


def product(balls: Any) -> Any:
    """Multiply balls; nothing multiplies to 1."""
    result = flint().arb(1)
    for x in balls:
        result = result * x
    return result


def columns(matrix: Any, count: int | None = None) -> list[Any]:
    """Return the leading columns of a matrix as (n, 1) matrices."""
    table = matrix.transpose().tolist()
    return [flint().arb_mat(len(row), 1, row) for row in table[:count]]


def beside(parts: Sequence[Any]) -> Any:
    """Put (n, 1) matrices side by side."""
    return flint().arb_mat(len(parts), parts[0].nrows(), [x for part in parts for x in part.entries()]).transpose()


def inner(a: Any, b: Any) -> Any:
    """Return the inner product of two (n, 1) matrices."""
    return (a.transpose() * b)[0, 0]


def identity(size: int) -> Any:
    """Return the identity matrix."""
    return flint().arb_mat(size, size, np.eye(size).ravel().tolist())


@dataclasses.dataclass(frozen=True)
class Enclosure:
    """Hold the singular values of one matrix, all of them proven, and vectors that come close.

    Attributes
    ----------
    sigma : (D,) balls, descending up to their radii.
    left, right : (D, D) matrices of exact midpoints, nearly orthogonal.
    defect : ball, what the three fail to reproduce: every value and vector is known to within it.
    """

    matrix: Any
    sigma: list[Any]
    left: Any
    right: Any
    defect: Any

    def triplet(self, index: int) -> tuple[Any, Any] | None:
        r"""Enclose the unit vectors of one triplet, (D, 1) each; None where no gap separates its value.

        Notes
        -----
        With unit vectors of residuals r, t and a gap g to all other values, Wedin's argument gives
        :math:`\sin\angle \le (\|r\|+\|t\|)/g`; a unit vector at an angle below 90 degrees on the right side is within
        :math:`\sqrt2\sin\angle` of its estimate. Signs agree: a triplet with one sign turned would have a residual of
        :math:`2\sigma`.
        """
        arb, size = flint().arb, len(self.sigma)
        u, v = (columns(x)[index] for x in (self.left, self.right))
        u, v = (x * (1 / frobenius(x)) for x in (u, v))
        if size == 1:
            return u, v
        value = self.sigma[index]
        center = value.mid()
        misfit = frobenius(self.matrix * v - u * center) + frobenius(self.matrix.transpose() * u - v * center)
        others = [abs(center - x) for i, x in enumerate(self.sigma) if i != index]
        gap = functools.reduce(lambda a, b: a.min(b), others)
        if not (gap > 0 and misfit < gap / 2 and misfit < center / 2):
            return None  # vectors of values that may be tied are a choice, and nothing is proved of it
        reach = (arb(2).sqrt() * misfit / gap).upper()
        blur = lambda x: flint().arb_mat(size, 1, [arb(e.mid(), (reach + e.rad()).upper()) for e in x.entries()])
        return blur(u), blur(v)


def enclose(matrix: Any) -> Enclosure:
    r"""Prove all singular values of a square matrix of exact entries, at the precision in force.

    .. math:: |\sigma_i(W)-\hat\sigma_i| \le \|W-\hat U\hat\Sigma\hat V^\top\|_F +
       \hat\sigma_i\max(\|\hat U^\top\hat U-I\|_F, \|\hat V^\top\hat V-I\|_F)

    Parameters
    ----------
    matrix : (D, D) matrix of balls; radii, if any, are part of the residual.

    Returns
    -------
    Enclosure

    Notes
    -----
    The factors are LAPACK's, refined by Newton's step for singular vectors: the products
    :math:`\hat U^\top W\hat V` are exact to the precision in force, the corrections need only be good to a few
    digits and are computed in float64. Values too close for the step are turned together, by an eigenproblem of
    their block. About ten products of (D, D) matrices for every 16 digits.

    References
    ----------
    docs/theory/rigour.md (Lemma 5); T. Ogita and K. Aishima, Iterative refinement for symmetric eigenvalue
    decomposition, 2018 and 2019, for the step and for clusters.

    Examples
    --------
    >>> with precision(128):
    ...     found = enclose(exact(np.asarray([[3.0, 0.0], [4.0, 5.0]])))
    ...     bool((found.sigma[0] ** 2 - 45).contains(0)), bool(found.defect < 1e-30)
    (True, True)
    """
    size = matrix.nrows()
    middle = matrix.mid()
    left, right = _refined(middle)
    diagonal = [abs(x) for x in _diagonal(left.transpose() * middle * right)]
    order = sorted(range(size), key=lambda i: _Ordered(-diagonal[i]))
    diagonal = [diagonal[i].mid() for i in order]
    parts = [columns(x) for x in (left, right)]
    left, right = (beside([part[i] for i in order]) for part in parts)
    signs = _diagonal(left.transpose() * middle * right)
    right = beside([c if s >= 0 else -c for c, s in zip(columns(right), signs, strict=True)])
    scaled = beside([c * x for c, x in zip(columns(left), diagonal, strict=True)])
    misfit = frobenius(matrix - scaled * right.transpose())
    eye = identity(size)
    skew = frobenius(left.transpose() * left - eye).max(frobenius(right.transpose() * right - eye))
    defect = misfit + diagonal[0] * skew
    arb = flint().arb
    sigma = [arb(x, (misfit + x * skew).upper()) for x in diagonal]
    return Enclosure(matrix, sigma, left, right, defect)


def spectral_norm(matrix: Any) -> Any:
    """Enclose the largest singular value of a square matrix of balls."""
    arb = flint().arb
    values = enclose(matrix).sigma
    # values are known as a set: the largest lies between the largest lower end and the largest upper end
    top = functools.reduce(lambda a, b: a.max(b), values)
    return top.max(arb(0))


def small_norm(matrix: Any) -> Any:
    """Enclose the largest singular value of a matrix with one or two rows or columns, in closed form."""
    rows, cols = matrix.nrows(), matrix.ncols()
    gram = matrix * matrix.transpose() if rows <= cols else matrix.transpose() * matrix
    if gram.nrows() == 1:
        return root(gram[0, 0])
    if gram.nrows() > 2:
        return spectral_norm(matrix)
    a, b, c = gram[0, 0], gram[0, 1], gram[1, 1]
    return root((a + c + hypot(a - c, 2 * b)) / 2)


def _diagonal(matrix: Any) -> list[Any]:
    return [matrix[i, i] for i in range(matrix.nrows())]


def _refined(matrix: Any) -> tuple[Any, Any]:
    """Return factors of midpoints: Newton's step until what is off the diagonal is rounding."""
    arb_mat, bits, size = flint().arb_mat, flint().ctx.prec, matrix.nrows()
    left, _, right = np.linalg.svd(_floats(matrix, _exponent(matrix)))
    left, right = _orthonormal(exact(left)), _orthonormal(exact(right.T))
    for _ in range(_SWEEPS):
        inside = (left.transpose() * matrix * right).mid()
        values = _diagonal(inside)
        off = inside - arb_mat(size, size, [values[i] if i == j else 0 for i in range(size) for j in range(size)])
        unit, whole = _exponent(off), _exponent(inside)
        if unit is None or whole is None or unit < whole - bits + 24:
            break
        turn_left, turn_right = _corrections(inside, values, _floats(off, unit), unit)
        left, right = _orthonormal(left * turn_left), _orthonormal(right * turn_right)
    return left, right


def _exponent(matrix: Any) -> int | None:
    """Return the power of two just above the largest entry; None for a zero matrix."""
    parts = [x.mid().man_exp() for x in matrix.entries()]
    return max((int(m).bit_length() + int(e) for m, e in parts if m), default=None)


def _floats(matrix: Any, exponent: int | None) -> np.ndarray:
    """Return midpoints over 2^exponent in float64."""
    factor = flint().arb(2) ** -(exponent or 0)
    return np.asarray([float(x) for x in (matrix * factor).entries()]).reshape(matrix.nrows(), matrix.ncols())


def _orthonormal(matrix: Any) -> Any:
    """Bring nearly orthonormal columns nearer, by Newton and Schulz' step, which doubles the digits."""
    arb, eye = flint().arb, identity(matrix.ncols())
    for _ in range(_SWEEPS):
        off = (eye - matrix.transpose() * matrix).mid()
        matrix = (matrix + matrix * off * arb(0.5)).mid()
        size = _exponent(off)
        if size is None or 2 * size < -flint().ctx.prec + 8:
            break
    return matrix


def _corrections(inside: Any, values: list[Any], off: np.ndarray, unit: int) -> tuple[Any, Any]:
    r"""Return what to multiply the left and right factors by; `off` holds the off-diagonal over 2^unit.

    For skew X, Y the first-order condition is :math:`\sigma_iY_{ij}-\sigma_jX_{ij} = -T_{ij}` and its mirror image,
    so :math:`Y+X` divides the symmetric part by :math:`\sigma_i-\sigma_j` and :math:`Y-X` the other by their sum.
    """
    arb, arb_mat = flint().arb, flint().arb_mat
    size, factor = len(values), arb(2) ** -unit
    scaled = [x * factor for x in values]  # differences must be exact: values may agree to more than 16 digits
    pairs = lambda f: np.asarray([[float(f(a, b)) for b in scaled] for a in scaled])
    apart, sums = pairs(lambda a, b: a - b), pairs(lambda a, b: a + b)
    even, odd = off + off.T, off - off.T
    near, tiny = np.abs(apart) <= _CLUSTER, sums <= 2 * _CLUSTER
    both = np.where(near, 0.0, -even / np.where(near, 1.0, apart))
    differ = np.where(tiny, 0.0, -odd / np.where(tiny, 1.0, sums))
    eye = identity(size)
    turns = [eye + exact((x - x.T) / 4) for x in (both - differ, both + differ)]
    order = sorted(range(size), key=lambda i: _Ordered(values[i]))
    cuts = [k for k in range(1, size) if abs(apart[order[k - 1], order[k]]) > _CLUSTER]
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True) if b - a > 1]
    if groups:
        rotations = [np.eye(size), np.eye(size)]
        for group in groups:
            block = arb_mat(len(group), len(group), [inside[i, j] for i in group for j in group])
            null = bool(tiny[np.ix_(group, group)].any())
            if not null:
                block = (block - identity(len(group)) * block[0, 0]).mid()
            part = _floats(block, _exponent(block))
            if null:  # values that are all rounding: any factors will do
                a, _, b = np.linalg.svd(part)
                b = b.T
            else:
                a = b = np.linalg.eigh((part + part.T) / 2)[1]
            for whole, turn in zip(rotations, (a, b), strict=True):
                whole[np.ix_(group, group)] = turn
        turns = [turn * exact(rotation) for turn, rotation in zip(turns, rotations, strict=True)]
    return turns[0], turns[1]


class _Ordered:
    """Order midpoints that agree to more digits than a float holds."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: "_Ordered") -> bool:
        return bool((self.value - other.value).mid() < 0)
