"""The hypotheses and the coherence problem behind H3: against the oracle, in closed form, at every edge."""

import agreement
import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import spectral_theorem as st
from spectral_theorem.conditions import PARTS, ROWS
from spectral_theorem.types import Reason, Verdict

SHAPES = [(8, 4, 3, False), (5, 6, 4, True), (7, 2, 2, False), (4, 1, 2, False), (2, 2, 2, False)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conditions_agree_with_the_oracle(shape):
    chains, found, _ = batches.examined(shape)
    parts = {"triplets": found.triplets, "conditions": found.conditions, "thresholds": found.thresholds}
    assert not agreement.disagreements(chains, type("Found", (), parts))


def name_of(found, row):
    return [Verdict(int(c)).name for c in found.conditions.code[:, ROWS.index(row)]]


# closed forms, one batch of the shape (7, 2, 2) ---------------------------------------------------------

L = 7


def straight(*, sigma=2.0, second=0.01, turn=0.0, gains=None, rows=None, across=0.0):
    """Layers sigma * R(turn) diag(1, second), injections with these rows along v and this size across it."""
    c, s = np.cos(turn), np.sin(turn)
    w = np.tile(sigma * np.array([[c, -s], [s, c]]) @ np.diag([1.0, second]), (L, 1, 1))
    if gains is not None:
        w = w * np.asarray(gains)[:, None, None]
    rows = np.tile([1.0, 0.0], (L, 1)) if rows is None else np.asarray(rows, float)
    return w, np.stack([rows, np.tile([0.0, across], (L, 1))], axis=1)


FIRST_ZERO = np.where(np.arange(L)[:, None] < 2, 0.0, [1.0, 0.0])
CASES = {
    "good": straight(across=1.0),
    "gain exactly one": straight(sigma=1.0),
    "one weak layer": straight(gains=[1, 1, 1, 0.4, 1, 1, 1]),
    "weak where it does not matter": straight(gains=[0.1, 1, 1, 1, 1, 1, 1]),
    "weak at the end": straight(gains=[1, 1, 1, 1, 1, 1, 0.4]),
    "turned": straight(turn=0.3),
    "right angles": straight(turn=np.pi / 2),
    "tied": straight(second=1.0),
    "flipping rows": straight(rows=[[(-1.0) ** i, 0.0] for i in range(L)]),
    "rows at right angles": straight(rows=[[1.0, 0.0], [0.0, 1.0]] * 3 + [[1.0, 0.0]]),
    "rows across": straight(rows=np.zeros((L, 2)), across=1.0),
    "some absent": straight(rows=FIRST_ZERO),
    "all absent": straight(rows=np.zeros((L, 2))),
    "impure": straight(second=0.5),
    "pure": straight(second=0.0),
}


@pytest.fixture(scope="module")
def found():
    w, g = (np.stack(x) for x in zip(*CASES.values(), strict=True))
    return batches.verified(batches.batch(w, g))


def of(found, case):
    return batches.take(found, list(CASES).index(case))


VERDICTS = {
    "good": "HOLDS HOLDS HOLDS HOLDS",
    "gain exactly one": "UNDECIDED HOLDS HOLDS HOLDS",
    "one weak layer": "VIOLATED HOLDS HOLDS HOLDS",
    "weak where it does not matter": "HOLDS HOLDS HOLDS HOLDS",
    "weak at the end": "VIOLATED HOLDS HOLDS HOLDS",
    "turned": "HOLDS VIOLATED HOLDS HOLDS",
    "right angles": "VIOLATED VIOLATED UNDECIDED HOLDS",
    "tied": "UNDECIDED UNDECIDED UNDECIDED VIOLATED",
    "flipping rows": "HOLDS HOLDS VIOLATED HOLDS",
    "rows at right angles": "HOLDS HOLDS UNDECIDED HOLDS",
    "rows across": "HOLDS HOLDS VIOLATED VIOLATED",
    "some absent": "HOLDS HOLDS HOLDS HOLDS",
    "all absent": "HOLDS HOLDS NOT_APPLICABLE NOT_APPLICABLE",
    "impure": "HOLDS HOLDS HOLDS VIOLATED",
    "pure": "HOLDS HOLDS HOLDS HOLDS",
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts_in_closed_form(found, case):
    mine = of(found, case).conditions
    assert " ".join(mine[name].verdict.name for name in PARTS) == VERDICTS[case]


def test_numbers_in_closed_form(found):
    good = of(found, "good").conditions
    np.testing.assert_allclose(good.stability.parts["gain"].value, 2.0, rtol=1e-12)
    np.testing.assert_allclose(good["projection"].value, np.sqrt(0.5), rtol=1e-12)
    np.testing.assert_allclose(good.purity.value, 7 * 0.01 / np.sqrt(0.5), rtol=1e-12)
    np.testing.assert_allclose(good.purity.margin, 0.1 - 0.07 * np.sqrt(2), rtol=1e-9)
    np.testing.assert_allclose(of(found, "turned").conditions.alignment.value, 7 * (1 - np.cos(0.3)), rtol=1e-12)
    flat = of(found, "rows at right angles")
    np.testing.assert_allclose(flat.coherence_solution.value, np.sqrt(0.5), rtol=1e-12)
    weak = of(found, "one weak layer").conditions.stability
    np.testing.assert_allclose([weak.value, weak.margin], [0.8, -0.2], rtol=1e-9)
    assert weak.layer == 4
    literal = of(found, "weak where it does not matter").conditions["gain_literal"]
    assert literal.verdict == Verdict.VIOLATED and literal.layer == 1
    assert of(found, "weak at the end").conditions["cumulative_gain"].verdict == Verdict.VIOLATED
    assert of(found, "weak at the end").conditions["gain"].verdict == Verdict.HOLDS


def test_reasons(found):
    assert of(found, "tied").conditions.stability.reason in (Reason.TIE, Reason.UNRESOLVED)
    assert of(found, "gain exactly one").conditions.stability.reason == Reason.WITHIN_TOLERANCE
    assert of(found, "right angles").conditions.coherence.reason == Reason.UNSURE_SIGN
    assert of(found, "all absent").conditions.coherence.reason == Reason.NO_CONTEXT


def test_claims_follow_their_conditions(found):
    claim = lambda case, name: of(found, case).claims[name].verdict.name
    assert [claim("good", name) for name in ("c1", "c2", "psi_lower")] == ["HOLDS"] * 3
    assert [claim("gain exactly one", name) for name in ("c1", "c2")] == ["UNDECIDED"] * 2
    assert [claim("turned", name) for name in ("c1", "c2")] == ["HOLDS", "NOT_APPLICABLE"]
    assert [claim("flipping rows", name) for name in ("c1", "c2", "psi_lower")] == ["NOT_APPLICABLE"] * 3
    # a violated condition outranks an undecided one
    assert claim("tied", "c2") == "NOT_APPLICABLE" and claim("tied", "c1") == "UNDECIDED"
    assert [claim("all absent", name) for name in ("c1", "c2")] == ["NOT_APPLICABLE"] * 2


def test_degenerate_depths():
    one = batches.examined((1, 3, 2, False))[1]
    assert (one.conditions.code == Verdict.NOT_APPLICABLE).all()
    assert (one.conditions.reason_code == Reason.SINGLE_LAYER).all()
    assert (one.claims.code == Verdict.NOT_APPLICABLE).all()
    two = batches.examined((2, 2, 2, False))[1]
    for row in ("alignment", "gain"):
        assert set(name_of(two, row)) == {"HOLDS"}
        assert (two.conditions.reason_code[:, ROWS.index(row)] == Reason.VACUOUS).all()


def test_no_context():
    none = batches.examined((6, 3, 0, False))[1]
    for row in ("coherence", "purity", *PARTS["coherence"]):
        assert set(name_of(none, row)) == {"NOT_APPLICABLE"}
        assert (none.conditions.reason_code[:, ROWS.index(row)] == Reason.NO_CONTEXT).all()
    codes = batches.codes(none)
    assert (codes["c1"] == Verdict.NOT_APPLICABLE).all() and (codes["c2"] == Verdict.NOT_APPLICABLE).all()
    assert (codes["propagator_norm"] == Verdict.HOLDS).any()


def test_one_dimension_is_pure_and_aligned():
    found = batches.examined((4, 1, 2, False))[1]
    decided = found.triplets.resolved.all(axis=1)
    assert decided.any()
    assert (found.triplets.xi[decided] == 0).all()
    assert (found.conditions.value[decided, ROWS.index("alignment")] == 0).all()


# the coherence problem ----------------------------------------------------------------------------------


_solved = jax.jit(jax.vmap(st.coherence_direction))


def bundles():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(40, 9, 4))
    narrow = rng.normal(size=(40, 9, 4)) * 0.3 + rng.normal(size=(40, 1, 4))
    equal = np.repeat(rng.normal(size=(20, 3, 4)), 3, axis=1)
    flat = narrow[:20] * [1, 1, 0, 0]
    gone = narrow[20:] * (rng.random((20, 9, 1)) < 0.6)
    return np.concatenate([wide, narrow, equal, flat, gone])


def test_coherence_agrees_with_nonnegative_least_squares():
    rows = bundles()
    solved = _solved(jnp.asarray(rows))
    for i, some in enumerate(rows):
        value, psi = oracle.coherence(some)
        np.testing.assert_allclose(solved.value[i], value, atol=1e-9)
        if psi is not None:
            np.testing.assert_allclose(solved.psi0[i], psi, atol=1e-6)
    assert (solved.value > 0.1).sum() > 50 and (solved.value == 0).sum() > 10


def test_coherence_certifies_itself():
    rows = bundles()
    solved = _solved(jnp.asarray(rows))
    size = np.linalg.norm(rows, axis=2)
    unit = rows / np.where(size > 0, size, 1)[..., None]
    exists = np.asarray(solved.value > 0)
    primal = np.min(np.where(size > 0, np.einsum("bnc,bc->bn", unit, solved.psi0), np.inf), axis=1)
    dual = np.linalg.norm(np.einsum("bn,bnc->bc", solved.weights, unit), axis=1)
    np.testing.assert_allclose(solved.value[exists], primal[exists], atol=1e-12)
    np.testing.assert_allclose(solved.upper, np.maximum(dual, solved.value), atol=1e-12)
    np.testing.assert_allclose(np.sum(solved.weights, axis=1), 1, atol=1e-12)
    assert (solved.weights >= 0).all() and (np.asarray(solved.weights)[size == 0] == 0).all()
    assert (solved.gap[exists] < 1e-10).all()
    assert (dual[~exists] < 1e-8).all()


def test_coherence_has_the_gradient_of_its_optimum():
    rows = jnp.asarray(bundles()[45])
    value = lambda x: st.coherence_direction(x).value
    direction = np.random.default_rng(1).normal(size=rows.shape)
    slope = (value(rows + 1e-6 * direction) - value(rows - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(np.sum(jax.grad(value)(rows) * direction), slope, rtol=1e-6)


def test_coherence_of_nan_is_nan():
    rows = jnp.asarray(bundles()[45]).at[3, 1].set(jnp.nan)
    assert np.isnan(st.coherence_direction(rows).value)


@pytest.mark.parametrize("rows", [np.ones(3), np.ones((0, 3)), np.ones((3, 0)), np.ones((2, 2), int)])
def test_coherence_refuses(rows):
    with pytest.raises(st.InputError, match=r"got rows of shape .*; expected .*; try "):
        st.coherence_direction(rows)
