r"""Prove that nothing larger is left beside estimated singular triplets, by a Cholesky factorisation.

The proof and its allowances for rounding: docs/theory/rigour.md#certified-krylov-triplets.
"""

import math
from typing import Any

import jax.numpy as jnp

from .triplets import assemble
from .types import Triplets


def certified(propagators: Any, sigma: Any, u: Any, v: Any, *, residual: Any, converged: Any) -> tuple[Triplets, Any]:
    r"""Turn estimated triplets into certified ones, where a Cholesky factorisation proves that nothing larger is left.

    .. math:: \mu^2 I - E^\top E \succ 0 \;\Rightarrow\; \|E\| < \mu,\qquad E = W - \hat U\hat\Sigma\hat V^\top

    Parameters
    ----------
    propagators : (L, D, D). sigma : (L, K+1). u, v : (L, D, K). residual : (L,). converged : (L,) bool.

    Returns
    -------
    triplets : Triplets
        `certified` where the proof succeeded and the triplets converged; error bars include the proven bound.
    bound : (L,)
        Proven upper bound of :math:`\|E\|`, inf without proof.

    Notes
    -----
    2 D^3 + D^3/3 per layer. Rounding is allowed for: of E, of its Gram matrix and of the factorisation, each by its
    a-priori bound for K <= 4, so that in float32 the proof needs a gap of one or two per cent at D = 384. The rounding
    of the observed residuals is allowed for by 4 sqrt(D) eps, which is what it is and not the worst it could be.

    References
    ----------
    docs/theory/rigour.md#certified-krylov-triplets. S. Rump, Verification of positive definiteness, BIT 46 (2006).
    """
    width, kept = u.shape[1:]
    eps = float(jnp.finfo(u.dtype).eps)
    # by a power of two, so that no square over- or underflows
    first = jnp.where(jnp.isfinite(sigma[:, 0]) & (sigma[:, 0] > 0), sigma[:, 0], 1.0)
    unit = jnp.ldexp(jnp.ones_like(first), jnp.frexp(first)[1])
    bound = unit * _proven_norm(propagators / unit[:, None, None], sigma / unit[:, None], u, v)
    gram_u, gram_v = (jnp.einsum("lik,lij->lkj", x, x, precision="highest") for x in (u, v))
    defect = sum(jnp.sqrt(jnp.sum((g - jnp.eye(kept, dtype=g.dtype)) ** 2, axis=(1, 2))) for g in (gram_u, gram_v))
    # the observed one is that of the worst triplet; all K together move W by at most sqrt(K) times as much
    residual = math.sqrt(kept) * residual + 2 * sigma[:, 0] * (defect + 2 * math.sqrt(width) * eps)
    sure = jnp.isfinite(bound) & jnp.isfinite(residual) & converged
    triplets = assemble(
        sigma,
        sigma,
        u,
        v,
        residual=jnp.where(converged, residual, jnp.inf),
        certified=sure,
        # without proof: values whose squares are rounding beside the first one's may hide a larger one of their kind
        excess=jnp.clip(jnp.where(sure, bound, 8 * math.sqrt(eps) * sigma[:, 0]) - sigma[:, 1], 0.0),
    )
    return triplets, bound


def _proven_norm(propagators: Any, sigma: Any, u: Any, v: Any) -> Any:
    """Return (L,) upper bounds of the norm of E, inf where Cholesky proves none; sigma_1 of about unit size."""
    width, kept = u.shape[1:]
    eps = float(jnp.finfo(u.dtype).eps)
    rest = propagators - jnp.einsum("lik,lk,ljk->lij", u, sigma[:, :kept], v, precision="highest")
    gram = jnp.einsum("lij,lik->ljk", rest, rest, precision="highest")
    size = jnp.trace(gram, axis1=1, axis2=2)
    above = sigma[:, kept]
    # what E and the factors are off by: rounding of one subtraction and of rank-K products
    slip = (kept + 2) * eps * jnp.sqrt(jnp.sum(propagators**2, axis=(1, 2)))
    # as low as the next value allows, as high as the last kept one permits: the proof needs room on both sides, and
    # where nothing is left (rank one) it needs room for rounding
    spare = min(0.01, 2 * (width + 2) ** 2 * eps)  # what the proof takes, which in float64 is next to nothing
    level = jnp.maximum(0.5 * (above + sigma[:, kept - 1]), (1 + spare) * above + 2 * slip)
    gamma = (width + 2) * eps
    room = gamma * (size + width * level**2) / (1 - gamma)
    eye = jnp.eye(width, dtype=propagators.dtype)
    factor = jnp.linalg.cholesky((level**2)[:, None, None] * eye - gram - room[:, None, None] * eye)
    return jnp.where(jnp.isfinite(factor).all(axis=(1, 2)), level + slip, jnp.inf)
