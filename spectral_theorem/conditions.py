r"""The four hypotheses of the theorem, each with value, threshold, margin and a three-valued verdict.

A condition that speaks of every layer is judged entry by entry and joined by "and": one entry that
surely fails decides, and one entry that nobody can decide keeps the whole undecided. All conditions
are rows of one table, so that one vectorised judgement serves them all.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .coherence import Coherence, coherence_direction
from .judgement import all_of, as_table, decide
from .path import Spine, dense, first_layer, log_gains, reverse_cumsum, row_projections, signed_rows, spine
from .scaled import norm
from .types import Condition, Reason, Thresholds, Triplets, Verdict, container, tolerance

PARTS = {
    "stability": ("gain", "cumulative_gain", "gain_literal"),
    "alignment": ("alignment_literal",),
    "coherence": ("projection", "directionality", "sign_consistency"),
    "purity": ("purity_literal",),
}
ROWS = (*PARTS, *(part for parts in PARTS.values() for part in parts))


@container
class Conditions:
    """Hold the four hypotheses and their parts as one table; rows are named by `ROWS`.

    Attributes
    ----------
    value, threshold, margin, error, layer, code, reason_code : (R,)  columns of `Condition`.
    stability, alignment, coherence, purity : `Condition`, H1 to H4, cut out on access.
    """

    value: Float[Array | np.ndarray, "*batch R"]
    threshold: Float[Array | np.ndarray, "*batch R"]
    margin: Float[Array | np.ndarray, "*batch R"]
    error: Float[Array | np.ndarray, "*batch R"]
    layer: Int[Array | np.ndarray, "*batch R"]
    code: Int[Array | np.ndarray, "*batch R"]
    reason_code: Int[Array | np.ndarray, "*batch R"]

    def __getitem__(self, name: str) -> Condition:
        """Return one row, a hypothesis with its parts or a part."""
        i = ROWS.index(name)
        columns = {column: getattr(self, column)[..., i] for column in type(self).__dataclass_fields__}
        return Condition(**columns, parts={part: self[part] for part in PARTS.get(name, ())})

    @property
    def stability(self) -> Condition:
        """H1."""
        return self["stability"]

    @property
    def alignment(self) -> Condition:
        """H2."""
        return self["alignment"]

    @property
    def coherence(self) -> Condition:
        """H3."""
        return self["coherence"]

    @property
    def purity(self) -> Condition:
        """H4."""
        return self["purity"]

    def items(self) -> list[tuple[str, Condition]]:
        """Return (name, condition) for H1 to H4."""
        return [(name, self[name]) for name in PARTS]


def check_conditions(
    chain: Any, triplets: Triplets, thresholds: Thresholds | None = None, *, coherence: Coherence | None = None
) -> Conditions:
    r"""Check H1-H4 with margins.

    .. math:: \text{H1: } \rho_j\ge1,\ S_{L,k}\ge1;\quad \text{H2: } \varepsilon_\kappa L\ll1;\quad
       \text{H3: } \gamma,\ \max_\psi\min_k\langle g_k,\psi\rangle\ge1/\sqrt2;\quad \text{H4: } \xi L/\gamma\ll1

    Parameters
    ----------
    chain : LayerChain (L, D, D), (L, D, C), or OperatorChain.
    triplets : its Triplets.
    thresholds : what stands for "much less than"; recorded with every verdict.
    coherence : the solution of the H3 problem, if already computed.

    Returns
    -------
    Conditions
        `.stability.parts` has gain and cumulative_gain, `.coherence.parts` has projection (a),
        directionality (b) and sign_consistency (b and c together, by the exact convex problem);
        parts named `*_literal` take the paper's literal index ranges and decide nothing.

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


class Row(NamedTuple):
    """Hold the entries of one condition before judgement; fields are (m,), or () where m = 1.

    The exact slack of an entry lies in [low, high]; an entry that is not `known` is undecided for
    the reason `why`. `number` is the 1-based layer or injection of an entry.
    """

    value: Any
    slack: Any
    low: Any
    high: Any
    error: Any
    threshold: float
    known: Any = True
    why: Any = Reason.NONE
    number: Any = 0
    vacuous: bool = False  # no layer to speak of: holds, and says so


@functools.partial(jax.jit, static_argnames="thresholds")
def _check(chain: Any, triplets: Triplets, coherence: Coherence | None, thresholds: Thresholds) -> Conditions:
    s = spine(chain, triplets)
    if s.length == 0:
        nan = jnp.full((len(ROWS),), jnp.nan, chain.dtype)
        integer = lambda x: jnp.full((len(ROWS),), x, jnp.int32)
        return Conditions(
            value=nan,
            threshold=nan,
            margin=nan,
            error=nan,
            layer=integer(0),
            code=integer(Verdict.NOT_APPLICABLE),
            reason_code=integer(Reason.SINGLE_LAYER),
        )
    coherence = coherence_direction(signed_rows(s)) if coherence is None else coherence
    rows = _rows(chain, s, triplets, coherence, thresholds)
    return _join(_judge(rows, chain), tuple(rows), s)


def _rows(chain: Any, s: Spine, triplets: Triplets, coherence: Coherence, thresholds: Thresholds) -> dict[str, Row]:
    """Collect the entries of every part."""
    first, depth = first_layer(chain), chain.depth
    eps = float(jnp.finfo(chain.dtype).eps)
    tie = triplets.gap <= 64 * chain.state_size * eps * triplets.sigma[:, 0]
    layer_why = jnp.where(jnp.isnan(triplets.sigma[:, 0]), Reason.NAN, jnp.where(tie, Reason.TIE, Reason.UNRESOLVED))
    known = triplets.resolved
    coupled = known[:-1] & known[1:]
    coupled_why = jnp.where(known[:-1], layer_why[1:], layer_why[:-1])
    between = jnp.arange(1, depth)

    def gain(start: int) -> Row:
        rho, error = triplets.rho[start:], triplets.rho_error[start:]
        slack = rho - thresholds.gain
        if start == depth - 1:
            return Row(jnp.inf, jnp.inf, jnp.inf, jnp.inf, 0.0, thresholds.gain, vacuous=True)
        return _entries(rho, slack, error, thresholds.gain, coupled[start:], coupled_why[start:], between[start:])

    def aligned(start: int) -> Row:
        threshold = thresholds.alignment
        if start == depth - 1:
            return Row(0.0, threshold, threshold, threshold, 0.0, threshold, vacuous=True)
        phi = jnp.arctan2(triplets.misalignment, jnp.abs(triplets.kappa))[start:]
        wide = jnp.clip(phi + triplets.coupling_error[start:], None, jnp.pi / 2)
        # 1 - cos is convex, so the upper end of the angle is the farther one
        error = 2 * (jnp.sin(wide / 2) ** 2 - jnp.sin(phi / 2) ** 2) * depth
        value = triplets.alignment_defect[start:] * depth
        return _entries(
            value, threshold - value, error, threshold, coupled[start:], coupled_why[start:], between[start:]
        )

    logs = log_gains(s)
    relative = triplets.sigma_error[first:] / jnp.where(s.sigma > 0, s.sigma, 1.0)
    log_error = reverse_cumsum(-jnp.log1p(-jnp.clip(relative, None, 0.5)))
    total, log_slack = jnp.exp(logs), logs - jnp.log(thresholds.cumulative_gain)
    injection = jnp.arange(s.length) + first  # 1-based k, 0 for `initial`
    cumulative = Row(
        value=total,
        slack=total - thresholds.cumulative_gain,
        low=log_slack - log_error,
        high=log_slack + log_error,
        error=total * jnp.expm1(log_error),
        threshold=thresholds.cumulative_gain,
        number=injection,
    )
    gammas, present, _ = projections(s)
    angle = jnp.where(known[first:], triplets.vector_error[first:], 1.0)
    source_known, source_why = known[first:] | ~present, layer_why[first:]
    slack = jnp.where(present, gammas - thresholds.gamma_min, jnp.inf)
    projection = _entries(gammas, slack, angle, thresholds.gamma_min, source_known, source_why, injection)

    all_known = jnp.all(source_known)
    blame = source_why[jnp.argmin(source_known)]
    ratio = jnp.where(present & (gammas > 0), angle / jnp.where(gammas > 0, gammas, 1.0), 0.0)
    error = jnp.clip(jnp.max(ratio), None, 2.0)
    directionality = _directionality(signed_rows(s), coherence, error, thresholds.coherence, all_known, blame)
    unsure = (triplets.kappa_error >= jnp.abs(triplets.kappa))[first:]
    # a sign matters only between injections, so only couplings after the first one that is there
    unsure = jnp.any(unsure & (jnp.cumsum(present)[:-1] > 0))
    allowance = jnp.asarray(tolerance(chain), chain.dtype)
    sign_consistency = Row(
        value=coherence.value,
        slack=coherence.value - thresholds.coherence,
        low=coherence.value - error - thresholds.coherence,
        high=coherence.upper + error - thresholds.coherence,
        error=error + coherence.gap,
        threshold=thresholds.coherence,
        known=all_known & ~unsure & ~((coherence.gap > allowance) & _straddles(coherence, error, thresholds)),
        why=jnp.where(all_known, jnp.where(unsure, Reason.UNSURE_SIGN, Reason.DUALITY_GAP), blame),
    )

    def impurity(start: int) -> Row:
        xi, xi_error = triplets.xi[start:], triplets.xi_error[start:]
        least = lambda g: jnp.min(jnp.where(present, g, jnp.inf))
        # at gamma = 0 the quotient is infinite, or 0 for a pure chain; NaN passes through
        ratio = lambda x, g: jnp.where(g == 0, jnp.where(x == 0, 0.0, jnp.inf), depth * x / jnp.where(g == 0, 1.0, g))
        value = ratio(jnp.max(xi), least(gammas))
        low = ratio(jnp.max(jnp.clip(xi - xi_error, 0.0)), least(jnp.clip(gammas + angle, None, 1.0)))
        high = ratio(jnp.max(xi + xi_error), least(jnp.clip(gammas - angle, 0.0)))
        error = jnp.maximum(jnp.where(high == value, 0.0, high - value), jnp.where(low == value, 0.0, value - low))
        threshold = thresholds.purity
        spoiled = jnp.where(jnp.isnan(value), jnp.nan, 0.0)
        return Row(
            value=value,
            slack=threshold - value,
            low=threshold - high + spoiled,
            high=threshold - low + spoiled,
            error=error,
            threshold=threshold,
            number=jnp.argmax(xi) + start + 1,
        )

    return {
        "gain": gain(first),
        "cumulative_gain": cumulative,
        "gain_literal": gain(0),
        "alignment": aligned(first),
        "alignment_literal": aligned(0),
        "projection": projection,
        "directionality": directionality,
        "sign_consistency": sign_consistency,
        "purity": impurity(first),
        "purity_literal": impurity(0),
    }


def _entries(value: Any, slack: Any, error: Any, threshold: float, known: Any, why: Any, number: Any) -> Row:
    """Make a row with symmetric error bars."""
    return Row(value, slack, slack - error, slack + error, error, threshold, known, why, number)


def _straddles(coherence: Coherence, error: Any, thresholds: Thresholds) -> Any:
    """Say whether primal and dual values lie on different sides of the threshold."""
    low, high = coherence.value - error, coherence.upper + error
    return (low <= thresholds.coherence) & (high >= thresholds.coherence)


def projections(s: Spine) -> tuple[Any, Any, Any]:
    """Return gamma_k = ||v_{k+1}^T G_k|| / ||G_k||_F, which injections are non-zero, and their norms."""
    size = norm(s.sources, axis=(1, 2))
    present = ~(size == 0)
    along = norm(row_projections(s), axis=1)
    return jnp.where(present, along / jnp.where(present, size, 1.0), 1.0), present, size


def _directionality(rows: Any, solved: Coherence, error: Any, threshold: float, known: Any, why: Any) -> Row:
    """Collect H3(b) alone: |<g_k, psi>| >= 1/sqrt2 for one psi, signs ignored.

    Witnesses: psi0, and the optimum for the signs that the mean direction suggests. Refutation:
    the largest eigenvalue of the mean of g g^T bounds the smallest squared projection.
    """
    size = norm(rows, axis=1)
    present = ~(size == 0)
    unit = rows / jnp.where(present, size, 1.0)[:, None]
    _, sizes, right = jnp.linalg.svd(unit, full_matrices=False)
    other = coherence_direction(jnp.where(unit @ right[0] < 0, -1.0, 1.0)[:, None] * rows)
    along = jnp.min(jnp.where(present, jnp.abs(unit @ solved.psi0), jnp.inf))
    value = jnp.maximum(jnp.where(jnp.isinf(along), 0.0, along), other.value)
    upper = jnp.maximum(sizes[0] / jnp.sqrt(jnp.maximum(present.sum(), 1)), value)
    slack = value - threshold
    return Row(value, slack, slack - error, upper + error - threshold, error + upper - value, threshold, known, why)


def _judge(rows: dict[str, Row], chain: Any) -> dict[str, Any]:
    """Judge all rows at once; return the columns of the table in the order of `rows`."""
    length, dtype = chain.depth, chain.dtype

    def column(field: str, kind: Any, absent: Any) -> Any:
        return as_table([getattr(row, field) for row in rows.values()], length, absent, kind)

    # a padded entry has infinite slack and is known: it neither binds nor blocks
    value, slack, low, high = (column(f, dtype, jnp.inf) for f in ("value", "slack", "low", "high"))
    error, number, known = column("error", dtype, 0.0), column("number", jnp.int32, 0), column("known", bool, True)
    allowance = jnp.asarray(tolerance(chain), dtype)
    sure, reason = decide(low, allowance)
    lost, _ = decide(high, allowance)
    held = jnp.where(sure == Verdict.HOLDS, Verdict.HOLDS, Verdict.UNDECIDED)
    code = jnp.where(known, jnp.where(lost == Verdict.VIOLATED, Verdict.VIOLATED, held), Verdict.UNDECIDED)
    blurred = jnp.where(reason == Reason.NAN, Reason.NAN, Reason.WITHIN_TOLERANCE)
    reason = jnp.where(code == Verdict.UNDECIDED, blurred, Reason.NONE)
    reason = jnp.where(known, reason, column("why", jnp.int32, Reason.NONE))
    code, reason = all_of(code.T, reason.T)
    worst = jnp.argmin(slack, axis=1)
    pick = lambda x: jnp.take_along_axis(x, worst[:, None], axis=1)[:, 0]
    return {
        "value": pick(value),
        "threshold": jnp.asarray([row.threshold for row in rows.values()], dtype),
        "margin": pick(slack),
        "error": pick(error),
        "layer": pick(number),
        "code": code,
        "reason_code": jnp.where(np.asarray([row.vacuous for row in rows.values()]), Reason.VACUOUS, reason),
    }


def _join(table: dict[str, Any], order: tuple[str, ...], s: Spine) -> Conditions:
    """Add the rows of H1 and H3, mark what needs an injection, and put rows in the order of `ROWS`."""
    at = {name: i for i, name in enumerate(order)}

    def both(a: str, b: str) -> dict[str, Any]:
        pair = np.asarray([at[a], at[b]])
        code, reason = all_of(table["code"][pair], table["reason_code"][pair])
        binding = pair[0] + (pair[1] - pair[0]) * (table["margin"][pair[1]] < table["margin"][pair[0]])
        return {name: x[binding] for name, x in table.items()} | {"code": code, "reason_code": reason}

    joined = {"stability": both("gain", "cumulative_gain"), "coherence": both("projection", "sign_consistency")}
    at |= {"stability": len(order), "coherence": len(order) + 1}
    gather = np.asarray([at[name] for name in ROWS])
    columns = {
        name: jnp.concatenate([x, jnp.stack([row[name] for row in joined.values()]).astype(x.dtype)])[gather]
        for name, x in table.items()
    }
    about_context = ("coherence", *PARTS["coherence"], "purity", *PARTS["purity"])
    empty = ~projections(s)[1].any() & np.asarray([name in about_context for name in ROWS])
    for name, missing in (("value", jnp.nan), ("margin", jnp.nan), ("error", jnp.nan), ("layer", 0)):
        columns[name] = jnp.where(empty, missing, columns[name])
    columns["code"] = jnp.where(empty, Verdict.NOT_APPLICABLE, columns["code"]).astype(jnp.int32)
    columns["reason_code"] = jnp.where(empty, Reason.NO_CONTEXT, columns["reason_code"]).astype(jnp.int32)
    columns["layer"] = columns["layer"].astype(jnp.int32)
    return Conditions(**columns)
