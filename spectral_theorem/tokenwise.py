r"""Judge one decoder token: its dense propagators, certified triplets, exact norms, and all verdicts.

The chain that conditions and bounds read is short in context; the residual, which they do not give, is measured
apart from Gram matrices of pairs of layers.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from .certificate import certified
from .lanczos import SingularTriplets, leading_eigenpairs, singular_triplets
from .path import dominant_path
from .scaled import log_of, norm
from .shortened import reading_vectors, shortened
from .types import LayerChain, Thresholds, Triplets, tolerance
from .verification import judge
from .whisper.rows import context_basis, coordinates, injection_core, push_context, row_of_heads, value_gram
from .whisper.sensitivity import PARTS, Part, TokenFactors, at_token, pull, transposed_block, transposed_propagator

Granularity = Literal["block", "sub-block"]
_SHORT_BASIS = 72  # few enough for Lanczos to be traceable
_PROBES = 4


class Layer(NamedTuple):
    """Name one layer of the chain: the decoder block it belongs to, from 0, and which part of it."""

    block: int
    part: Part

    @property
    def injects(self) -> bool:
        """Whether the context enters here."""
        return self.part in ("block", "cross-attention")


def chain_layers(blocks: int, granularity: Granularity) -> tuple[Layer, ...]:
    """Return the layers of a chain of so many decoder blocks."""
    parts: tuple[Part, ...] = ("block",) if granularity == "block" else PARTS
    return tuple(Layer(block, part) for block in range(blocks) for part in parts)


def _matmul(x: Any, y: Any) -> Any:
    return jnp.matmul(x, y, precision="highest")


@functools.partial(jax.jit, static_argnames="layers")
def value_grams(shared: list[TokenFactors], layers: tuple[Layer, ...]) -> list[list[Any]]:
    """Return the parts of the injections' Gram matrices that all tokens share, for pairs k <= l."""
    used = [shared[layer.block] for layer in layers if layer.injects]
    return [[value_gram(a, b) for b in used[i:]] for i, a in enumerate(used)]


@functools.partial(jax.jit, static_argnames=("limit", "layers", "thresholds"))
def judge_token(
    shared: list[TokenFactors],
    own: list[TokenFactors],
    token: Any,
    found: SingularTriplets | None,
    limit: float,
    start: Any,
    probes: Any,
    values: list[list[Any]] | None,
    directions: Any,
    layers: tuple[Layer, ...],
    thresholds: Thresholds,
) -> dict[str, Any]:
    """Judge one token of those in `own`: its chain is short in context, and its residual is measured apart."""
    own, probes = jax.tree.map(lambda leaf: leaf[token], (own, probes))
    factors = [at_token(a, b) for a, b in zip(shared, own, strict=True)]
    transposed, outer = _dense(factors, layers)
    propagators = jnp.swapaxes(transposed, 1, 2)
    depth, width = propagators.shape[:2]
    found = _leading(transposed, limit, start) if found is None else found
    triplets, certificate = certified(
        propagators, found.sigma, found.U, found.V, residual=found.residual, converged=found.converged
    )
    about = {"basis": found.size, "converged": found.converged, "certificate": certificate}
    if directions is not None:
        return about | _projected(factors, layers, propagators, triplets, directions, thresholds)
    cores = [[injection_core(*pair) for pair in row] for row in _pairs(factors, layers, values)]
    places = [i for i, layer in enumerate(layers) if layer.injects]
    squares = jnp.stack([_matmul(b.T, _matmul(row[0], b)) for row, b in zip(cores, outer, strict=True)])
    injections = _injections(squares, limit)
    norms = jnp.zeros((depth,), propagators.dtype)
    norms = norms.at[np.asarray(places)].set(jnp.sqrt(jnp.clip(jnp.trace(squares, axis1=1, axis2=2), 0.0)))
    if depth > 1:
        left = reading_vectors(propagators, triplets)
        m = left.shape[1] - (left.shape[1] < width)
        read = _reader(factors, layers, outer)
        chain = shortened(propagators, left, _rows(layers, read, left[:, :m]), norms)
    else:
        read, chain = None, LayerChain(propagators, jnp.zeros_like(propagators[:, :, :1]).at[0, 0, 0].set(norms[0]))
    path = dominant_path(chain, triplets)
    log_gains = jnp.flip(jnp.cumsum(jnp.flip(log_of(triplets.sigma[:, 0]))))
    products = _unit_products(transposed, triplets.sigma[:, 0])
    log_norms = _log_norms(products) + log_gains
    residual = _residual(path, products, triplets, places, outer, cores, log_gains, norms)
    nan = jnp.full_like(path.residual, jnp.nan)
    path = dataclasses.replace(
        path,
        residual=nan,
        residual_unit=nan,
        log_residual_norm=residual["log_norm"],
        log_identity_error=_identity_error(layers, read, probes, path, products, triplets, log_gains),
    )
    verification = judge(
        chain,
        triplets,
        path,
        thresholds,
        log_products=log_norms,
        lyapunov=log_norms[:1] / depth,
        allowance=residual["relative_error"],
    )
    at = lambda x: jnp.full((depth, *x.shape[1:]), jnp.nan, x.dtype).at[np.asarray(places)].set(x)
    return about | {
        "verification": verification,
        "injection_sigma": at(injections["sigma"]),
        "injection_u": at(injections["u"]),
        "injection_residual": at(injections["residual"]),
        "injection_norm": norms,
        "log_residual_spectral": residual["log_spectral"],
        "log_residual_error": residual["log_error"],
    }


def _leading(transposed: Any, limit: Any, start: Any) -> SingularTriplets:
    """Return the leading triplets of L dense propagators; what a short basis does not reach is flagged."""
    depth, width = transposed.shape[:2]
    return singular_triplets(
        Partial(_times, transposed),
        Partial(_times, jnp.swapaxes(transposed, 1, 2)),
        count=depth,
        width=width,
        dtype=transposed.dtype,
        key=jax.random.key(0),
        top=min(2, width),
        tolerance=limit,
        most=_SHORT_BASIS,
        start=None if start is None else start[:, None],
        block=3,
    )


def _times(matrices: Any, x: Any) -> Any:
    return jnp.einsum("lbi,lij->lbj", x, matrices, precision="highest")


def _injections(squares: Any, limit: Any) -> dict[str, Any]:
    """Return the leading two singular values and the leading left vector of injections from G G^T."""
    width = squares.shape[1]
    found = leading_eigenpairs(
        Partial(_times, squares),
        count=squares.shape[0],
        width=width,
        dtype=squares.dtype,
        key=jax.random.key(1),
        top=min(2, width),
        tolerance=limit,
        most=_SHORT_BASIS,
        block=3,
    )
    sigma = jnp.sqrt(found.value[:, :2])
    tiny = jnp.finfo(sigma.dtype).tiny
    # G^T u = sigma v holds by definition of v; the other half of the residual is that of the square over sigma
    # (and where sigma is next to nothing, its square says no more than the root of what it is off by)
    each = found.residual / jnp.maximum(sigma[:, : found.residual.shape[1]], tiny)
    residual = jnp.minimum(each, jnp.sqrt(found.residual)).max(axis=1)
    residual = jnp.where(found.converged, residual, jnp.inf)
    return {"sigma": sigma, "u": found.vector[:, 0], "residual": residual}


def _projected(
    factors: list[TokenFactors],
    layers: tuple[Layer, ...],
    propagators: Any,
    triplets: Triplets,
    directions: Any,
    thresholds: Thresholds,
) -> dict[str, Any]:
    """Judge one token on a few directions of the context, whose injections are small enough to write down."""
    nothing = jnp.zeros((propagators.shape[1], directions.shape[0]), propagators.dtype)
    images = [
        push_context(factors[layer.block], directions[None], layer.part)[0].T if layer.injects else nothing
        for layer in layers
    ]
    chain = LayerChain(propagators, jnp.stack(images))
    path = dominant_path(chain, triplets)
    log_gains = jnp.flip(jnp.cumsum(jnp.flip(log_of(triplets.sigma[:, 0]))))
    log_norms = _log_norms(_unit_products(jnp.swapaxes(propagators, 1, 2), triplets.sigma[:, 0])) + log_gains
    u, sigma, _ = jnp.linalg.svd(chain.injections, full_matrices=False)
    used = jnp.asarray([layer.injects for layer in layers])[:, None]
    two = jnp.pad(sigma, ((0, 0), (0, 1)))[:, :2]
    return {
        "verification": judge(
            chain, triplets, path, thresholds, log_products=log_norms, lyapunov=log_norms[:1] / len(layers)
        ),
        "injection_sigma": jnp.where(used, two, jnp.nan),
        "injection_u": jnp.where(used, u[:, :, 0], jnp.nan),
        "injection_residual": jnp.where(used[:, 0], sigma[:, 0] * propagators.shape[1] * _eps(sigma), jnp.nan),
        "injection_norm": jnp.sqrt(jnp.sum(chain.injections**2, axis=(1, 2))),
        "log_residual_spectral": log_of(jnp.linalg.norm(path.residual_unit, ord=2))
        + path.log_residual_norm
        - log_of(norm(path.residual_unit)),
        "log_residual_error": path.log_scale + log_of(jnp.asarray(tolerance(chain), propagators.dtype)),
    }


def _eps(x: Any) -> float:
    return float(jnp.finfo(x.dtype).eps)


def _dense(factors: list[TokenFactors], layers: tuple[Layer, ...]) -> tuple[Any, list[Any]]:
    """Return W^T of every layer (L, D, D), and what follows the heads of each injection, (D, D) each, rows in."""
    transposed, outer = [], []
    for layer in layers:
        f = factors[layer.block]
        if layer.part == "block":
            w, after = transposed_block(f)
            transposed.append(w)
            outer.append(after)
        else:
            transposed.append(transposed_propagator(f, layer.part))
            if layer.injects:
                outer.append(f.parameters["encoder_attn"]["out_proj"]["kernel"])
    return jnp.stack(transposed), outer


def _pairs(factors: list[TokenFactors], layers: tuple[Layer, ...], values: Any) -> list[list[Any]]:
    used = [factors[layer.block] for layer in layers if layer.injects]
    return [[(a, b, v) for b, v in zip(used[i:], values[i], strict=True)] for i, a in enumerate(used)]


def _rows(layers: tuple[Layer, ...], read: Any, left: Any) -> Any:
    """Return the rows y^T G_k for the reading vectors of all injections but the last layer's, (L-1, m, C)."""
    n, m = left.shape[:2]
    if read is None:
        return jnp.zeros((n, m, 1), left.dtype)
    rows = [read(k, left[k]) if layer.injects else None for k, layer in enumerate(layers[:-1])]
    nothing = jnp.zeros_like(next(row for row in rows if row is not None))
    return jnp.stack([nothing if row is None else row for row in rows])


def _reader(factors: list[TokenFactors], layers: tuple[Layer, ...], outer: list[Any]) -> Any:
    """Return the function (k, y (b, D)) -> y^T G_k in short coordinates (b, C), or None without injections."""
    used = [layer.block for layer in layers[:-1] if layer.injects]
    if not used:
        return None
    basis = context_basis([factors[i] for i in used])

    def read(k: int, y: Any) -> Any:
        at = used.index(layers[k].block)
        return coordinates(basis, at, row_of_heads(factors[layers[k].block], _matmul(y, outer[at].T)[None]))[0]

    return read


@functools.partial(jax.jit, static_argnames="layers")
def probe_rows(factors: list[TokenFactors], layers: tuple[Layer, ...]) -> tuple[Any, Any]:
    r"""Return :math:`W_{k+1}^\top\cdots W_L^\top y` for k = 1..L-1 and random unit y, through the blocks' factors.

    Returns
    -------
    (T, L-1, probes, D) and (T, L-1)
        Arrays of at most unit size, and logarithms of their scale.
    """
    tokens = factors[0].state.shape[0]
    along = jnp.broadcast_to(_directions(factors[0].state), (tokens, _PROBES, factors[0].width))
    log, found, logs = jnp.zeros((tokens,), along.dtype), [], []
    for layer in reversed(layers[1:]):
        along = pull(factors[layer.block], along, layer.part)
        size = jnp.abs(along).max(axis=(1, 2))
        along = along / jnp.where(size > 0, size, 1.0)[:, None, None]
        log = log + log_of(size)
        found.append(along)
        logs.append(log)
    if not found:
        return jnp.zeros((tokens, 0)), jnp.zeros((tokens, 0))
    return jnp.stack(found[::-1], axis=1), jnp.stack(logs[::-1], axis=1)


def _directions(like: Any) -> Any:
    y = jax.random.normal(jax.random.key(4), (_PROBES, like.shape[-1]), like.dtype)
    return y / jnp.linalg.norm(y, axis=1, keepdims=True)


def _identity_error(
    layers: tuple[Layer, ...], read: Any, probes: Any, path: Any, products: Any, t: Triplets, log_gains: Any
) -> Any:
    r"""Estimate how far two routes to R_Sigma are apart: log of the Frobenius norm of their difference, by probes.

    One went back through the factors of each block and subtracts the dominant path, the other takes dense products of
    propagators. For uniform unit y, D times the mean of :math:`\|y^\top\Delta\|^2` is :math:`\|\Delta\|_F^2`.
    """
    if read is None:
        return jnp.asarray(-jnp.inf, products.dtype)
    along, log_along = probes
    y = _directions(products)
    peak = jnp.max(log_gains[1:])
    difference, dominant = jnp.asarray(0.0, y.dtype), jnp.asarray(0.0, y.dtype)
    for k, layer in enumerate(layers[:-1]):
        if not layer.injects:
            continue
        gain = jnp.exp(log_gains[k + 1] - peak)
        share = path.sign[k] * jnp.exp(path.log_amplitude[k] - peak)
        dense = gain * _matmul(y, products[k + 1].T) - share * jnp.outer(y @ t.u[-1], t.v[k + 1])
        difference = difference + read(k, jnp.exp(log_along[k] - peak) * along[k] - dense)
        dominant = dominant + share * read(k, t.v[k + 1, None])[0]
    difference = difference - jnp.outer(y @ t.u[-1], dominant)
    return 0.5 * log_of(y.shape[1] * jnp.mean(jnp.sum(difference**2, axis=1))) + peak


def _unit_products(transposed: Any, sigma: Any) -> Any:
    r"""Return :math:`(M_L\cdots M_l)^\top` for l = 1..L, (L, D, D), M = W / sigma_1: nothing over- or underflows."""

    def back(product: Any, layer: Any) -> tuple[Any, Any]:
        w, s = layer
        product = _matmul(w / jnp.where(s > 0, s, 1.0), product)
        return product, product

    last = transposed[-1] / jnp.where(sigma[-1] > 0, sigma[-1], 1.0)
    _, rest = jax.lax.scan(back, last, (transposed[:-1], sigma[:-1]), reverse=True)
    return jnp.concatenate([rest, last[None]])


def _log_norms(products: Any) -> Any:
    """Return log norms of unit products (L, D, D) from eigenvalues and their residuals; NaN where not converged."""
    found = leading_eigenpairs(
        Partial(_squared, products),
        count=products.shape[0],
        width=products.shape[1],
        dtype=products.dtype,
        key=jax.random.key(2),
        top=1,
        tolerance=1e-4,
        most=_SHORT_BASIS,
        block=3,
    )
    value = found.value[:, 0] + found.residual[:, 0]
    # the last is one layer by its own norm: 1, which an estimate with its residual added would exceed
    return jnp.where(found.converged, 0.5 * log_of(value), jnp.nan).at[-1].set(0.0)


def _squared(products: Any, x: Any) -> Any:
    return jnp.einsum("lbj,lij->lbi", _times(products, x), products, precision="highest")


def _residual(
    path: Any, products: Any, t: Triplets, places: list[int], outer: list[Any], cores: Any, log_gains: Any, norms: Any
) -> dict[str, Any]:
    r"""Return the norms of :math:`R_\Sigma=\sum_k(W_L\cdots W_{k+1}-A_{L,k}u_Lv_{k+1}^\top)G_k`, with an error bar."""
    depth, dtype = products.shape[0], products.dtype
    sources = [(i, k) for i, k in enumerate(places) if k < depth - 1]
    nothing = jnp.asarray(-jnp.inf, dtype)
    if not sources:
        zero = jnp.zeros((), dtype)
        return {"log_norm": nothing, "log_spectral": nothing, "log_error": nothing, "relative_error": zero}
    peak = jnp.max(jnp.stack([log_gains[k + 1] for _, k in sources]))
    columns = []
    for i, k in sources:
        share = path.sign[k] * jnp.exp(path.log_amplitude[k] - log_gains[k + 1])
        rest = _matmul(outer[i], products[k + 1]) - share * jnp.outer(outer[i] @ t.v[k + 1], t.u[-1])
        columns.append(rest * jnp.exp(log_gains[k + 1] - peak))
    half = jnp.zeros_like(products[0])  # R R^T = half + half^T
    for a, (i, _) in enumerate(sources):
        met = 0.5 * _matmul(cores[i][0], columns[a])
        for b, (j, _) in list(enumerate(sources))[a + 1 :]:
            met = met + _matmul(cores[i][j - i], columns[b])
        half += _matmul(columns[a].T, met)
    square = half + half.T
    frobenius = jnp.clip(jnp.trace(square), 0.0)
    scale = jnp.exp(path.log_scale - peak)
    eps = float(jnp.finfo(dtype).eps)
    # squares of terms as large as the scale are added up: that much of the square is rounding
    blur = 16 * eps * scale**2
    value = jnp.sqrt(frobenius)
    error = blur / jnp.maximum(value, jnp.sqrt(blur))
    top = leading_eigenpairs(
        Partial(_symmetric, square),
        count=1,
        width=square.shape[0],
        dtype=dtype,
        key=jax.random.key(3),
        top=1,
        tolerance=1e-4,
        most=_SHORT_BASIS,
        block=3,
    )
    spectral = jnp.where(top.converged[0], top.value[0, 0], jnp.nan)
    return {
        "log_norm": log_of(value) + peak,
        "log_spectral": 0.5 * log_of(spectral) + peak,
        "log_error": log_of(error) + peak,
        "relative_error": jnp.where(norms.any(), error / jnp.where(scale > 0, scale, 1.0), 0.0),
    }


def _symmetric(square: Any, x: Any) -> Any:
    return _matmul(x, square)
