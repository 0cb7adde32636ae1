r"""The registry of claims: every inequality of the theory, with the conditions it needs.

A claim looks at computed numbers only and gives its two sides; one vectorised judgement serves all.
Tests, `verify`, reports and searches for counterexamples read this registry and nothing else.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .bounds import Bounds
from .conditions import PARTS, Conditions, projections
from .judgement import all_of, as_table, decide
from .path import DominantPath, Spine, first_layer, log_gains
from .regimes import RegimeReport
from .scaled import log_of, norm
from .types import Claim, Reason, Thresholds, Triplets, Verdict, container


class Evidence(NamedTuple):
    """Hold what a claim may look at: the chain's computed numbers, never how the chain was made."""

    chain: Any
    spine: Spine
    triplets: Triplets
    path: DominantPath
    bounds: Bounds
    conditions: Conditions
    regime: RegimeReport
    thresholds: Thresholds
    log_products: Any  # (L,) log ||W_L...W_l|| for l = 1..L
    cone_output: Any  # (D,) unit direction of W_L...W_first v_first
    log_cone_output: Any  # () log of its norm
    allowance: Any  # () rounding allowance in units of the scale
    residual_allowance: Any = 0.0  # () what ||R_Sigma||_F may be off by beyond that, in the same units


class Sides(NamedTuple):
    """Hold both sides of a claim as logs, the log of its unit, and how it is to be read.

    Arrays of one shape, () or (n,). `equal`: the sides coincide by construction. `amplify`
    multiplies the rounding allowance where the scale hides a cancellation; `beyond` is added to it
    where a side was estimated.
    """

    left: Any
    right: Any
    scale: Any
    equal: Any = False
    amplify: Any = 1.0
    beyond: Any = 0.0


@dataclasses.dataclass(frozen=True)
class ClaimSpec:
    """Describe one claim: statement, kind, the conditions it needs, and how its sides are computed."""

    statement: str
    kind: str  # "equality" | "upper" | "lower"
    sides: Callable[[Evidence], Sides]
    needs: tuple[str, ...] = ()
    needs_context: bool = True
    applies: Callable[[Evidence], Any] | None = None  # bool array, for claims about certificates


def _bound(left: str, right: str) -> Callable[[Evidence], Sides]:
    """Compare two logs named on the path or the bounds, in units of sum_k S_{L,k}||G_k||_F."""

    def sides(e: Evidence) -> Sides:
        look = lambda name: getattr(e.path if hasattr(e.path, name) else e.bounds, name)
        nothing = jnp.isneginf(e.path.log_scale)  # no injection: both sides are 0
        whole = e.triplets.U.shape[-1] == e.chain.width and "top_k" in left + right
        beyond = _beyond(e) if "log_residual_norm" in (left, right) else 0.0
        return Sides(look(left), look(right), e.path.log_scale, equal=nothing | whole, beyond=beyond)

    return sides


def _beyond(e: Evidence) -> Any:
    return jnp.asarray(e.residual_allowance, e.chain.dtype)


def _identity(e: Evidence) -> Sides:
    # J_L is added up from G_L too, and is known to that many units of rounding
    scale = jnp.logaddexp(e.path.log_scale, log_of(norm(e.spine.direct)))
    return Sides(e.path.log_identity_error, -jnp.inf, scale)


def _c1(e: Evidence) -> Sides:
    gammas, present, sizes = projections(e.spine)
    gamma = jnp.min(jnp.where(present, gammas, jnp.inf))
    left = log_of(gamma) - 0.5 * math.log(2) + log_of(jnp.sum(sizes))
    return Sides(left, e.path.log_psi_norm, e.path.log_scale)


def _c2(e: Evidence) -> Sides:
    first = first_layer(e.chain)
    gammas, present, _ = projections(e.spine)
    gamma = jnp.min(jnp.where(present, gammas, jnp.inf))
    xi = jnp.max(e.triplets.xi[first:])
    epsilon = jnp.max(e.triplets.alignment_defect[first:], initial=0.0)
    n = e.spine.length  # L-1 terms without `initial`, L with it; n-1 couplings
    ratio = 0.5 * math.log(2) + log_of(xi) + math.log(n) - log_of(gamma) - (n - 1) * jnp.log1p(-epsilon)
    return Sides(e.path.log_residual_norm, ratio + e.path.log_psi_norm, e.path.log_scale, beyond=_beyond(e))


def _propagators(e: Evidence) -> Sides:
    gains = jnp.flip(jnp.cumsum(jnp.flip(log_of(e.triplets.sigma[:, 0]))))[1:]
    # one layer is its own norm, and in the plane two layers are known exactly
    exact = {1: gains.shape[0], 2: 2}.get(e.chain.width, 1)
    last = jnp.arange(gains.shape[0]) >= gains.shape[0] - exact
    return Sides(e.log_products[1:], e.bounds.log_propagator_norm, gains, equal=last)


def _total(e: Evidence) -> Sides:
    gain = jnp.sum(log_of(e.triplets.sigma[:, 0]))
    same = e.chain.depth <= {1: e.chain.depth, 2: 2}.get(e.chain.width, 1)
    return Sides(e.log_products[0], e.bounds.log_total_norm, gain, equal=jnp.asarray(same))


def _misfit(e: Evidence) -> Any:
    """Return by how many allowances W v = sigma u is off along the spine: the cone follows u, the product W v."""
    sigma = jnp.where(e.spine.sigma > 0, e.spine.sigma, 1.0)
    return jnp.sum(e.triplets.residual[first_layer(e.chain) :] / sigma) / e.allowance


def _cone_growth(e: Evidence) -> Sides:
    gain, same = log_gains(e.spine)[0], e.chain.width == 1
    return Sides(e.regime.log_tracked_growth, e.log_cone_output, gain, equal=same, amplify=1 + _misfit(e))


def _cone_angle(e: Evidence) -> Sides:
    along = jnp.abs(e.cone_output @ e.spine.u[-1])
    across = norm(e.cone_output - (e.cone_output @ e.spine.u[-1]) * e.spine.u[-1])
    angle = jnp.arctan2(across, along)
    zero = jnp.zeros_like(angle)
    # the direction of a product that shrank by S/growth is known only to that many units of rounding
    amplify = jnp.exp(log_gains(e.spine)[0] - e.log_cone_output) * (1 + _misfit(e))
    return Sides(log_of(angle), log_of(e.regime.output_angle), zero, amplify=amplify)


def _dispersion(e: Evidence) -> Sides:
    first = first_layer(e.chain)
    remaining = jnp.arange(e.spine.length, 0, -1)
    right = math.log(e.thresholds.dispersion_constant) - e.thresholds.dispersion_rate * remaining
    return Sides(e.log_products[first:], right, right, amplify=jnp.exp(jnp.clip(log_gains(e.spine) - right, 0.0)))


_DISPERSIVE = lambda e: e.regime.dispersion_margin > e.allowance
_CONE = lambda e: e.regime.cone_margin > e.allowance

CLAIMS: Mapping[str, ClaimSpec] = {
    "identity": ClaimSpec("J_L = u_L Psi^T + G_L + R_Sigma, R_Sigma by two routes", "equality", _identity),
    "residual_transfer": ClaimSpec(
        "||R_Sigma||_F <= transfer bound", "upper", _bound("log_residual_norm", "log_transfer")
    ),
    "residual_damped": ClaimSpec("||R_Sigma||_F <= damped bound", "upper", _bound("log_residual_norm", "log_damped")),
    "transfer_telescoping": ClaimSpec(
        "transfer bound <= telescoping bound", "upper", _bound("log_transfer", "log_telescoping")
    ),
    "telescoping_paper": ClaimSpec(
        "telescoping bound <= the paper's bound", "upper", _bound("log_telescoping", "log_paper")
    ),
    "row_exact_upper": ClaimSpec(
        "||R_Sigma||_F <= row-exact bound", "upper", _bound("log_residual_norm", "log_row_exact")
    ),
    "row_exact_lower": ClaimSpec(
        "sigma_L ||v_L^T R_{L-1}|| <= ||R_Sigma||_F", "lower", _bound("log_row_exact_lower", "log_residual_norm")
    ),
    "top_k_upper": ClaimSpec("||R_Sigma||_F <= top-K bound", "upper", _bound("log_residual_norm", "log_top_k")),
    "top_k_lower": ClaimSpec(
        "top-K lower bound <= ||R_Sigma||_F", "lower", _bound("log_top_k_lower", "log_residual_norm")
    ),
    "propagator_norm": ClaimSpec("||W_L...W_{k+1}|| <= bound, every k", "upper", _propagators, needs_context=False),
    "total_norm": ClaimSpec("||W_L...W_1|| <= bound", "upper", _total, needs_context=False),
    "psi_lower_sharp": ClaimSpec(
        "d sum_k |A_Lk| ||v_{k+1}^T G_k|| <= ||Psi||", "lower", _bound("log_psi_lower_sharp", "log_psi_norm")
    ),
    "psi_lower": ClaimSpec(
        "(gamma/sqrt2) sum_k |A_Lk| ||G_k||_F <= ||Psi||",
        "lower",
        _bound("log_psi_lower", "log_psi_norm"),
        needs=("coherence",),
    ),
    "c1": ClaimSpec("(gamma/sqrt2) sum_k ||G_k||_F <= ||Psi||", "lower", _c1, needs=("stability", "coherence")),
    "c2": ClaimSpec(
        "||R_Sigma||_F / ||Psi|| <= sqrt2 xi (L-1) / (gamma (1-eps_kappa)^(L-2))",
        "upper",
        _c2,
        needs=("stability", "alignment", "coherence", "purity"),
    ),
    "dispersion": ClaimSpec(
        "||W_L...W_{k+1}|| <= K0 exp(-delta (L-k)), every k",
        "upper",
        _dispersion,
        needs_context=False,
        applies=_DISPERSIVE,
    ),
    "cone_growth": ClaimSpec(
        "tracked cone growth <= ||W_L...W_{k+1} v_{k+1}||, first k",
        "lower",
        _cone_growth,
        needs_context=False,
        applies=_CONE,
    ),
    "cone_angle": ClaimSpec(
        "angle(W_L...W_{k+1} v_{k+1}, u_L) <= tracked aperture, first k",
        "upper",
        _cone_angle,
        needs_context=False,
        applies=_CONE,
    ),
}


@container
class ClaimTable:
    """Hold every claim of the registry as columns; a mapping from name to `Claim`, cut out on access."""

    log_left: Float[Array | np.ndarray, "*batch N"]
    log_right: Float[Array | np.ndarray, "*batch N"]
    slack: Float[Array | np.ndarray, "*batch N"]
    tolerance: Float[Array | np.ndarray, "*batch N"]
    code: Int[Array | np.ndarray, "*batch N"]
    reason_code: Int[Array | np.ndarray, "*batch N"]

    def __getitem__(self, name: str) -> Claim:
        """Return the claim of that name."""
        i = tuple(CLAIMS).index(name)
        return Claim(**{column: getattr(self, column)[..., i] for column in type(self).__dataclass_fields__})

    def __iter__(self) -> Iterator[str]:
        return iter(CLAIMS)

    def __len__(self) -> int:
        return len(CLAIMS)

    def items(self) -> list[tuple[str, Claim]]:
        """Return (name, claim) in the order of the registry."""
        return [(name, self[name]) for name in CLAIMS]


def too_loose(spec: ClaimSpec, t: Thresholds) -> bool:
    """Say whether thresholds are looser than the theorem's own where a claim rests on them: they imply nothing then."""
    loose = {"stability": min(t.gain, t.cumulative_gain) < 1, "coherence": t.coherence < math.sqrt(0.5) - 1e-12}
    return any(loose.get(name, False) for name in spec.needs)


def evaluate(e: Evidence) -> ClaimTable:
    """Turn the two sides of every claim into slack, tolerance and verdict, all claims at once."""
    dtype, length = e.chain.dtype, e.chain.depth
    present = [not spec.needs_context or bool(e.chain.context_size) for spec in CLAIMS.values()]
    if e.spine.length == 0 or not any(present):
        nan = jnp.full((len(CLAIMS),), jnp.nan, dtype)
        code = jnp.full((len(CLAIMS),), Verdict.NOT_APPLICABLE, jnp.int32)
        reason = jnp.full((len(CLAIMS),), Reason.SINGLE_LAYER, jnp.int32)
        return ClaimTable(log_left=nan, log_right=nan, slack=nan, tolerance=nan, code=code, reason_code=reason)
    sides = [spec.sides(e) for spec in CLAIMS.values()]

    def column(field: str, kind: Any) -> Any:
        return as_table([jnp.broadcast_to(getattr(x, field), jnp.shape(x.left)) for x in sides], length, 0, kind)

    left, right, scale = (column(field, dtype) for field in ("left", "right", "scale"))
    equal, amplify = column("equal", bool), column("amplify", dtype)
    real = np.arange(length) < np.asarray([[jnp.size(side.left)] for side in sides])  # the rest is padding
    equality = np.asarray([[spec.kind == "equality"] for spec in CLAIMS.values()])

    unit = jnp.where(jnp.isneginf(scale), 0.0, scale)
    low, high = jnp.exp(left - unit), jnp.exp(right - unit)
    slack = jnp.where(jnp.isposinf(high) & jnp.isfinite(low), jnp.inf, high - low)
    allowance = e.allowance * amplify + column("beyond", dtype)
    # with one propagator on the spine, or in one dimension, the sides of every claim coincide or are far apart
    equal = equal | (e.spine.length == 1 or e.chain.width == 1)
    code, reason = decide(slack, allowance, equal=equal | equality)
    # an equality beyond its allowance is violated on either side
    code = jnp.where(equality & (code == Verdict.HOLDS) & (slack > allowance), Verdict.VIOLATED, code)
    reason = jnp.where(equality & (reason == Reason.EQUAL_BY_CONSTRUCTION), Reason.NONE, reason)
    code, reason = jnp.where(real, code, Verdict.HOLDS), jnp.where(real, reason, Reason.NONE)
    binding = jnp.argmin(jnp.where(real, jnp.where(equal, jnp.finfo(dtype).max, slack), jnp.inf), axis=1)
    pick = lambda x: jnp.take_along_axis(x, binding[:, None], axis=1)[:, 0]
    code, reason = all_of(code.T, reason.T)

    needs = np.asarray([[name in spec.needs for name in PARTS] for spec in CLAIMS.values()])
    given = jnp.stack([e.conditions[name].code for name in PARTS])
    unknown = jnp.any(needs & (given == Verdict.UNDECIDED), axis=1)
    # a violated or absent condition outranks an undecided one
    lost = jnp.any(needs & ((given == Verdict.VIOLATED) | (given == Verdict.NOT_APPLICABLE)), axis=1)
    lost = lost | ~jnp.stack(
        [jnp.asarray(True if spec.applies is None else spec.applies(e)) for spec in CLAIMS.values()]
    )
    lost = lost | np.asarray([too_loose(spec, e.thresholds) for spec in CLAIMS.values()])
    code = jnp.where(lost, Verdict.NOT_APPLICABLE, jnp.where(unknown, Verdict.UNDECIDED, code))
    reason = jnp.where(lost | unknown, Reason.NEEDS_CONDITION, reason)
    absent = ~np.asarray(present)
    return ClaimTable(
        log_left=jnp.where(absent, jnp.nan, pick(left)),
        log_right=jnp.where(absent, jnp.nan, pick(right)),
        slack=jnp.where(absent, jnp.nan, pick(slack)),
        tolerance=jnp.where(absent, jnp.nan, pick(allowance)),
        code=jnp.where(absent, Verdict.NOT_APPLICABLE, code).astype(jnp.int32),
        reason_code=jnp.where(absent, Reason.NO_CONTEXT, reason).astype(jnp.int32),
    )
