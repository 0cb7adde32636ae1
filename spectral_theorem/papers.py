r"""The paper's readings of its two regimes, word for word as inequalities, so that they can be tried.

None of them is a claim of this project (docs/theory/necessity.md). They speak of the gains
:math:`\rho_j = \sigma_{1,j}|\kappa_j|` alone, and "decays", "persists" and "is attracted" need numbers: here a factor
:math:`K_0` (the threshold `dispersion_constant`, 10) and an angle of 45 degrees.

Beside them stand the theorem's conclusions without its hypotheses, so that what breaks one can be replayed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .ballchain import BallChain, Unresolved
from .ballclaims import CLAIM_SLACKS
from .balls import frobenius, number
from .claims import CLAIMS, Evidence
from .path import dominant_path, spine
from .scaled import Scaled, log_norm, log_of, norm, scaled
from .types import Thresholds, Verdict


class Reading(NamedTuple):
    """Hold one statement on one chain: the least margin of its hypothesis, both sides of its conclusion as logs."""

    hypothesis: Any
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Statement:
    """Describe one reading: in words, in floating point, and as slacks of hypothesis and conclusion in balls."""

    statement: str
    sides: Callable[[Any, Any, Thresholds], Reading]
    slacks: Callable[[BallChain, Thresholds], tuple[list[Any], Any]]


def _product(propagators: Any) -> Scaled:
    """Return W_L...W_1."""
    step = lambda p, w: (scaled(w @ p.value, p.log), None)
    return jax.lax.scan(step, scaled(propagators[0]), propagators[1:])[0]


def _largest(product: Scaled) -> Any:
    return log_of(jnp.linalg.svd(product.value, compute_uv=False)[0]) + product.log


def _decay(chain: Any, triplets: Any, t: Thresholds) -> Reading:
    room = -jnp.max(log_of(triplets.rho))
    return Reading(room, _largest(_product(chain.propagators)), jnp.asarray(math.log(t.dispersion_constant)))


def _persistence(chain: Any, triplets: Any, t: Thresholds) -> Reading:
    room = jnp.min(log_of(triplets.rho))
    size = _largest(_product(chain.propagators))
    return Reading(room, jnp.full_like(size, -math.log(t.dispersion_constant)), size)


def _attraction(chain: Any, triplets: Any, t: Thresholds) -> Reading:
    room = jnp.min(log_of(triplets.rho))
    step = lambda x, w: (scaled(w @ x.value, x.log), None)
    output = jax.lax.scan(step, scaled(triplets.v[0]), chain.propagators)[0]
    along = jnp.abs(output.value @ triplets.u[-1])
    across = norm(output.value - (output.value @ triplets.u[-1]) * triplets.u[-1])
    unit = log_norm(output) - output.log
    return Reading(room, log_of(across) - unit, log_of(along) - unit)


def _gains(c: BallChain) -> list[Any]:
    return [c.sigma(j) * abs(c.coupling(j)[0]) for j in range(c.depth - 1)]


def _decay_slacks(c: BallChain, t: Thresholds) -> tuple[list[Any], Any]:
    return [1 - x for x in _gains(c)], number(t.dispersion_constant) - c.product_norm(0)


def _persistence_slacks(c: BallChain, t: Thresholds) -> tuple[list[Any], Any]:
    return [x - 1 for x in _gains(c)], c.product_norm(0) - 1 / number(t.dispersion_constant)


def _attraction_slacks(c: BallChain, t: Thresholds) -> tuple[list[Any], Any]:
    output, u = c.carried(0) * c.vectors(0)[1], c.vectors(c.depth - 1)[0]
    along = (u.transpose() * output)[0, 0]
    return [x - 1 for x in _gains(c)], abs(along) - frobenius(output - u * along)


READINGS: Mapping[str, Statement] = {
    "paper:decay": Statement(
        "rho < 1 in every layer means that ||W_L...W_1|| decays: it is at most K0", _decay, _decay_slacks
    ),
    "paper:persistence": Statement(
        "rho >= 1 in every layer means that ||W_L...W_1|| does not decay: it is at least 1/K0",
        _persistence,
        _persistence_slacks,
    ),
    "paper:attraction": Statement(
        "rho >= 1 in every layer means that W_L...W_1 v_1 ends within 45 degrees of u_L",
        _attraction,
        _attraction_slacks,
    ),
}


DOMINANCE = 0.16  # what H1 to H4 at the default thresholds imply for the residual over Psi


def _bare(chain: Any, triplets: Any) -> Evidence:
    """Collect what the conclusions look at, and nothing else."""
    nothing: Any = None
    return Evidence(
        chain=chain,
        spine=spine(chain, triplets),
        triplets=triplets,
        path=dominant_path(chain, triplets),
        bounds=nothing,
        conditions=nothing,
        regime=nothing,
        thresholds=nothing,
        log_products=nothing,
        cone_output=nothing,
        log_cone_output=nothing,
        allowance=nothing,
    )


def _conclusion(name: str) -> Callable[[Any, Any, Thresholds], Reading]:
    def sides(chain: Any, triplets: Any, t: Thresholds) -> Reading:
        found = CLAIMS[name].sides(_bare(chain, triplets))
        return Reading(jnp.asarray(jnp.inf), found.left, found.right)

    return sides


def _dominance(chain: Any, triplets: Any, t: Thresholds) -> Reading:
    path = dominant_path(chain, triplets)
    return Reading(jnp.asarray(jnp.inf), path.log_residual_norm, path.log_psi_norm + math.log(DOMINANCE))


def _claim_slacks(name: str) -> Callable[[BallChain, Thresholds], tuple[list[Any], Any]]:
    return lambda c, t: ([], CLAIM_SLACKS[name](c, t)[0].ball)


CONCLUSIONS: Mapping[str, Statement] = {
    "bare:c1": Statement(
        "(gamma/sqrt2) sum_k ||G_k||_F <= ||Psi||, whatever holds", _conclusion("c1"), _claim_slacks("c1")
    ),
    "bare:c2": Statement(
        "||R_Sigma||_F / ||Psi|| <= sqrt2 xi (L-1) / (gamma (1-eps_kappa)^(L-2)), whatever holds",
        _conclusion("c2"),
        _claim_slacks("c2"),
    ),
    "bare:dominance": Statement(
        f"||R_Sigma||_F <= {DOMINANCE} ||Psi||, whatever holds",
        _dominance,
        lambda c, t: ([], number(DOMINANCE) * frobenius(c.psi) - frobenius(c.residual)),
    ),
}
STATEMENTS = {**READINGS, **CONCLUSIONS}


def judge(name: str, chain: Any, triplets: Any, thresholds: Thresholds, allowance: float) -> tuple[Verdict, float]:
    """Return the verdict of one reading on one chain, and log(right) - log(left).

    Parameters
    ----------
    name : out of `STATEMENTS`. chain, triplets : outside jit. thresholds : for K0.
    allowance : what logarithms may be off by.

    Examples
    --------
    >>> import spectral_theorem as st
    >>> chain = st.ensembles.growing_despite_rho_below_one(8)
    >>> judge("paper:decay", chain, st.decompose(chain), st.Thresholds(), 1e-9)[0].name
    'VIOLATED'
    """
    reading = jax.device_get(STATEMENTS[name].sides(chain, triplets, thresholds))
    room, slack = float(reading.hypothesis), float(reading.right - reading.left)
    if math.isnan(room) or math.isnan(slack) or abs(room) <= allowance:
        return Verdict.UNDECIDED, slack
    if room < 0:
        return Verdict.NOT_APPLICABLE, slack
    if abs(slack) <= allowance:
        return Verdict.UNDECIDED, slack
    return (Verdict.HOLDS if slack > 0 else Verdict.VIOLATED), slack


def prove(name: str, chain: BallChain, thresholds: Thresholds) -> Verdict:
    """Return the verdict in ball arithmetic, at the precision in force; UNDECIDED where it is not enough."""
    try:
        rooms, slack = STATEMENTS[name].slacks(chain, thresholds)
    except (Unresolved, ZeroDivisionError):
        return Verdict.UNDECIDED
    if any(x < 0 for x in rooms):
        return Verdict.NOT_APPLICABLE
    if not all(x >= 0 for x in rooms):
        return Verdict.UNDECIDED
    if slack < 0:
        return Verdict.VIOLATED
    return Verdict.HOLDS if slack >= 0 else Verdict.UNDECIDED
