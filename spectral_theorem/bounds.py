r"""Bounds on the residual, on Psi and on the propagators, from the paper's to the sharpest known here.

Everything is homogeneous in the gains, so recursions carry unit-size numbers and log scales.
Alignment enters through the upper ends of its interval: a larger kappa or s never shrinks a bound.
Proofs: docs/theory/bounds.md and docs/theory/growth.md.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .coherence import Coherence, coherence_direction
from .factors import Factors, transfer_factors
from .largest import largest_singular_value
from .path import (
    DominantPath,
    Spine,
    dense,
    dominant_path,
    first_layer,
    log_amplitudes,
    log_gains,
    previous,
    reverse_cumsum,
    row_projections,
    signed_rows,
    spine,
)
from .scaled import Scaled, log_of, meet, norm, scaled
from .types import Triplets, container


@container
class Bounds:
    r"""Hold every bound as a logarithm; the names without `log_` give plain numbers.

    Attributes
    ----------
    log_paper, log_telescoping, log_transfer, log_damped : ()
        upper bounds of :math:`\|R_\Sigma\|_F`, each sharper.
    log_row_exact, log_row_exact_lower : ()  two-sided bound from one row of the chain.
    log_top_k, log_top_k_lower : ()  two-sided bound from the leading K triplets (harmless ties).
    log_psi_lower : ()  :math:`(\gamma/\sqrt2)\sum_k|A_{L,k}|\|G_k\|_F`, the paper's constants, needs H3.
    log_psi_lower_sharp : ()  :math:`d\sum_k|A_{L,k}|\|v_{k+1}^\top G_k\|`, always valid.
    log_propagator_norm : (L-1,)  entry i bounds :math:`\|W_L\cdots W_{k+1}\|`, k = i+1.
    log_total_norm : ()  bounds :math:`\|W_L\cdots W_1\|`.
    """

    log_paper: Float[Array, "*batch"]
    log_telescoping: Float[Array, "*batch"]
    log_transfer: Float[Array, "*batch"]
    log_damped: Float[Array, "*batch"]
    log_row_exact: Float[Array, "*batch"]
    log_row_exact_lower: Float[Array, "*batch"]
    log_top_k: Float[Array, "*batch"]
    log_top_k_lower: Float[Array, "*batch"]
    log_psi_lower: Float[Array, "*batch"]
    log_psi_lower_sharp: Float[Array, "*batch"]
    log_propagator_norm: Float[Array, "*batch couplings"]
    log_total_norm: Float[Array, "*batch"]

    def __getattr__(self, name: str) -> Any:
        if f"log_{name}" not in type(self).__dataclass_fields__:
            raise AttributeError(f"Bounds has no {name!r}")
        return jnp.exp(getattr(self, f"log_{name}"))


def upper_alignment(triplets: Any) -> tuple[Any, Any]:
    """Return the upper ends of |kappa| and s, (L-1,) each, over the interval of the coupling angle.

    Where a triplet is unresolved the computed basis itself is meant, so no interval is added:
    the bounds hold for the choice made.
    """
    sure = triplets.resolved[:-1] & triplets.resolved[1:]
    error = jnp.where(sure, triplets.coupling_error, 0.0)
    phi = jnp.arctan2(triplets.misalignment, jnp.abs(triplets.kappa))
    return jnp.cos(jnp.clip(phi - error, 0.0)), jnp.sin(jnp.clip(phi + error, None, math.pi / 2))


def residual_bounds(
    chain: Any, triplets: Triplets, *, path: DominantPath | None = None, coherence: Coherence | None = None
) -> Bounds:
    r"""Bound the residual of the rank-1 law, Psi, and the propagator products.

    .. math:: \|R_\Sigma\|_F \le \mathrm{damped} \le \mathrm{transfer} \le \mathrm{telescoping}
       \le \mathrm{paper},\qquad \mathrm{row\_exact\_lower} \le \|R_\Sigma\|_F \le \mathrm{row\_exact}

    **Claim** paper, telescoping, transfer, damped, row_exact, top_k, propagator_norm, total_norm (upper bounds),
    row_exact_lower, top_k_lower, psi_lower, psi_lower_sharp (lower bounds).

    Parameters
    ----------
    chain : LayerChain (L, D, D), (L, D, C), or OperatorChain.
    triplets : its Triplets; K = triplets.U.shape[-1] is used for the top-K bound.
    path, coherence : reuse what was already computed for this chain.

    Returns
    -------
    Bounds

    Notes
    -----
    Cost O(L^2 + L D^2 C). Without context every residual bound is 0 (log -inf).

    References
    ----------
    docs/theory/bounds.md, docs/theory/growth.md. paper: arXiv 2604.08591 with constants made explicit;
    all others derived here.

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> chain = st.ensembles.planted(jax.random.key(0), layers=8, width=4, context=3, sigma=1.02,
    ...     kappa=0.999, xi=0.01, gamma=0.5, coherence=0.9)
    >>> b = st.residual_bounds(chain, st.decompose(chain))
    >>> bool(b.transfer <= b.telescoping <= b.paper)
    True
    """
    return _residual_bounds(dense(chain), triplets, path, coherence)


@jax.jit
def _residual_bounds(chain: Any, triplets: Triplets, path: DominantPath | None, coherence: Coherence | None) -> Bounds:
    s = spine(chain, triplets)
    path = dominant_path(chain, triplets) if path is None else path
    # one sweep serves every bound that looks at scalars only; entry k belongs to layer k+1, spine or not
    factors = transfer_factors(triplets.xi, *upper_alignment(triplets))
    log_propagators = _propagator_norms(triplets, factors)
    if s.length == 0:
        nothing = jnp.asarray(-jnp.inf, chain.dtype)
        residual = dict.fromkeys((f.removeprefix("log_") for f in _RESIDUAL_FIELDS), nothing)
    else:
        first = first_layer(chain)
        later = _damping(s, triplets, first)
        residual = _norm_bounds(s, Factors(*(x[first:] for x in factors)), later) | _top_k(s, triplets, first, path)
        residual |= {name: each[-1] for name, each in row_exact(s).items()}
        residual |= _psi_bounds(s, coherence)
    return Bounds(
        **{f"log_{name}": value for name, value in residual.items()},
        log_propagator_norm=log_propagators[1:],
        log_total_norm=log_propagators[0],
    )


_RESIDUAL_FIELDS = tuple(
    name for name in Bounds.__dataclass_fields__ if name not in ("log_propagator_norm", "log_total_norm")
)


def _damping(s: Spine, triplets: Triplets, first: int) -> tuple[Any, Any]:
    """Return logs of what a deviation becomes when growth damps it, (n,) each: of a unit along v, and across it.

    A deviation that is made at a layer leaves it across u, and the products after it are bounded by `log_growth`.
    """
    kappa, misalignment = (x[first:] for x in upper_alignment(triplets))
    xi, inside = s.xi, log_growth(triplets)[1][first:]
    n = s.length
    # the weight of the layer that follows, xi^2 where it is the last
    weight = xi[1:] * jnp.where(jnp.arange(n - 1) == n - 2, xi[1:], 1.0)
    enters = 0.5 * log_of(weight + (1 - weight) * misalignment**2)
    after = jnp.concatenate([reverse_cumsum(inside), jnp.zeros((1,), xi.dtype)])[1:]
    left = jnp.minimum(enters + after, 0.0)  # of a deviation made at layers 0..n-2 of the spine; of the last one all

    def back(reach: Any, layer: Any) -> tuple[Any, Any]:
        k, made = layer
        high = jnp.maximum(k + reach, made)
        unit = jnp.where(jnp.isneginf(high), 0.0, jax.lax.stop_gradient(high))
        reach = log_of(jnp.exp(k + reach - unit) + jnp.exp(made - unit)) + unit
        return reach, reach

    whole = jnp.append(left, jnp.zeros((1,), xi.dtype))
    made = log_of(misalignment) + log_of(xi[1:]) + whole[1:]
    nothing = jnp.asarray(-jnp.inf, xi.dtype)
    _, along = jax.lax.scan(back, nothing, (log_of(kappa), made), reverse=True)
    return jnp.append(along, nothing), log_of(xi) + whole


def _norm_bounds(s: Spine, factors: Factors, damping: tuple[Any, Any] | None = None) -> dict[str, Any]:
    """Paper, telescoping, transfer and damped bounds: from norms of injections and the scalars of layers only."""
    rows = row_projections(s)
    on_path = norm(rows, axis=1)
    off = s.sources - s.v[:, :, None] * rows[:, None, :]
    off_path = norm(off, axis=(1, 2))
    size = norm(s.sources, axis=(1, 2))
    gains = log_gains(s)
    total = lambda log_terms: jax.nn.logsumexp(gains + log_terms)
    least = lambda *logs: jnp.minimum(logs[0], logs[1])
    later = (jnp.full_like(gains, jnp.inf),) * 2 if damping is None else damping
    both = lambda a, b: total(
        jnp.logaddexp(least(a, later[0]) + log_of(on_path), least(b, later[1]) + log_of(off_path))
    )
    apart = both(factors.along_path, factors.across_path), both(factors.along_bulk, factors.across_bulk)
    return {
        # components along u_L and off it add up apart; each is at most the whole
        "damped": least(both(factors.along, factors.across), 0.5 * jnp.logaddexp(2 * apart[0], 2 * apart[1])),
        "paper": total(log_of(reverse_cumsum(s.xi)) + log_of(size)),
        "telescoping": total(factors.telescoped + log_of(size)),
        "transfer": total(jnp.logaddexp(factors.along + log_of(on_path), factors.across + log_of(off_path))),
    }


def row_exact(s: Spine) -> dict[str, Any]:
    """Return the logs of the two-sided bound from j_l = J_l^T v_{l+1}, (n,) each, one per depth.

    The row along v is exact; a recursion bounds the rest.
    """
    kappas = jnp.concatenate([jnp.zeros((1,), s.sigma.dtype), s.kappa])
    tails = s.sigma * s.xi
    layers = (s.propagators, s.sources, s.sigma, previous(s.u), s.v, kappas, previous(tails), tails)
    return jax.lax.scan(row_exact_step, row_exact_start(s.sources[0]), layers)[1]


def row_exact_start(source: Any) -> Scaled:
    """Return the state before the first layer: J without its last injection, Psi, the row j and beta."""
    empty = jnp.zeros_like(source[0])
    return scaled((jnp.zeros_like(source), empty, empty, jnp.zeros((), source.dtype)))


def row_exact_step(state: Scaled, layer: Any) -> tuple[Scaled, dict[str, Any]]:
    """Pass one layer: W, the injection before it, sigma, u before it, v, kappa before it, sigma xi before and now."""
    deflate = lambda v, x: x - jnp.outer(v, v @ x)
    w, g, sigma, u_before, v, kappa_before, tail_before, tail = layer
    (jacobian, psi, row, beta), g, log = meet(state, scaled(g))
    # across v: what the layer before sent along its own u is known exactly, the rest through beta
    beta = tail_before * beta + norm(deflate(v, jnp.outer(u_before, row) + g))
    seen, incoming = v @ jacobian, v @ g
    exact = sigma * norm(seen - kappa_before * psi)
    psi, row = sigma * (kappa_before * psi + incoming), sigma * (seen + incoming)
    upper = norm(jnp.stack([exact, tail * beta]))
    after = scaled((w @ (jacobian + g), psi, row, beta), log)
    return after, {"row_exact": log_of(upper) + log, "row_exact_lower": log_of(exact) + log}


def _top_k(s: Spine, triplets: Triplets, first: int, path: DominantPath) -> dict[str, Any]:
    """Two-sided bound that keeps the leading K directions exactly; ties among them are harmless."""
    left, right = triplets.U[first:], triplets.V[first:]
    sigma, tail = triplets.sigma_top[first:, :-1], triplets.sigma_top[first:, -1]
    before = previous(left)
    transpose = lambda x: jnp.swapaxes(x, -1, -2)
    overlap = transpose(right) @ before  # V^T U of the layer before, (n, K, K)
    across = transpose(right) - overlap @ transpose(before)  # V^T (I - U U^T)
    outside = before - right @ overlap  # (I - V V^T) U
    layers = (
        s.sources,
        sigma,
        tail,
        right,
        before,
        overlap,
        largest_singular_value(sigma[:, :, None] * overlap),
        largest_singular_value(sigma[:, :, None] * across),
        largest_singular_value(outside),
    )

    def step(state: Any, layer: Any) -> tuple[Any, None]:
        g, sig, rest, v, u_before, vu, keep_p, keep_q, leave = layer
        (psi, p, q), g, log = meet(state, scaled(g))
        entering = u_before @ psi + g
        beyond = norm(entering - v @ (v.T @ entering))
        p_next = keep_p * p + keep_q * q
        q_next = rest * (jnp.minimum(leave * p + q, norm(jnp.stack([p, q]))) + beyond)
        return scaled((sig[:, None] * (vu @ psi + v.T @ g), p_next, q_next), log), None

    zero = jnp.zeros((), s.sigma.dtype)
    start = scaled((jnp.zeros((left.shape[-1], s.sources.shape[-1]), s.sigma.dtype), zero, zero))
    last, _ = jax.lax.scan(step, start, layers)
    # the leading direction's own share is Psi itself
    share = jnp.outer(left[-1].T @ s.u[-1], _unit_psi(path, s.sources.shape[-1]))
    (psi, p, q), dominant, log = meet(last, scaled(share, path.log_psi_norm))
    seen = norm(psi - dominant)
    return {
        "top_k": log_of(norm(jnp.stack([seen + p, q]))) + log,
        "top_k_lower": log_of(jnp.clip(seen - p, 0.0)) + log,
    }


def _unit_psi(path: DominantPath, size: int) -> Any:
    """Return Psi's direction, or zeros for the stand-in context of a chain without one."""
    return path.psi_direction if path.psi_direction.shape[0] == size else jnp.zeros((size,), path.psi_direction.dtype)


def _psi_bounds(s: Spine, coherence: Coherence | None) -> dict[str, Any]:
    """Lower bounds of the norm of Psi: with the paper's gamma/sqrt2, and with the coherence value."""
    rows = row_projections(s)
    coherence = coherence_direction(signed_rows(s)) if coherence is None else coherence
    log_a, _ = log_amplitudes(s)
    on_path = norm(rows, axis=1)
    size = norm(s.sources, axis=(1, 2))
    present = size > 0
    gamma = jnp.min(jnp.where(present, on_path / jnp.where(present, size, 1.0), jnp.inf))
    gamma = jnp.where(present.any(), gamma, 0.0)
    amplitude = lambda sizes: jax.nn.logsumexp(log_a + log_of(sizes))
    return {
        "psi_lower": log_of(gamma) - 0.5 * math.log(2.0) + amplitude(size),
        "psi_lower_sharp": log_of(coherence.value) + amplitude(on_path),
    }


def _propagator_norms(triplets: Triplets, factors: Factors) -> Any:
    """Return log upper bounds of ||W_L...W_l|| for l = 1..L, (L,): best of transfer and sharp growth."""
    sigma, xi = triplets.sigma[:, 0], triplets.xi
    gains = reverse_cumsum(log_of(sigma))
    transfer = 0.5 * jnp.logaddexp(2 * factors.carried, 2 * factors.across)
    first, later = log_growth(triplets)
    nothing = jnp.zeros((1,), xi.dtype)
    # the weight of the layer a product starts at is free: 1 is best, and makes two-layer products exact
    sharp = jnp.concatenate([first + jnp.concatenate([reverse_cumsum(later), nothing])[1:], nothing])
    return gains + jnp.minimum(0.0, jnp.minimum(transfer, sharp))


def log_growth(triplets: Any) -> tuple[Any, Any]:
    r"""Return log mu_j of the sharp growth bound, (L-1,) each: at the start of a product, and inside it.

    The angle's error is added to mu itself: |d mu / d phi| <= 1, and the matrix is not monotone in phi.
    """
    xi = triplets.xi
    # weight xi_j inside, xi_L^2 at the end; a concatenation here is miscompiled under jit(vmap) on CPU
    after = xi[1:] * jnp.where(jnp.arange(1, xi.shape[0]) == xi.shape[0] - 1, xi[1:], 1.0)
    kappa, s, x = jnp.abs(triplets.kappa), triplets.misalignment, xi[:-1]
    sure = triplets.resolved[:-1] & triplets.resolved[1:]
    error = jnp.where(sure, triplets.coupling_error, 0.0)

    def growth(entering: Any) -> Any:  # entering = xi_j / sqrt(w_j)
        a, b = kappa, s * entering
        c, d = s * jnp.sqrt(after), -kappa * entering * jnp.sqrt(after)
        mu = 0.5 * (jnp.hypot(a + d, b - c) + jnp.hypot(a - d, b + c))
        return log_of(jnp.minimum(mu + error, 1.0))

    return growth(x), growth(jnp.sqrt(x))
