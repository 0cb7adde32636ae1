r"""Leading singular triplets of every propagator, with error bars that reach kappa, rho and lambda.

Dense SVD values are certified: :math:`|\sigma_i-\hat\sigma_i|` is at most the norm of what the
computed factors fail to reproduce (Weyl), and vectors are known to within Wedin's angle. Krylov
values are converged estimates and are labelled so (docs/theory/rigour.md).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from .scaled import log_of, norm
from .types import Triplets, one_chain, refuse


def decompose(
    chain: Any, method: str = "dense", *, top: int | None = None, key: Any = None, tolerance: float | None = None
) -> Triplets:
    r"""Decompose every propagator and attach certificates.

    .. math:: W_l = \sum_i \sigma_{i,l} u_{i,l} v_{i,l}^\top,\quad
       \kappa_l = v_{l+1}^\top u_l,\quad \rho_l = \sigma_{1,l}|\kappa_l|,\quad \lambda_l = \log\rho_l

    Parameters
    ----------
    chain : LayerChain or OperatorChain, propagators (L, D, D).
    method : "dense" (LAPACK SVD, certified, jit- and vmap-able) or "krylov" (matfree's
        bidiagonalisation with a stop rule, matrix-free, outside jit only).
    top : number K of triplets kept for the top-K bound; default min(2, D).
    key, tolerance : Krylov only: PRNG key of the start vectors, relative residual to reach.

    Returns
    -------
    Triplets

    Raises
    ------
    InputError
        Unknown method, or top outside 1..D.

    Notes
    -----
    Dense cost O(L D^3). The dense residual is
    :math:`\|W-\hat U\hat\Sigma\hat V^\top\|_F + \sigma_1(\delta_U+\delta_V) + D\,\mathrm{eps}\,\sigma_1`, with
    :math:`\delta` the orthogonality defects and the last term an allowance for evaluating the first.

    References
    ----------
    docs/theory/rigour.md (Weyl; Wedin). docs/notation.md.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> chain = st.LayerChain(jnp.stack([jnp.diag(jnp.asarray([2.0, 1.0]))] * 3))
    >>> t = st.decompose(chain)
    >>> t.sigma[0].tolist(), t.rho.tolist(), bool(t.resolved.all())
    ([2.0, 1.0], [2.0, 2.0], True)
    """
    width = one_chain(chain).width
    count = min(2, width) if top is None else top
    if not 1 <= count <= width:
        refuse(f"top={top}", f"1 <= top <= D = {width}", "top=2")
    if method == "dense":
        w = chain.propagators() if callable(chain.propagators) else chain.propagators
        return svd_triplets(w, count)
    if method != "krylov":
        refuse(f"method={method!r}", "'dense' or 'krylov'", "method='dense'")
    from .krylov import leading_triplets  # matfree is needed on this route only

    if callable(chain.propagators):
        matvec, rmatvec = chain.matvec, chain.rmatvec
    else:
        # pytrees of one function each, so that another chain of this shape compiles nothing anew
        matvec = jax.tree_util.Partial(_matvec, chain.propagators)
        rmatvec = jax.tree_util.Partial(_rmatvec, chain.propagators)
    found = leading_triplets(
        matvec,
        rmatvec,
        depth=chain.depth,
        width=width,
        dtype=chain.dtype,
        key=jax.random.key(0) if key is None else key,
        top=min(max(count, 2), width),
        tolerance=tolerance,
    )
    sigma, residual = found.sigma, found.residual
    sigma_top = jnp.concatenate([sigma[:, :count], sigma[:, count : count + 1]], axis=1)
    return assemble(
        sigma,
        sigma_top,
        found.U[:, :, :count],
        found.V[:, :, :count],
        # an estimate that did not converge says nothing about its distance from the truth
        residual=jnp.where(found.converged, residual, jnp.inf),
        certified=jnp.zeros_like(found.converged),
    )


def _matvec(w: Any, x: Any) -> Any:
    return jnp.einsum("lij,lj->li", w, x)


def _rmatvec(w: Any, y: Any) -> Any:
    return jnp.einsum("li,lij->lj", y, w)


@functools.partial(jax.jit, static_argnames=("count", "one_by_one"))
def svd_triplets(w: Any, count: int, *, one_by_one: bool = False) -> Triplets:
    """Decompose layers by LAPACK's SVD and bound what the factors fail to reproduce.

    Parameters
    ----------
    w : (L, D, D). count : triplets kept for the top-K bound.
    one_by_one : decompose layer by layer. XLA shares the matrices of one LAPACK call out among its threads and waits;
        where as many calls run as there are processor cores, that waiting costs more than it gains.
    """
    depth, width = w.shape[:2]
    svd = functools.partial(jnp.linalg.svd, full_matrices=False)
    left, sigma, right = jax.lax.map(svd, w) if one_by_one else svd(w)
    right = jnp.swapaxes(right, -1, -2)
    eye = jnp.eye(width, dtype=w.dtype)
    frobenius = lambda x: norm(x, axis=(-2, -1))
    factors = jax.lax.stop_gradient((left, sigma, right, w))
    lf, sf, rf, wf = factors
    misfit = frobenius(wf - (lf * sf[:, None, :]) @ jnp.swapaxes(rf, -1, -2))
    defect = frobenius(jnp.swapaxes(lf, -1, -2) @ lf - eye) + frobenius(jnp.swapaxes(rf, -1, -2) @ rf - eye)
    eps = float(jnp.finfo(w.dtype).eps)
    residual = misfit + sf[:, 0] * (defect + width * eps)
    padded = jnp.concatenate([sigma, jnp.zeros((depth, 2), w.dtype)], axis=1)
    return assemble(
        padded,
        padded[:, : count + 1],
        left[:, :, :count],
        right[:, :, :count],
        residual=residual,
        certified=jnp.isfinite(residual),
    )


@jax.jit
def assemble(
    sigma: Any, sigma_top: Any, left: Any, right: Any, *, residual: Any, certified: Any, excess: Any = 0.0
) -> Triplets:
    r"""Fix signs, couple neighbouring layers and propagate the residual to every derived number.

    Parameters
    ----------
    sigma : (L, >=2)  leading singular values (>= 1 where D = 1).
    sigma_top : (L, K+1), left, right : (L, D, K)  of the top-K bound.
    residual : (L,)  absolute.
    certified : (L,) bool
    excess : (L,)  by how much :math:`\sigma_2` may exceed its estimate beyond the residual.
    """
    width = left.shape[1]
    eps = float(jnp.finfo(left.dtype).eps)
    peak = jnp.take_along_axis(left, jnp.argmax(jnp.abs(left), axis=1)[:, None, :], axis=1)
    sign = jax.lax.stop_gradient(jnp.where(peak < 0, -1.0, 1.0).astype(left.dtype))
    left, right = left * sign, right * sign
    u, v = left[:, :, 0], right[:, :, 0]
    first = sigma[:, 0]
    second = sigma[:, 1] if width > 1 else jnp.zeros_like(first)
    positive = first > 0
    zero_xi = 0.0 if width == 1 else 1.0  # a zero matrix has every direction tied
    xi = jnp.where(positive, second / jnp.where(positive, first, 1.0), jnp.where(first == 0, zero_xi, jnp.nan))

    kappa = jnp.einsum("ld,ld->l", v[1:], u[:-1])
    misalignment = norm(v[1:] - kappa[:, None] * u[:-1], axis=1)
    defect = 0.5 * norm(u[:-1] - jnp.where(kappa < 0, -1.0, 1.0)[:, None] * v[1:], axis=1) ** 2
    rho = first[:-1] * jnp.abs(kappa)

    gap = first - second
    known = gap - residual - excess
    sine = jnp.where(known > 0, math.sqrt(2.0) * residual / jnp.where(known > 0, known, 1.0), 1.0)
    vector_error = jnp.arcsin(jnp.clip(jnp.where(jnp.isnan(sine), 1.0, sine), 0.0, 1.0))
    resolved = (residual <= 1e-3 * gap) & (gap > 64 * width * eps * first) & (known > 0)

    coupling_error = vector_error[:-1] + vector_error[1:]
    phi = jnp.arctan2(misalignment, jnp.abs(kappa))
    low, high = jnp.clip(phi - coupling_error, 0.0), jnp.clip(phi + coupling_error, None, math.pi / 2)
    chord = lambda a, b: 2 * jnp.sin((a + b) / 2) * jnp.sin(jnp.abs(a - b) / 2)  # |cos a - cos b| without cancellation
    kappa_error = jnp.maximum(chord(low, phi), chord(high, phi)) + 2 * eps
    # what may lie above the second value's estimate may lie above the first's too
    sigma_error = residual + jnp.clip(excess - gap, 0.0)
    rho_error = first[:-1] * kappa_error + sigma_error[:-1] * (jnp.abs(kappa) + kappa_error)
    relative = jnp.clip(rho_error / jnp.where(rho > 0, rho, 1.0), None, 1.0)
    lam_error = jnp.where(rho > 0, -jnp.log1p(-relative), jnp.inf)
    least = first - residual
    off = sigma_error * (1 + xi) + excess
    xi_error = jnp.where(least > 0, jnp.minimum(off / jnp.where(least > 0, least, 1.0), 1.0), 1.0)
    return Triplets(
        sigma=jnp.stack([first, second], axis=1),
        u=u,
        v=v,
        xi=xi,
        kappa=kappa,
        misalignment=misalignment,
        alignment_defect=defect,
        rho=rho,
        lam=log_of(rho),
        residual=residual,
        gap=gap,
        vector_error=vector_error,
        coupling_error=coupling_error,
        kappa_error=kappa_error,
        rho_error=rho_error,
        lam_error=lam_error,
        sigma_error=sigma_error,
        sigma2_error=residual + excess,
        xi_error=xi_error,
        resolved=resolved,
        certified=certified,
        U=left,
        V=right,
        sigma_top=sigma_top,
    )
