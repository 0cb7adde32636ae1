r"""Verify a chain that is known by products only: nothing of the size of W or G is ever written down.

Conditions and bounds come from a small chain that reads the same; norms of products and of
:math:`R_\Sigma` from the products themselves, and what those may be off by goes into the verdicts.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from .closed import ReadingSpaces, isometric_rows, reading_spaces, stand_in
from .path import dominant_path
from .products import Products, ResidualNorm, cone_output, identity_error, log_product_norms, residual_norm
from .scaled import Scaled, norm
from .types import Thresholds, Triplets, container
from .verification import Verification, judge

_BYTES = 2**26  # aimed-at size of the rows that are reduced at once


@container
class WideVerification:
    r"""Hold what was found of a wide chain.

    Attributes
    ----------
    verification : `Verification`; vectors in it are coordinates, and there is no :math:`R_\Sigma` but its norm.
    residual : `ResidualNorm`, how that norm was found.
    """

    verification: Verification
    residual: ResidualNorm


def verify_wide(
    products: Products,
    triplets: Triplets,
    norms: Any,
    thresholds: Thresholds | None = None,
    *,
    key: Any = None,
    sketch: int = 16,
    probes: int = 32,
) -> WideVerification:
    r"""Check the theorem on a chain that is known by products.

    **Claim** all of `CLAIMS`, with the verdicts of `verify` or UNDECIDED where an estimate decides nothing.

    Parameters
    ----------
    products : of the chain.
    triplets : of it, certified or estimates, with vectors written out.
    norms : (L,)  exact :math:`\|G_l\|_F`.
    thresholds : as in `verify`.
    key : PRNG key of starts and probes.
    sketch, probes : as in `residual_norm`.

    Returns
    -------
    WideVerification

    Notes
    -----
    :math:`\|R_\Sigma\|_F` is a point with an interval of probability 0.95. Its half-width is an allowance of the claims
    about it, so that inside the interval none of them holds or fails. Products with the context: about
    :math:`\sum_k(2K+L-k)` for the rows, 100 times L for the residual.

    References
    ----------
    docs/theory/whisper.md#a-small-chain-for-a-wide-one.

    Examples
    --------
    >>> import spectral_theorem as st
    >>> from spectral_theorem.products import dense_products
    >>> w, g = jax.random.normal(jax.random.key(0), (2, 3, 9, 9))
    >>> chain = st.LayerChain(w, g)
    >>> found = verify_wide(dense_products(chain), st.decompose(chain), jnp.linalg.norm(g, axis=(1, 2)))
    >>> exact = st.verify(chain)
    >>> bool(abs(found.verification.bounds.log_row_exact - exact.bounds.log_row_exact) < 1e-4)
    True
    """
    for_norms, for_residual, for_identity = jax.random.split(jax.random.key(0) if key is None else key, 3)
    spaces = reading_spaces(products.pull, triplets)
    chain, moved = stand_in(spaces, _rows(products, spaces), norms, triplets)
    path = dominant_path(chain, moved)
    residual = residual_norm(products, triplets, path, key=for_residual, sketch=sketch, probes=probes)
    log_norms = log_product_norms(products, triplets, key=for_norms)
    cone = cone_output(products, triplets)
    verification = _judged(
        chain,
        moved,
        residual,
        identity_error(products, triplets, path, key=for_identity),
        log_norms,
        _seen(cone, spaces.bases[-1], chain.width),
        Thresholds() if thresholds is None else thresholds,
    )
    return WideVerification(verification, residual)


def _rows(products: Products, spaces: ReadingSpaces) -> list[Any]:
    """Return Q^T G for the injections that meet a later layer, in isometric coordinates; None where G is zero."""
    used = [k for k in range(products.depth - 1) if products.injects[k]]
    if not used:
        return [None] * (products.depth - 1)
    rows = [spaces.bases[k].T for k in used]
    counts = [len(some) for some in rows]
    frame = products.context_size // products.frames
    step = max(1, _BYTES // (sum(counts) * frame * jnp.dtype(products.dtype).itemsize))

    def parts() -> Iterator[Any]:
        for start in range(0, products.frames, step):
            stop = min(start + step, products.frames)
            yield jnp.concatenate([products.read(k, some, start, stop) for k, some in zip(used, rows, strict=True)])

    short = isometric_rows(parts())
    found: list[Any] = [None] * (products.depth - 1)
    first = 0
    for k, count in zip(used, counts, strict=True):
        found[k] = short[first : first + count]
        first += count
    return found


def _seen(x: Scaled, basis: Any, small: int) -> Scaled:
    """Return a vector of the last state in the coordinates of the small chain: what is not read keeps its length."""
    inside = jnp.matmul(basis.T, x.value, precision="highest")
    outside = x.value - jnp.matmul(basis, inside, precision="highest")
    value = jnp.zeros((small,), x.value.dtype).at[: inside.shape[0]].set(inside)
    if basis.shape[1] < basis.shape[0]:
        value = value.at[small - 1].set(norm(outside))
    return Scaled(value=value, log=x.log)


@functools.partial(jax.jit, static_argnames="thresholds")
def _judged(
    chain: Any,
    triplets: Triplets,
    residual: ResidualNorm,
    log_identity: Any,
    log_norms: Any,
    cone: Scaled,
    thresholds: Thresholds,
) -> Verification:
    path = dominant_path(chain, triplets)
    nan = jnp.full_like(path.residual, jnp.nan)
    # of the small chain's R only the row along u_L is that of the real one
    path = dataclasses.replace(
        path, residual=nan, residual_unit=nan, log_residual_norm=residual.log_norm, log_identity_error=log_identity
    )
    allowance = jnp.exp(residual.log_error - path.log_scale)
    return judge(
        chain,
        triplets,
        path,
        thresholds,
        log_products=log_norms,
        lyapunov=log_norms[:1] / chain.depth,
        residual_allowance=jnp.where(jnp.isfinite(path.log_scale), allowance, 0.0),
        cone=cone,
    )
