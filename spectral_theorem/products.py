r"""What a chain that is known by products does to its context: norms of products and of :math:`R_\Sigma`.

These are the numbers that no small chain can stand for. Gains are divided out layer by layer, so that
nothing over- or underflows; every norm comes with what it may be off by.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .path import DominantPath
from .scaled import Scaled, log_of, scaled
from .trace import frobenius_norm
from .types import Triplets, container, refuse

_LARGEST_BASIS = 96  # vectors of the state's size that a norm may take
_TOLERANCE = 1e-6  # residual of a norm's square, relative: its error is of the order of the square of that


class Products(NamedTuple):
    r"""Hold a chain as functions of a layer, counted from 0, and of rows.

    Attributes
    ----------
    push, pull : (l, rows (b, N)) -> (b, N), :math:`W_l` and its transpose on every row.
    enter : (l, rows (b, C)) -> (b, N), :math:`G_l`.
    read : (l, rows (b, N)) -> (b, C), its transpose; with (start, stop) after these, the columns of those frames only.
    injects : which layers the context enters.
    width, frames, context_size, dtype : N; frames of equal size that the context consists of; C; type of every entry.
    """

    push: Callable[[int, Any], Any]
    pull: Callable[[int, Any], Any]
    enter: Callable[[int, Any], Any]
    read: Callable[..., Any]
    injects: tuple[bool, ...]
    width: int
    frames: int
    context_size: int
    dtype: Any

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return len(self.injects)


@container
class ResidualNorm:
    r"""Hold what was found of :math:`R_\Sigma`, as logarithms.

    Attributes
    ----------
    log_norm : :math:`\log\|R_\Sigma\|_F`.
    log_lower, log_upper : its interval; equal to it up to rounding where all rows were taken.
    log_error : log of the larger distance from an end of it.
    log_spectral : :math:`\log\|R_\Sigma\|_2`, a converged estimate; NaN where it did not converge.
    rows : how many rows were taken to estimate the Frobenius norm; N means all, and no estimate.
    """

    log_norm: Any
    log_lower: Any
    log_upper: Any
    log_error: Any
    log_spectral: Any
    rows: int


def log_gains(triplets: Triplets) -> Any:
    r"""Return :math:`\log\prod_{j\ge l}\sigma_{1,j}` for every layer l, (L,)."""
    return jnp.flip(jnp.cumsum(jnp.flip(log_of(jnp.asarray(triplets.sigma[:, 0])))))


class _Deviation:
    r"""Hold :math:`R_\Sigma = \sum_k(W_L\cdots W_{k+1}-A_{L,k}u_Lv_{k+1}^\top)G_k` as maps, in units of exp(peak)."""

    def __init__(self, products: Products, triplets: Triplets, path: DominantPath) -> None:
        self.products, self.triplets = products, triplets
        sigma = jnp.asarray(triplets.sigma[:, 0])
        self.sigma = jnp.where(sigma > 0, sigma, 1.0)
        gains = log_gains(triplets)[1:]
        self.sources = [k for k in range(products.depth - 1) if products.injects[k]]
        entering = jnp.asarray([products.injects[k] for k in range(products.depth - 1)])
        peak = jnp.max(jnp.where(entering, gains, -jnp.inf), initial=-jnp.inf)
        self.peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
        self.gain = jnp.exp(gains - self.peak)
        self.share = path.sign * jnp.exp(path.log_amplitude - jnp.where(jnp.isfinite(gains), gains, 0.0))

    def pull(self, layer: int, y: Any) -> Any:
        return self.products.pull(layer, y) / self.sigma[layer]

    def nothing(self, y: Any) -> Any:
        return jnp.zeros((y.shape[0], self.products.context_size), y.dtype)

    def back(self, y: Any) -> Any:
        """Return R^T y, (b, C)."""
        head, total, t = y @ self.triplets.u[-1], self.nothing(y), self.triplets
        for k in range(self.products.depth - 2, -1, -1):
            y = self.pull(k + 1, y)
            if self.products.injects[k]:
                beside = y - self.share[k] * jnp.outer(head, t.v[k + 1])
                total = total + self.products.read(k, self.gain[k] * beside)
        return total

    def ahead(self, x: Any) -> Any:
        """Return R x, (b, N)."""
        state = jnp.zeros((x.shape[0], self.products.width), x.dtype)
        dominant, t = jnp.zeros((x.shape[0],), x.dtype), self.triplets
        for k in range(self.products.depth - 1):
            if self.products.injects[k]:
                entered = self.gain[k] * self.products.enter(k, x)
                dominant = dominant + self.share[k] * (entered @ t.v[k + 1])
                state = state + entered
            state = self.products.push(k + 1, state) / self.sigma[k + 1]
        return state - jnp.outer(dominant, t.u[-1])

    def through(self, y: Any) -> Any:
        """Return (J_L - G_L)^T y, (b, C)."""
        total = self.nothing(y)
        for k in range(self.products.depth - 2, -1, -1):
            y = self.pull(k + 1, y)
            if self.products.injects[k]:
                total = total + self.products.read(k, self.gain[k] * y)
        return total

    def psi(self) -> Any:
        """Return Psi, (C,)."""
        rows = [
            self.gain[k] * self.share[k] * self.products.read(k, self.triplets.v[k + 1][None])[0] for k in self.sources
        ]
        return jnp.stack(rows).sum(axis=0)

    def by_recursion(self, y: Any) -> Any:
        r"""Return R^T y by :math:`R_{l+1} = W_{l+1}R_l + E_{l+1}(u_l\Psi_l^\top + G_l)`, transposed, (b, C)."""
        total, t = self.nothing(y), self.triplets
        later = jnp.zeros((y.shape[0],), y.dtype)  # what the layers above send along the dominant path to here
        for layer in range(self.products.depth - 1, 0, -1):
            before = self.pull(layer, y)
            off_path = before - jnp.outer(y @ t.u[layer], t.v[layer])
            if self.products.injects[layer - 1]:
                met = off_path + jnp.outer(later, t.v[layer])
                total = total + self.products.read(layer - 1, self.gain[layer - 1] * met)
            if layer > 1:
                later = off_path @ t.u[layer - 1] + t.kappa[layer - 1] * later
            y = before
        return total


def residual_norm(
    products: Products, triplets: Triplets, path: DominantPath, *, key: Any, sketch: int = 16, probes: int = 32
) -> ResidualNorm:
    r"""Return :math:`\|R_\Sigma\|_F` with an interval, and :math:`\|R_\Sigma\|_2`, from products only.

    Parameters
    ----------
    products, triplets : of one chain.
    path : its amplitudes are used; those of a small chain that stands for it are the same.
    key : PRNG key of the probes.
    sketch, probes : as in `frobenius_norm`; a state of no more than 2 sketch + probes numbers is taken whole.

    Returns
    -------
    ResidualNorm
        The interval has probability 0.95 over the probes, and rounding is in it.

    Notes
    -----
    2 sketch + probes passes back through the layers with the context, `sketch` passes ahead, and up to 96 of each for
    the spectral norm.

    Examples
    --------
    >>> import spectral_theorem as st
    >>> w, g = jax.random.normal(jax.random.key(0), (2, 3, 5, 5))
    >>> found, p = st.verify(st.LayerChain(w, g)), dense_products(st.LayerChain(w, g))
    >>> ours = residual_norm(p, found.triplets, found.path, key=jax.random.key(1))
    >>> ours.rows, bool(abs(ours.log_norm - found.path.log_residual_norm) < 1e-5)
    (5, True)
    """
    nothing = jnp.asarray(-jnp.inf, products.dtype)
    whole = _Deviation(products, triplets, path)
    if not whole.sources:
        return ResidualNorm(nothing, nothing, nothing, nothing, nothing, products.width)
    rounding = (
        16 * float(jnp.finfo(products.dtype).eps) * math.sqrt(products.width) * jnp.exp(path.log_scale - whole.peak)
    )
    if products.width <= 2 * sketch + probes:
        rows, value = products.width, jnp.linalg.norm(whole.back(jnp.eye(products.width, dtype=products.dtype)))
        lower = upper = value
    else:
        for_norm, key = jax.random.split(key)
        rows = 2 * sketch + probes
        found = frobenius_norm(
            for_norm,
            rmatvec=whole.back,
            matvec=whole.ahead,
            rows=products.width,
            dtype=products.dtype,
            sketch=sketch,
            probes=probes,
        )
        value, lower, upper = found.norm, found.lower, found.upper
    square = lambda y: whole.ahead(whole.back(y))
    theta, _, sure = leading_value(square, width=products.width, dtype=products.dtype, key=key)
    lower, upper = jnp.clip(lower - rounding, 0.0), upper + rounding
    log = lambda x: log_of(jnp.asarray(x, products.dtype)) + whole.peak
    return ResidualNorm(
        log_norm=log(value),
        log_lower=log(lower),
        log_upper=log(upper),
        log_error=log(jnp.maximum(upper - value, value - lower)),
        log_spectral=log(math.sqrt(theta)) if sure else jnp.asarray(jnp.nan, products.dtype),
        rows=rows,
    )


def identity_error(products: Products, triplets: Triplets, path: DominantPath, *, key: Any, probes: int = 4) -> Any:
    r"""Estimate how far two routes to :math:`R_\Sigma` are apart: log of the Frobenius norm of their difference.

    One takes :math:`u_L\Psi^\top` off the derivative of the whole stack, the other is the recursion of R; they share
    products with single layers and no intermediate. For uniform unit y, N times the mean of
    :math:`\|\Delta^\top y\|^2` is :math:`\|\Delta\|_F^2`.

    Parameters
    ----------
    products, triplets, path : as in `residual_norm`.
    key : PRNG key of the y. probes : how many.
    """
    whole = _Deviation(products, triplets, path)
    if not whole.sources:
        return jnp.asarray(-jnp.inf, products.dtype)
    y = jax.random.normal(key, (probes, products.width), products.dtype)
    y = y / jnp.linalg.norm(y, axis=1, keepdims=True)
    by_difference = whole.through(y) - jnp.outer(y @ triplets.u[-1], whole.psi())
    difference = by_difference - whole.by_recursion(y)
    return 0.5 * log_of(products.width * jnp.mean(jnp.sum(difference**2, axis=1))) + whole.peak


def log_product_norms(products: Products, triplets: Triplets, *, key: Any) -> Any:
    r"""Return :math:`\log\|W_L\cdots W_l\|_2` for l = 1..L, (L,): estimate and residual added; NaN if not converged.

    Parameters
    ----------
    products, triplets : of one chain; the last entry is its :math:`\sigma_{1,L}`.
    key : PRNG key of the random starts.

    Notes
    -----
    Up to 96 products with every layer from l on and their transposes, for each l: :math:`L^2/2` layers in all.
    """
    sigma = np.asarray(triplets.sigma[:, 0])
    sigma = np.where(sigma > 0, sigma, 1.0)
    gains = log_gains(triplets)
    found = [gains[-1]]
    for first in range(products.depth - 2, -1, -1):

        def square(y: Any, first: int = first) -> Any:
            for layer in range(products.depth - 1, first - 1, -1):
                y = products.pull(layer, y) / sigma[layer]
            for layer in range(first, products.depth):
                y = products.push(layer, y) / sigma[layer]
            return y

        theta, off, sure = leading_value(
            square, width=products.width, dtype=products.dtype, key=jax.random.fold_in(key, first)
        )
        value = log_of(jnp.asarray(theta + off if sure else math.nan, products.dtype))
        found.append(0.5 * value + gains[first])
    return jnp.stack(found[::-1])


def cone_output(products: Products, triplets: Triplets) -> Scaled:
    """Return W_L...W_2 v_2, (N,), with its scale kept apart."""
    x = scaled(jnp.asarray(triplets.v[min(1, products.depth - 1)]))
    for layer in range(1, products.depth):
        x = scaled(products.push(layer, x.value[None])[0], x.log)
    return x


def leading_value(
    apply: Callable[[Any], Any],
    *,
    width: int,
    dtype: Any,
    key: Any,
    tolerance: float | None = None,
    most: int = _LARGEST_BASIS,
    block: int = 4,
) -> tuple[float, float, bool]:
    r"""Estimate the largest eigenvalue of a positive semidefinite operator that cannot be traced, by block Krylov.

    Parameters
    ----------
    apply : function (b, N) -> (b, N), S on every row; called with b = `block`.
    width, dtype : N, and float32 or float64. key : PRNG key of the start.
    tolerance : residual to reach, relative to the value; default 1e-6, or what rounding allows.
    most : largest basis. block : rows at once.

    Returns
    -------
    value, residual : floats, :math:`\theta` and :math:`\|Sx-\theta x\|`.
    converged : bool

    Notes
    -----
    `lanczos.leading_eigenpairs` compiles the operator into its loop; here it may be a loop over as many layers as one
    likes, each compiled once. The images are kept, and the residual is that of the vector itself.

    Examples
    --------
    >>> d = jnp.arange(1.0, 101.0)
    >>> value, _, converged = leading_value(lambda x: x * d, width=100, dtype=d.dtype, key=jax.random.key(0))
    >>> round(value, 3), converged
    (100.0, True)
    """
    if width < 1 or block < 1 or most < 1:
        refuse(f"width={width}, block={block}, most={most}", "all >= 1", "width=64, block=4, most=96")
    if tolerance is None:
        tolerance = max(_TOLERANCE, 64 * float(jnp.finfo(dtype).eps))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    basis = images = np.zeros((0, width), dtype)
    fresh = rng.standard_normal((block, width))
    theta, off = 0.0, math.inf
    while True:
        count = min(block, width - len(basis))
        rows = _across(fresh[:count], basis, rng)
        given = np.zeros((block, width), dtype)
        given[:count] = rows
        image = np.asarray(apply(jnp.asarray(given)))[:count]
        basis, images = np.concatenate([basis, rows]), np.concatenate([images, image])
        if not np.isfinite(image).all():
            return math.nan, math.inf, False
        small = (images @ basis.T).astype(np.float64)
        values, turns = np.linalg.eigh(0.5 * (small + small.T))
        theta, x = max(float(values[-1]), 0.0), turns[:, -1].astype(dtype)
        off = float(np.linalg.norm(x @ images - theta * (x @ basis)))
        done = off <= tolerance * theta or len(basis) == width
        if done or len(basis) >= most:
            return theta, off, bool(done)
        fresh = np.resize(image, (block, width))


def _across(rows: Any, basis: Any, rng: Any) -> Any:
    """Return orthonormal rows across a basis that span, with it, at least the given ones."""
    done: list[Any] = []
    for row in rows:
        size = np.linalg.norm(row)
        for attempt in range(3):
            x = row.astype(basis.dtype) if attempt == 0 else rng.standard_normal(basis.shape[1]).astype(basis.dtype)
            start = size if attempt == 0 else np.linalg.norm(x)
            for _ in range(2):
                for q in (basis, np.asarray(done, basis.dtype).reshape(-1, basis.shape[1])):
                    x = x - (x @ q.T) @ q
            length = np.linalg.norm(x)
            if length > 64 * np.finfo(basis.dtype).eps * start and length > 0:
                x = x / length
                for q in (basis, np.asarray(done, basis.dtype).reshape(-1, basis.shape[1])):
                    x = x - (x @ q.T) @ q
                done.append(x / np.linalg.norm(x))
                break
    return np.asarray(done, basis.dtype)


def dense_products(chain: Any) -> Products:
    """Return a dense chain as products, for comparison.

    Parameters
    ----------
    chain : LayerChain with injections.
    """
    w, g = chain.propagators, chain.injections
    times = lambda x, y: jnp.matmul(x, y, precision="highest")
    return Products(
        push=lambda layer, x: times(x, w[layer].T),
        pull=lambda layer, y: times(y, w[layer]),
        enter=lambda layer, x: times(x, g[layer].T),
        read=lambda layer, y, start=0, stop=None: times(y, g[layer][:, start:stop]),
        injects=tuple(bool(x) for x in np.asarray(jnp.any(g != 0, axis=(1, 2)))),
        width=chain.width,
        frames=chain.context_size,
        context_size=chain.context_size,
        dtype=chain.dtype,
    )
