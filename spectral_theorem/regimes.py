r"""What a chain does with a perturbation: certified decay, certified attraction, or neither.

The certificates use scalars of layers only (sigma, kappa, xi) and are sharp in them. The paper's
reading of rho alone stands beside each, so that a reader sees where the two differ.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .bounds import Bounds, residual_bounds, upper_alignment
from .conditions import projections
from .path import Spine, dense, first_layer, spine
from .scaled import log_of
from .types import Regime, Thresholds, Triplets, as_member, container, refuse, tolerance

_BLOCK = 4  # layers between two QR factorisations where only a start is wanted


@container
class Phase:
    r"""Hold the scalar phase diagram's answer.

    Attributes
    ----------
    growth_rate : :math:`\sigma r^*`, the largest growth per layer that (sigma, kappa, xi) allow; attained.
    cone_rate : :math:`\sigma r_-`, the least growth per layer inside the cone; NaN where no cone exists.
    code : `Regime` as an integer; `.regime` gives members outside jit.
    """

    growth_rate: Float[Array, "*shape"]
    cone_rate: Float[Array, "*shape"]
    code: Int[Array, "*shape"]

    @property
    def regime(self) -> Any:
        """`Regime` member(s) outside jit, integer code inside."""
        return as_member(self.code, Regime)


def phase(sigma: Any, kappa: Any, xi: Any) -> Phase:
    r"""Place constant scalars in the phase diagram.

    .. math:: r^*=\tfrac12\big[\kappa(1-\xi)+\sqrt{\kappa^2(1-\xi)^2+4\xi}\big],\quad
       r_-=\tfrac12\big[\kappa(1+\xi)+\sqrt{\kappa^2(1+\xi)^2-4\xi}\big]

    **Claim** phase (tight): :math:`\sigma r^*<1` certifies dispersion; :math:`s<(1-\xi)/(1+\xi)` and
    :math:`\sigma r_-\ge1` certify an attractor; in between the scalars cannot decide.

    Parameters
    ----------
    sigma, kappa, xi : numbers or arrays that broadcast; sigma > 0, |kappa| <= 1, 0 <= xi <= 1.

    Returns
    -------
    Phase

    Raises
    ------
    InputError
        Outside those ranges (checked outside jit).

    Notes
    -----
    kappa enters by its absolute value. Beyond the cone threshold a plane rotation for ever is possible.

    References
    ----------
    docs/theory/growth.md, docs/theory/attractor.md (derived; both rates attained in D = 2).

    Examples
    --------
    >>> found = phase(3.0, 0.1, 0.9)   # rho = 0.3, and yet:
    >>> round(float(found.growth_rate), 2), found.regime.name
    (2.86, 'INDETERMINATE')
    """
    given = {"sigma": sigma, "kappa": kappa, "xi": xi}
    rules = {"sigma": lambda x: x > 0, "kappa": lambda x: abs(x) <= 1, "xi": lambda x: (x >= 0) & (x <= 1)}
    for name, value in given.items():
        if not isinstance(value, Tracer) and not np.all(rules[name](np.asarray(value))):
            refuse(
                f"{name}={value}", "sigma > 0, |kappa| <= 1, 0 <= xi <= 1", f"phase(1.02, 0.9999, 0.01), mending {name}"
            )
    sigma, kappa, xi = jnp.broadcast_arrays(*(jnp.asarray(x, jnp.result_type(float)) for x in given.values()))
    kappa = jnp.abs(kappa)
    s = jnp.sqrt((1 - kappa) * (1 + kappa))
    # (kappa(1-xi))^2 + 4 xi = (1+xi)^2 - s^2 (1-xi)^2: no cancellation, exact at kappa = 1
    growth = 0.5 * sigma * (kappa * (1 - xi) + jnp.sqrt((kappa * (1 - xi)) ** 2 + 4 * xi))
    inside = s * (1 + xi) < 1 - xi
    square = (1 - xi - s * (1 + xi)) * (1 - xi + s * (1 + xi))  # = (kappa(1+xi))^2 - 4 xi
    cone = 0.5 * sigma * (kappa * (1 + xi) + jnp.sqrt(jnp.where(inside, square, 0.0)))
    cone = jnp.where(inside, cone, jnp.nan)
    code = jnp.where(growth < 1, Regime.DISPERSIVE, Regime.INDETERMINATE)
    code = jnp.where(inside & (cone >= 1), Regime.ATTRACTOR, code)
    return Phase(growth_rate=growth, cone_rate=cone, code=code)


@container
class RegimeReport:
    r"""Hold the certified regime of one chain and everything it rests on.

    Attributes
    ----------
    code : certified `Regime`; `.regime` gives the member.
    naive_code : the paper's reading, all rho < 1 dispersive, all rho >= 1 attractor, where rho is defined;
        `.naive` gives the member.
    dispersion_margin : ()  smallest of log K0 - delta (L-k) - log bound_k, nats; > 0 certifies decay.
    dispersion_rate : ()  -log(bound_1)/(L-1) in nats per layer, the certified mean decay.
    cone_margin : ()  1 - max_j xi_{j+1} chi_j chi_{j+1}; > 0 certifies an invariant cone.
    log_contraction : ()  log of the product of those factors (projective metric).
    log_cone_growth : ()  log of prod sigma_j / chi_j.
    log_tracked_growth : ()  the sharper product along the tracked aperture from v_{k+1}; NaN without certificate.
    output_angle : ()  certified angle (radians) between the output and u_L; NaN without certificate.
    caught : (n,) bool  which injections of the spine enter the cone as a block.
    lyapunov : (D,)  finite-time Lyapunov exponents of W_L...W_1, nats per layer, descending; the leading ones
        only where that is all that was asked for. Routes that make no sweep give one number, log ||W_L...W_1|| / L.
    """

    code: Int[Array, "*batch"]
    naive_code: Int[Array, "*batch"]
    dispersion_margin: Float[Array, "*batch"]
    dispersion_rate: Float[Array, "*batch"]
    cone_margin: Float[Array, "*batch"]
    log_contraction: Float[Array, "*batch"]
    log_cone_growth: Float[Array, "*batch"]
    log_tracked_growth: Float[Array, "*batch"]
    output_angle: Float[Array, "*batch"]
    caught: Bool[Array, "*batch n"]
    lyapunov: Float[Array, "*batch exponents"]

    @property
    def regime(self) -> Any:
        """`Regime` member outside jit, integer code inside."""
        return as_member(self.code, Regime)

    @property
    def naive(self) -> Any:
        """The paper's reading, a `Regime` member outside jit."""
        return as_member(self.naive_code, Regime)


@jax.jit
def lyapunov_exponents(propagators: Any) -> Any:
    r"""Return finite-time Lyapunov exponents of a product of matrices by QR.

    .. math:: \lambda_i = \frac1L\sum_l \log|r_{ii}^{(l)}|,\qquad W_l Q_{l-1} = Q_l R_l

    Parameters
    ----------
    propagators : (L, D, D).

    Returns
    -------
    (D,) exponents in nats per layer, sorted descending; -inf for a singular product.

    Notes
    -----
    The first basis comes from the same sweep through the transposed layers, backwards: it is close to
    the right singular vectors of the product, so a shallow chain is not charged for a start in an
    arbitrary direction. Any orthonormal start gives exact volume growth of its own directions, so that sweep
    orthonormalises every fourth layer only. O(L D^3).

    References
    ----------
    docs/theory/growth.md#lyapunov-exponents; the QR method is standard (Benettin et al., 1980).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in lyapunov_exponents(jnp.stack([jnp.diag(jnp.asarray([2.0, 0.5]))] * 5))]
    [0.6931, -0.6931]
    """
    depth, width = propagators.shape[:2]

    def step(q: Any, w: Any) -> tuple[Any, Any]:
        q, r = jnp.linalg.qr(w @ q)
        return q, jnp.diag(r)

    eye = jnp.eye(width, dtype=propagators.dtype)
    # only a start is wanted of the sweep back, which may therefore do with one QR for a few layers
    pad = jnp.broadcast_to(eye, (-depth % _BLOCK, width, width))
    blocks = jnp.concatenate([propagators, pad]).reshape(-1, _BLOCK, width, width)
    together = blocks[:, 0]
    for i in range(1, _BLOCK):
        together = blocks[:, i] @ together
    start, _ = jax.lax.scan(step, eye, together.mT, reverse=True)
    _, diagonals = jax.lax.scan(step, start, propagators)
    return -jnp.sort(-jnp.sum(log_of(jnp.abs(diagonals)), axis=0) / depth)


def classify(
    chain: Any,
    triplets: Triplets,
    thresholds: Thresholds | None = None,
    *,
    bounds: Bounds | None = None,
    lyapunov: Any = None,
) -> RegimeReport:
    r"""Certify what the chain does, and say what the paper's criterion would have said.

    **Claim** dispersion (upper): DISPERSIVE when :math:`\log\mathrm{bound}_k\le\log K_0-\delta(L-k)` for all k.
    **Claim** cone_growth, cone_angle (lower, upper): ATTRACTOR when :math:`\xi_{j+1}\chi_j\chi_{j+1}<1` for all j,
    their product is at most `contraction`, and the tracked growth is at least 1.

    Parameters
    ----------
    chain, triplets : as elsewhere. thresholds : K0, delta and contraction are free choices, recorded.
    bounds, lyapunov : reuse what was already computed.

    Returns
    -------
    RegimeReport

    Notes
    -----
    Upper ends of s, kappa, xi enter the cone certificate. A single propagator on the spine is
    INDETERMINATE unless it disperses: there is no coupling to contract.

    References
    ----------
    docs/theory/growth.md#dispersion, docs/theory/attractor.md.

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> chain = st.ensembles.planted(jax.random.key(0), layers=16, width=4, context=3, sigma=1.02,
    ...     kappa=0.9999, xi=0.001, gamma=0.5, coherence=0.9)
    >>> found = st.classify(chain, st.decompose(chain))
    >>> found.regime.name, found.naive.name
    ('ATTRACTOR', 'ATTRACTOR')
    """
    return _classify(dense(chain), triplets, bounds, lyapunov, Thresholds() if thresholds is None else thresholds)


@functools.partial(jax.jit, static_argnames="thresholds")
def _classify(
    chain: Any, triplets: Triplets, bounds: Bounds | None, lyapunov: Any, thresholds: Thresholds
) -> RegimeReport:
    bounds = residual_bounds(chain, triplets) if bounds is None else bounds
    first = first_layer(chain)
    s = spine(chain, triplets)
    n = s.length
    lyapunov = lyapunov_exponents(chain.propagators) if lyapunov is None else lyapunov
    nan = jnp.asarray(jnp.nan, chain.dtype)
    if n == 0:
        code = jnp.asarray(Regime.INDETERMINATE, jnp.int32)
        return RegimeReport(
            code=code,
            naive_code=code,
            dispersion_margin=nan,
            dispersion_rate=nan,
            cone_margin=nan,
            log_contraction=nan,
            log_cone_growth=nan,
            log_tracked_growth=nan,
            output_angle=nan,
            caught=jnp.zeros((0,), bool),
            lyapunov=lyapunov,
        )
    allowance = tolerance(chain)
    log_bound = bounds.log_propagator_norm if first else jnp.append(bounds.log_total_norm, bounds.log_propagator_norm)
    remaining = jnp.arange(n, 0, -1)
    margins = jnp.log(thresholds.dispersion_constant) - thresholds.dispersion_rate * remaining - log_bound
    dispersion_margin = jnp.min(margins)
    cone = _cone(s, triplets, first)
    attracts = (
        (cone["cone_margin"] > allowance)
        & (cone["log_contraction"] <= jnp.log(thresholds.contraction))
        & (cone["log_tracked_growth"] >= -allowance)
    )
    code = jnp.where(dispersion_margin > allowance, Regime.DISPERSIVE, Regime.INDETERMINATE)
    code = jnp.where(attracts & (n > 1), Regime.ATTRACTOR, code)
    rho = triplets.rho[first:]
    defined = jnp.all(triplets.resolved[first:]) & (n > 1)  # a tie leaves rho without meaning
    naive = jnp.where(defined & jnp.all(rho < 1), Regime.DISPERSIVE, Regime.INDETERMINATE)
    naive = jnp.where(defined & jnp.all(rho >= 1), Regime.ATTRACTOR, naive)
    return RegimeReport(
        code=code.astype(jnp.int32),
        naive_code=naive.astype(jnp.int32),
        dispersion_margin=dispersion_margin,
        dispersion_rate=-log_bound[0] / n,
        lyapunov=lyapunov,
        **cone,
    )


def _cone(s: Spine, triplets: Triplets, first: int) -> dict[str, Any]:
    """Check the invariant cone and track its aperture from v of the first layer of the spine."""
    _, misalignment = (x[first:] for x in upper_alignment(triplets))
    xi = jnp.clip(s.xi + jnp.where(triplets.resolved[first:], triplets.xi_error[first:], 0.0), None, 1.0)
    kappa = jnp.sqrt((1 - misalignment) * (1 + misalignment))
    below = 1 - misalignment
    chi = jnp.where(below > 0, jnp.sqrt((1 + misalignment) / jnp.maximum(below, jnp.finfo(below.dtype).tiny)), jnp.inf)
    chi = jnp.concatenate([chi, jnp.ones((1,), chi.dtype)])  # chi_L = 1: nothing follows
    # orthogonal neighbours (chi infinite) break the cone even at xi = 0: nothing arrives
    blocked = jnp.isinf(chi[:-1]) | jnp.isinf(chi[1:])
    factor = jnp.where(blocked, jnp.inf, xi[1:] * chi[:-1] * chi[1:])
    margin = 1 - jnp.max(factor, initial=0.0)
    sure = margin > 0

    def step(state: Any, layer: Any) -> tuple[Any, None]:
        aperture, growth = state
        k, sine, x = layer
        rest = k - sine * x * aperture
        ahead = (sine + k * x * aperture) / jnp.where(rest > 0, rest, 1.0)
        return (jnp.where(rest > 0, ahead, jnp.inf), growth + jnp.where(rest > 0, log_of(rest), -jnp.inf)), None

    zero = jnp.zeros((), xi.dtype)
    (aperture, shrink), _ = jax.lax.scan(step, (zero, zero), (kappa, misalignment, xi[:-1]))
    total = jnp.sum(log_of(s.sigma))
    gammas, present, _ = projections(s)
    # an injection enters as a block when its off-path part is inside the widest aperture that is mapped back
    reach = xi * jnp.where(jnp.isinf(chi), 0.0, chi)
    limit = jnp.where(reach > 0, 1 / jnp.where(reach > 0, reach, 1.0), jnp.inf)
    off = jnp.sqrt(jnp.clip((1 - gammas) * (1 + gammas), 0.0))
    return {
        "cone_margin": margin,
        "log_contraction": jnp.sum(log_of(factor)),
        "log_cone_growth": total - jnp.sum(jnp.log(chi)),
        "log_tracked_growth": jnp.where(sure, total + shrink, jnp.nan),
        "output_angle": jnp.where(sure, jnp.arctan(xi[-1] * aperture), jnp.nan),
        "caught": present & (off <= limit * gammas) & sure,
    }
