"""Verify one chain, or many: conditions, claims, bounds and regime in one traceable call."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .bounds import Bounds, residual_bounds
from .chaingains import log_products
from .claims import CLAIMS, ClaimTable, Evidence, evaluate
from .coherence import Coherence, coherence_direction
from .conditions import Conditions, check_conditions
from .path import DominantPath, Spine, dense, dominant_path, signed_rows, spine
from .regimes import RegimeReport, classify
from .scaled import Scaled, log_norm, norm, scaled
from .summary import to_plain
from .triplets import decompose, svd_triplets
from .types import Thresholds, Triplets, Verdict, container, refuse, tolerance

__all__ = ["CLAIMS", "Verification", "verify", "verify_many"]


@container
class Verification:
    """Hold everything found about one chain; `to_dict` gives it as plain JSON-ready values.

    `conditions[name]` is a `Condition`, `claims[name]` a `Claim`; `coherence_solution` is the
    solved H3 problem. Under vmap every leaf has a leading batch axis.
    """

    conditions: Conditions
    claims: ClaimTable
    triplets: Triplets
    path: DominantPath
    bounds: Bounds
    regime: RegimeReport
    coherence_solution: Coherence
    thresholds: Thresholds

    @property
    def violated(self) -> tuple[str, ...]:
        """Names of violated claims; empty when the theory stands on this chain."""
        return tuple(name for name, claim in self.claims.items() if claim.verdict == Verdict.VIOLATED)

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values (NaN and inf as None), for one chain, outside jit."""
        return to_plain(self)


def verify(chain: Any, thresholds: Thresholds | None = None) -> Verification:
    r"""Check one chain against the theorem: conditions, claims, bounds, regime.

    **Claim** all of `CLAIMS`; unconditional ones are always evaluated, C1 and C2 only where the
    conditions they need hold.

    Parameters
    ----------
    chain : LayerChain, or OperatorChain (compressed to an isometric context basis first).
    thresholds : recorded with every verdict; default `Thresholds()`.

    Returns
    -------
    Verification

    Notes
    -----
    One jitted call outside; traceable, so `jax.vmap(verify)` and `jax.lax.map` work. Cost
    O(L D^3 + L^2 + L D^2 C). For many chains use `verify_many`, which bounds memory.

    References
    ----------
    docs/theory/index.md (every claim with its proof), docs/guides/certificates.md (how to read it).

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> chain = st.ensembles.planted(jax.random.key(0), layers=4, width=4, context=3, sigma=1.02,
    ...     kappa=0.9999, xi=0.001, gamma=0.5, coherence=0.9)
    >>> found = st.verify(chain)
    >>> found.violated, found.claims["c2"].verdict.name, found.regime.naive.name
    ((), 'HOLDS', 'ATTRACTOR')
    """
    return _verify(dense(chain), Thresholds() if thresholds is None else thresholds)


def verify_many(chains: Any, thresholds: Thresholds | None = None, *, batch_size: int = 8) -> Verification:
    """Verify a batch of chains in one jitted call with memory bounded by `batch_size`.

    Parameters
    ----------
    chains : LayerChain with a leading batch axis on every leaf, e.g. from `jax.vmap(planted)`.
    thresholds : as in `verify`.
    batch_size : chains worked on at once.

    Returns
    -------
    Verification with a leading batch axis.

    Raises
    ------
    InputError
        When `chains` is one chain, or `batch_size` is not a whole number of at least 1.

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> plant = lambda key: st.ensembles.planted(key, layers=3, width=2, context=2, sigma=1.02,
    ...     kappa=0.9999, xi=0.001, gamma=0.5, coherence=0.9)
    >>> found = st.verify_many(jax.vmap(plant)(jax.random.split(jax.random.key(0), 5)))
    >>> [v.name for v in found.claims["identity"].verdict]
    ['HOLDS', 'HOLDS', 'HOLDS', 'HOLDS', 'HOLDS']
    """
    w = getattr(chains, "propagators", None)
    if callable(w) or getattr(w, "ndim", 0) != 4:
        refuse(
            f"chains of type {type(chains).__name__} and not with propagators (B, L, D, D)",
            "a LayerChain with a leading batch axis",
            "st.verify(chain) for one chain",
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        refuse(f"batch_size={batch_size!r}", "a whole number >= 1", "batch_size=8")
    return _verify_many(chains, Thresholds() if thresholds is None else thresholds, batch_size)


@functools.partial(jax.jit, static_argnames=("thresholds", "batch_size"))
def _verify_many(chains: Any, thresholds: Thresholds, batch_size: int) -> Verification:
    # `jax.lax.map(batch_size=...)` compiles a second body for what is left over, and fails on leaves of size zero
    n = chains.propagators.shape[0]
    rounds = -(-n // batch_size)
    index = jnp.minimum(jnp.arange(rounds * batch_size), n - 1).reshape(rounds, batch_size)
    several = jax.vmap(lambda i: _verify(jax.tree.map(lambda leaf: leaf[i], chains), thresholds))
    found = jax.lax.map(several, index)
    return jax.tree.map(lambda leaf: leaf.reshape(rounds * batch_size, *leaf.shape[2:])[:n], found)


@functools.partial(jax.jit, static_argnames="thresholds")
def _verify(chain: Any, thresholds: Thresholds) -> Verification:
    triplets = decompose(chain)
    path = dominant_path(chain, triplets)
    return judge(chain, triplets, path, thresholds, log_products=log_products(chain))


def verify_one_by_one(chain: Any, thresholds: Thresholds) -> Verification:
    """Check one LayerChain as `verify` does, entering LAPACK matrix by matrix: one of many calls that run at once."""
    triplets = svd_triplets(chain.propagators, min(2, chain.width), one_by_one=True)
    path = dominant_path(chain, triplets)
    return judge(chain, triplets, path, thresholds, log_products=log_products(chain, one_by_one=True))


def judge(
    chain: Any,
    triplets: Triplets,
    path: DominantPath,
    thresholds: Thresholds,
    *,
    log_products: Any,
    lyapunov: Any = None,
    allowance: Any = 0.0,
    residual_allowance: Any = 0.0,
    cone: Scaled | None = None,
) -> Verification:
    r"""Check a chain whose triplets, dominant path and products are known already.

    Parameters
    ----------
    chain : LayerChain. triplets, path : of it.
    thresholds : recorded with every verdict.
    log_products : (L,)  :math:`\log\|W_L\cdots W_l\|_2` for l = 1..L.
    lyapunov : exponents, if they were computed otherwise.
    allowance : what the given numbers may be off by, in units of each statement's scale, beyond rounding.
    residual_allowance : the same for claims about :math:`\|R_\Sigma\|_F` alone.
    cone : (D,)  :math:`W_L\cdots W_{first}v_{first}`, if it was computed otherwise.

    Returns
    -------
    Verification

    Notes
    -----
    Traceable. This is `verify` without the decompositions, for routes that have cheaper ones.
    """
    s = spine(chain, triplets)
    coherence = coherence_direction(signed_rows(s)) if s.length else coherence_direction(s.direct[:1] * 0)
    bounds = residual_bounds(chain, triplets, path=path, coherence=coherence)
    conditions = check_conditions(chain, triplets, thresholds, coherence=coherence)
    regime = classify(chain, triplets, thresholds, bounds=bounds, lyapunov=lyapunov)
    cone = _cone_output(s) if cone is None else cone
    evidence = Evidence(
        chain=chain,
        spine=s,
        triplets=triplets,
        path=path,
        bounds=bounds,
        conditions=conditions,
        regime=regime,
        thresholds=thresholds,
        log_products=log_products,
        cone_output=cone.value / jnp.where(norm(cone.value) > 0, norm(cone.value), 1.0),
        log_cone_output=log_norm(cone),
        allowance=jnp.asarray(tolerance(chain) + allowance, chain.dtype),
        residual_allowance=residual_allowance,
    )
    return Verification(
        conditions=conditions,
        claims=evaluate(evidence),
        triplets=triplets,
        path=path,
        bounds=bounds,
        regime=regime,
        coherence_solution=coherence,
        thresholds=thresholds,
    )


def _cone_output(s: Spine) -> Scaled:
    """Return W_L...W_first v_first."""

    def forward(x: Scaled, w: Any) -> tuple[Scaled, None]:
        return scaled(w @ x.value, x.log), None

    start = scaled(s.v[0]) if s.length else scaled(jnp.ones_like(s.direct[:, 0]))
    output, _ = jax.lax.scan(forward, start, s.propagators)
    return output
