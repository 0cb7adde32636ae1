r"""Bounds against the true residual at every depth: what the chain would say if it ended there."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .bounds import row_exact, upper_alignment
from .factors import transfer_factors_by_depth
from .path import dense, first_layer, residual_by_depth, row_projections, spine
from .scaled import log_of, norm
from .types import Triplets, container


@container
class DepthProfile:
    """Hold, for the chain cut off after each spine layer, logs of the residual and of its bounds, (n,) each.

    Entry i is depth i+2 without `initial` (the first depth with a residual), i+1 with it.
    """

    log_residual: Float[Array, "*batch n"]
    log_paper: Float[Array, "*batch n"]
    log_telescoping: Float[Array, "*batch n"]
    log_transfer: Float[Array, "*batch n"]
    log_row_exact: Float[Array, "*batch n"]
    log_row_exact_lower: Float[Array, "*batch n"]
    log_scale: Float[Array, "*batch n"]

    def to_dict(self, depth: int) -> dict[str, list[Any]]:
        """Return plain lists and the depths they belong to, for a chain of that depth; no NaN, no inf."""
        count = self.log_scale.shape[0]
        plain = lambda x: [float(v) if jnp.isfinite(v) else None for v in x]
        lists = {name: plain(jax.device_get(getattr(self, name))) for name in type(self).__dataclass_fields__}
        return {"depth": list(range(depth - count + 1, depth + 1))} | lists


def depth_profile(chain: Any, triplets: Triplets) -> DepthProfile:
    r"""Evaluate the residual and its bounds at every depth.

    .. math:: \|R_{\Sigma,l}\|_F \le \mathrm{transfer}_l \le \mathrm{telescoping}_l \le \mathrm{paper}_l

    Parameters
    ----------
    chain : LayerChain or OperatorChain. triplets : its Triplets.

    Returns
    -------
    DepthProfile

    Notes
    -----
    One pass: the recursions of the residual and of every bound visit each depth anyway. O(L^2) memory.
    The last entry equals what `residual_bounds` gives.

    References
    ----------
    docs/theory/bounds.md.

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> chain = st.ensembles.planted(jax.random.key(0), layers=5, width=4, context=3, sigma=1.02,
    ...     kappa=0.999, xi=0.01, gamma=0.5, coherence=0.9)
    >>> profile = st.depth_profile(chain, st.decompose(chain))
    >>> bool((profile.log_residual <= profile.log_transfer + 1e-6).all()), profile.to_dict(5)["depth"]
    (True, [2, 3, 4, 5])
    """
    return _depth_profile(dense(chain), triplets)


@jax.jit
def _depth_profile(chain: Any, triplets: Triplets) -> DepthProfile:
    s = spine(chain, triplets)
    n = s.length
    if n == 0:
        return DepthProfile(**dict.fromkeys(DepthProfile.__dataclass_fields__, jnp.zeros((0,), chain.dtype)))  # pyright: ignore[reportArgumentType]
    kappa, misalignment = (x[first_layer(chain) :] for x in upper_alignment(triplets))
    factors = transfer_factors_by_depth(s.xi, kappa, misalignment)
    rows = row_projections(s)
    along = norm(rows, axis=1)
    across = norm(s.sources - s.v[:, :, None] * rows[:, None, :], axis=(1, 2))
    size = norm(s.sources, axis=(1, 2))
    passed = jnp.arange(n)[:, None] >= jnp.arange(n)  # row: depth, column: injection
    # cumulative sums from each injection to each depth, without differences of -inf
    gains = jnp.where(passed, jnp.cumsum(jnp.where(passed, log_of(s.sigma)[:, None], 0.0), axis=0), -jnp.inf)
    impurity = jnp.cumsum(jnp.where(passed, s.xi[:, None], 0.0), axis=0)
    total = lambda logs: jax.nn.logsumexp(gains + jnp.where(passed, logs, 0.0), axis=1)
    sides = row_exact(s)
    return DepthProfile(
        log_residual=residual_by_depth(s)[1],
        log_paper=total(log_of(impurity) + log_of(size)),
        log_telescoping=total(factors.telescoped + log_of(size)),
        log_transfer=total(jnp.logaddexp(factors.along + log_of(along), factors.across + log_of(across))),
        log_row_exact=sides["row_exact"],
        log_row_exact_lower=sides["row_exact_lower"],
        log_scale=total(jnp.broadcast_to(log_of(size), (n, n))),
    )
