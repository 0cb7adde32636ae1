r"""The four hypotheses of the theorem, each with value, threshold, margin and a three-valued verdict.

A condition that speaks of every layer is judged entry by entry and joined by "and": one entry that
surely fails decides, and one entry that nobody can decide keeps the whole undecided.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .bounds import signed_rows
from .coherence import Coherence, coherence_direction
from .path import Spine, dense, first_layer, log_gains, row_projections, spine
from .scaled import norm
from .types import Condition, Reason, Thresholds, Triplets, Verdict, all_of, container, decide, tolerance


@container
class Conditions:
    """Hold the four hypotheses: stability (H1), alignment (H2), coherence (H3), purity (H4)."""

    stability: Condition
    alignment: Condition
    coherence: Condition
    purity: Condition

    def items(self) -> list[tuple[str, Condition]]:
        """Return (name, condition) pairs in the theorem's order."""
        return [(name, getattr(self, name)) for name in ("stability", "alignment", "coherence", "purity")]


def check_conditions(
    chain: Any, triplets: Triplets, thresholds: Thresholds | None = None, *, coherence: Coherence | None = None
) -> Conditions:
    r"""Check H1-H4 with margins.

    .. math:: \text{H1: } \rho_j\ge1,\ S_{L,k}\ge1;\quad \text{H2: } \varepsilon_\kappa L\ll1;\quad
       \text{H3: } \gamma,\ \max_\psi\min_k\langle g_k,\psi\rangle\ge1/\sqrt2;\quad \text{H4: } \xi L/\gamma\ll1

    Parameters
    ----------
    chain : LayerChain or OperatorChain.
    triplets : its Triplets.
    thresholds : what stands for "much less than"; recorded with every verdict.
    coherence : the solution of the H3 problem, if already computed.

    Returns
    -------
    Conditions
        Each a `Condition`; `.stability.parts` has gain and cumulative_gain, `.coherence.parts` has
        projection (a), directionality (b) and sign_consistency (b and c together, by the exact convex
        problem); parts named `*_literal` take the paper's literal index ranges and decide nothing.

    Notes
    -----
    Ranges are those the proof uses: kappa, rho over j = 2..L-1, xi over j = 2..L, gamma and coherence
    over k = 1..L-1; one lower with `initial`. Directionality alone is not convex: a witness proves it,
    an average disproves it, otherwise it is UNDECIDED.

    References
    ----------
    docs/theory/statement.md (hypotheses as the paper states them), docs/theory/rigour.md (verdicts).

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> chain = st.ensembles.planted(jax.random.key(0), layers=4, width=4, context=3, sigma=1.02,
    ...     kappa=0.9999, xi=0.001, gamma=0.5, coherence=0.9)
    >>> found = st.check_conditions(chain, st.decompose(chain))
    >>> found.alignment.verdict.name, found.purity.verdict.name
    ('HOLDS', 'HOLDS')
    """
    return _check(dense(chain), triplets, coherence, Thresholds() if thresholds is None else thresholds)


@functools.partial(jax.jit, static_argnames="thresholds")
def _check(chain: Any, triplets: Triplets, coherence: Coherence | None, thresholds: Thresholds) -> Conditions:
    s = spine(chain, triplets)
    if s.length == 0:
        nothing = _absent(chain, Reason.SINGLE_LAYER)
        return Conditions(stability=nothing, alignment=nothing, coherence=nothing, purity=nothing)
    first = first_layer(chain)
    status = _Status(chain, triplets)
    return Conditions(
        stability=_stability(s, triplets, status, first, thresholds),
        alignment=_alignment(triplets, status, first, thresholds),
        coherence=_coherence(s, triplets, status, first, thresholds, coherence),
        purity=_purity(s, triplets, status, first, thresholds),
    )


class _Status:
    """Say which layers and couplings are known, and why not."""

    def __init__(self, chain: Any, triplets: Triplets) -> None:
        self.depth, self.dtype, self.has_context = chain.depth, chain.dtype, bool(chain.context_size)
        self.allowance = jnp.asarray(tolerance(chain), chain.dtype)
        eps = float(jnp.finfo(chain.dtype).eps)
        tie = triplets.gap <= 64 * chain.width * eps * triplets.sigma[:, 0]
        broken = jnp.isnan(triplets.sigma[:, 0])
        why = jnp.where(tie, Reason.TIE, Reason.UNRESOLVED)
        self.layer_known = triplets.resolved
        self.layer_reason = jnp.where(broken, Reason.NAN, why)
        self.coupling_known = triplets.resolved[:-1] & triplets.resolved[1:]
        self.coupling_reason = jnp.where(triplets.resolved[:-1], self.layer_reason[1:], self.layer_reason[:-1])


def _condition(value: Any, threshold: float, margin: Any, error: Any, layer: Any, code: Any, reason: Any, parts: Any = None) -> Condition:
    value = jnp.asarray(value)
    cast = lambda x: jnp.asarray(x, value.dtype)
    return Condition(
        value=value,
        threshold=cast(threshold),
        margin=cast(margin),
        error=cast(error),
        layer=jnp.asarray(layer, jnp.int32),
        code=jnp.asarray(code, jnp.int32),
        reason_code=jnp.asarray(reason, jnp.int32),
        parts={} if parts is None else parts,
    )


def _absent(chain: Any, reason: Reason) -> Condition:
    nan = jnp.asarray(jnp.nan, chain.dtype)
    return _condition(nan, float("nan"), nan, nan, 0, Verdict.NOT_APPLICABLE, reason)


def _between(low: Any, high: Any, allowance: Any) -> tuple[Any, Any]:
    """Decide slack >= 0 when the exact slack lies in [low, high]."""
    sure, why = decide(low, allowance)
    lost, _ = decide(high, allowance)
    failed = lost == Verdict.VIOLATED
    code = jnp.where(failed, Verdict.VIOLATED, jnp.where(sure == Verdict.HOLDS, Verdict.HOLDS, Verdict.UNDECIDED))
    undecided = jnp.where(why == Reason.NAN, Reason.NAN, Reason.WITHIN_TOLERANCE)
    return code, jnp.where(code == Verdict.UNDECIDED, undecided, Reason.NONE)


def _every(slack: Any, error: Any, known: Any, why: Any, allowance: Any) -> tuple[Any, Any]:
    """Decide that every entry has slack >= 0; entries not known are undecided."""
    code, reason = _between(slack - error, slack + error, allowance)
    code = jnp.where(known, code, Verdict.UNDECIDED)
    return all_of(code, jnp.where(known, reason, why))


def _vacuous(value: Any, threshold: float, margin: Any) -> Condition:
    return _condition(value, threshold, margin, jnp.zeros_like(value), 0, Verdict.HOLDS, Reason.VACUOUS)


def _gain(triplets: Triplets, status: _Status, start: int, threshold: float) -> Condition:
    """Judge rho_j >= threshold for the couplings j = start+1 .. L-1."""
    rho = triplets.rho[start:]
    if rho.shape[0] == 0:
        infinite = jnp.asarray(jnp.inf, status.dtype)
        return _vacuous(infinite, threshold, infinite)
    worst = jnp.argmin(rho)
    code, reason = _every(
        rho - threshold,
        triplets.rho_error[start:],
        status.coupling_known[start:],
        status.coupling_reason[start:],
        status.allowance,
    )
    error = triplets.rho_error[start:][worst]
    return _condition(rho[worst], threshold, rho[worst] - threshold, error, worst + start + 1, code, reason)


def _stability(s: Spine, triplets: Triplets, status: _Status, first: int, thresholds: Thresholds) -> Condition:
    gain = _gain(triplets, status, first, thresholds.gain)
    logs = log_gains(s)
    relative = triplets.sigma_error[first:] / jnp.where(s.sigma > 0, s.sigma, 1.0)
    log_error = jnp.flip(jnp.cumsum(jnp.flip(-jnp.log1p(-jnp.clip(relative, None, 0.5)))))
    worst = jnp.argmin(logs)
    total = jnp.exp(logs)
    unknown = jnp.isnan(logs)
    code, reason = _every(
        logs - jnp.log(thresholds.cumulative_gain),
        log_error,
        ~unknown,
        jnp.where(unknown, Reason.NAN, Reason.NONE),
        status.allowance,
    )
    error = total[worst] * jnp.expm1(log_error[worst])
    margin = total[worst] - thresholds.cumulative_gain
    cumulative = _condition(total[worst], thresholds.cumulative_gain, margin, error, worst + first, code, reason)
    code, reason = all_of(jnp.stack([gain.code, cumulative.code]), jnp.stack([gain.reason_code, cumulative.reason_code]))
    pick = lambda a, b: jnp.where(gain.margin <= cumulative.margin, a, b)
    parts = {
        "gain": gain,
        "cumulative_gain": cumulative,
        "gain_literal": _gain(triplets, status, 0, thresholds.gain),
    }
    return _condition(
        pick(gain.value, cumulative.value),
        thresholds.gain,
        pick(gain.margin, cumulative.margin),
        pick(gain.error, cumulative.error),
        pick(gain.layer, cumulative.layer),
        code,
        reason,
        parts,
    )


def _misaligned(triplets: Triplets, status: _Status, start: int, threshold: float) -> Condition:
    """Judge (1 - |kappa_j|) L <= threshold for the couplings j = start+1 .. L-1."""
    defect = triplets.alignment_defect[start:]
    if defect.shape[0] == 0:
        zero = jnp.zeros((), status.dtype)
        return _vacuous(zero, threshold, zero + threshold)
    phi = jnp.arctan2(triplets.misalignment, jnp.abs(triplets.kappa))[start:]
    wide = jnp.clip(phi + triplets.coupling_error[start:], None, jnp.pi / 2)
    error = 2 * jnp.sin(wide / 2) ** 2 - 2 * jnp.sin(phi / 2) ** 2  # 1 - cos is convex: the upper end is farther
    value, error = defect * status.depth, error * status.depth
    worst = jnp.argmax(value)
    known, why = status.coupling_known[start:], status.coupling_reason[start:]
    code, reason = _every(threshold - value, error, known, why, status.allowance)
    return _condition(value[worst], threshold, threshold - value[worst], error[worst], worst + start + 1, code, reason)


def _alignment(triplets: Triplets, status: _Status, first: int, thresholds: Thresholds) -> Condition:
    used = _misaligned(triplets, status, first, thresholds.alignment)
    literal = _misaligned(triplets, status, 0, thresholds.alignment)
    return _condition(
        used.value,
        thresholds.alignment,
        used.margin,
        used.error,
        used.layer,
        used.code,
        used.reason_code,
        {"alignment_literal": literal},
    )


def projections(s: Spine) -> tuple[Any, Any, Any]:
    """Return gamma_k = ||v_{k+1}^T G_k|| / ||G_k||_F, which injections are non-zero, and the rows' norms."""
    size = norm(s.sources, axis=(1, 2))
    present = ~(size == 0)
    along = norm(row_projections(s), axis=1)
    return jnp.where(present, along / jnp.where(present, size, 1.0), 1.0), present, along


def _no_injection(present: Any, condition: Condition, status: _Status) -> Condition:
    """Replace a verdict by NOT_APPLICABLE where every injection is zero (or there is no context)."""
    empty = ~present.any()
    return Condition(
        value=jnp.where(empty, jnp.nan, condition.value),
        threshold=condition.threshold,
        margin=jnp.where(empty, jnp.nan, condition.margin),
        error=jnp.where(empty, jnp.nan, condition.error),
        layer=jnp.where(empty, 0, condition.layer),
        code=jnp.where(empty, Verdict.NOT_APPLICABLE, condition.code).astype(jnp.int32),
        reason_code=jnp.where(empty, Reason.NO_CONTEXT, condition.reason_code).astype(jnp.int32),
        parts={name: _no_injection(present, part, status) for name, part in condition.parts.items()},
    )


def _coherence(
    s: Spine, triplets: Triplets, status: _Status, first: int, thresholds: Thresholds, solved: Coherence | None
) -> Condition:
    gammas, present, _ = projections(s)
    angle = triplets.vector_error[first:]
    known = status.layer_known[first:] | ~present
    why = status.layer_reason[first:]
    slack = jnp.where(present, gammas - thresholds.gamma_min, jnp.inf)
    code, reason = _every(slack, angle, known, why, status.allowance)
    worst = jnp.argmin(slack)
    number = worst + first  # 1-based index k of the injection, 0 for `initial`
    projection = _condition(gammas[worst], thresholds.gamma_min, slack[worst], angle[worst], number, code, reason)

    rows = signed_rows(s)
    solved = coherence_direction(rows) if solved is None else solved
    ratio = jnp.where(present & (gammas > 0), angle / jnp.where(gammas > 0, gammas, 1.0), 0.0)
    error = jnp.clip(jnp.max(ratio), None, 2.0)
    unsure = (triplets.kappa_error >= jnp.abs(triplets.kappa))[first:]
    # a sign matters only between injections, so couplings after the first present one
    unsure = jnp.any(unsure & (jnp.cumsum(present)[:-1] > 0)) if unsure.shape[0] else jnp.asarray(False)
    blind = ~jnp.all(known) | unsure
    least = solved.value - error - thresholds.coherence
    most = solved.upper + error - thresholds.coherence
    code, reason = _between(least, most, status.allowance)
    gap_to_blame = (code == Verdict.UNDECIDED) & (solved.gap > status.allowance) & (reason != Reason.NAN)
    reason = jnp.where(gap_to_blame, Reason.DUALITY_GAP, reason)
    tied = jnp.where(jnp.all(known), Reason.UNSURE_SIGN, why[jnp.argmin(known)])
    code, reason = jnp.where(blind, Verdict.UNDECIDED, code), jnp.where(blind, tied, reason)
    slack = solved.value - thresholds.coherence
    signs = _condition(solved.value, thresholds.coherence, slack, error + solved.gap, 0, code, reason)

    direction = _directionality(rows, solved, error, status, thresholds, known, why)
    code, reason = all_of(
        jnp.stack([projection.code, signs.code]), jnp.stack([projection.reason_code, signs.reason_code])
    )
    parts = {"projection": projection, "directionality": direction, "sign_consistency": signs}
    whole = _condition(
        signs.value, thresholds.coherence, jnp.minimum(signs.margin, projection.margin), signs.error, 0, code, reason, parts
    )
    return _no_injection(present, whole, status)


def _directionality(
    rows: Any, solved: Coherence, error: Any, status: _Status, thresholds: Thresholds, known: Any, why: Any
) -> Condition:
    """Judge H3(b) alone: |<g_k, psi>| >= 1/sqrt2 for one psi, signs ignored.

    Witnesses: psi0, and the optimum for the signs that the mean direction suggests. Refutation:
    the largest eigenvalue of the mean of g g^T bounds the smallest squared projection.
    """
    size = norm(rows, axis=1)
    present = ~(size == 0)
    unit = rows / jnp.where(present, size, 1.0)[:, None]
    left, sizes, right = jnp.linalg.svd(unit, full_matrices=False)
    sign = jnp.where(unit @ right[0] < 0, -1.0, 1.0)
    other = coherence_direction(sign[:, None] * rows)
    aligned = jnp.min(jnp.where(present, jnp.abs(unit @ solved.psi0), jnp.inf))
    value = jnp.maximum(jnp.where(jnp.isinf(aligned), 0.0, aligned), other.value)
    upper = jnp.maximum(sizes[0] / jnp.sqrt(jnp.maximum(present.sum(), 1)), value)
    code, reason = _between(
        value - error - thresholds.coherence, upper + error - thresholds.coherence, status.allowance
    )
    all_known = jnp.all(known)
    code = jnp.where(all_known, code, Verdict.UNDECIDED)
    reason = jnp.where(all_known, reason, why[jnp.argmin(known)])
    slack = value - thresholds.coherence
    return _condition(value, thresholds.coherence, slack, error + upper - value, 0, code, reason)


def _impurity(s: Spine, triplets: Triplets, status: _Status, first: int, start: int, threshold: float) -> Condition:
    """Judge xi L / gamma <= threshold with xi over layers start+1 .. L."""
    gammas, present, _ = projections(s)
    xi, xi_error = triplets.xi[start:], triplets.xi_error[start:]
    worst = jnp.argmax(xi)
    depth = status.depth
    angle = jnp.where(status.layer_known[first:], triplets.vector_error[first:], 1.0)
    gamma = jnp.min(jnp.where(present, gammas, jnp.inf))
    gamma_low = jnp.min(jnp.where(present, jnp.clip(gammas - angle, 0.0), jnp.inf))
    gamma_high = jnp.min(jnp.where(present, jnp.clip(gammas + angle, None, 1.0), jnp.inf))
    ratio = lambda x, g: jnp.where(g > 0, depth * x / jnp.where(g > 0, g, 1.0), jnp.where(x == 0, 0.0, jnp.inf))
    value = ratio(xi[worst], gamma)
    low = ratio(jnp.max(jnp.clip(xi - xi_error, 0.0)), gamma_high)
    high = ratio(jnp.max(xi + xi_error), gamma_low)
    low, high = (jnp.where(jnp.isnan(value), jnp.nan, x) for x in (low, high))
    code, reason = _between(threshold - high, threshold - low, status.allowance)
    error = jnp.maximum(jnp.where(high == value, 0.0, high - value), jnp.where(low == value, 0.0, value - low))
    found = _condition(value, threshold, threshold - value, error, worst + start + 1, code, reason)
    return _no_injection(present, found, status)


def _purity(s: Spine, triplets: Triplets, status: _Status, first: int, thresholds: Thresholds) -> Condition:
    used = _impurity(s, triplets, status, first, first, thresholds.purity)
    literal = _impurity(s, triplets, status, first, 0, thresholds.purity)
    return _condition(
        used.value,
        thresholds.purity,
        used.margin,
        used.error,
        used.layer,
        used.code,
        used.reason_code,
        {"purity_literal": literal},
    )
