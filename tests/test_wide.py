"""A chain that is known by products only: the small chain that stands for it, against `verify` on the dense one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import closed, products, wide
from spectral_theorem.closed import isometric_rows, reading_spaces, stand_in
from spectral_theorem.products import cone_output, dense_products, identity_error, leading_value, log_product_norms
from spectral_theorem.types import InputError
from spectral_theorem.wide import verify_wide

ABOUT_RESIDUAL = {
    "residual_transfer",
    "residual_damped",
    "row_exact_upper",
    "row_exact_lower",
    "top_k_upper",
    "top_k_lower",
    "c2",
}


def drawn(layers, width, context, *, silent=(), seed=0, dtype="float64"):
    """Return a residual stack whose layers differ, some without an injection."""
    w, g = jax.random.split(jax.random.key(seed))
    propagators = jnp.eye(width) + 0.5 * jax.random.normal(w, (layers, width, width)) / width**0.5
    injections = jax.random.normal(g, (layers, width, context))
    for k in silent:
        injections = injections.at[k].set(0.0)
    return st.LayerChain(propagators.astype(dtype), injections.astype(dtype))


def both(chain, triplets=None, **options):
    norms = jnp.linalg.norm(chain.injections, axis=(1, 2))
    triplets = st.decompose(chain) if triplets is None else triplets
    return st.verify(chain), verify_wide(dense_products(chain), triplets, norms, **options)


def assert_same(exact, found, *, atol=1e-9):
    """Ask for one answer, claims about the residual apart where it was estimated: those may be left open."""
    v, estimated = found.verification, found.residual.rows < exact.triplets.u.shape[1]
    close = lambda x, y: np.testing.assert_allclose(np.asarray(y), np.asarray(x), rtol=atol, atol=atol)
    for name, claim in exact.claims.items():
        ours = v.claims[name]
        if estimated and name in ABOUT_RESIDUAL and ours.verdict == st.Verdict.UNDECIDED:
            assert abs(float(ours.slack)) <= float(ours.tolerance), name
            continue
        assert (ours.verdict, ours.reason) == (claim.verdict, claim.reason), name
    for name, condition in exact.conditions.items():
        ours = v.conditions[name]
        pairs = [(condition, ours), *((part, ours.parts[name]) for name, part in condition.parts.items())]
        for one, other in pairs:
            assert (one.verdict, one.reason) == (other.verdict, other.reason), name
            close([one.value, one.margin, one.error], [other.value, other.margin, other.error])
    for field in exact.bounds.__dataclass_fields__:
        close(getattr(exact.bounds, field), getattr(v.bounds, field))
    for field in set(exact.regime.__dataclass_fields__) - {"lyapunov"}:
        close(getattr(exact.regime, field), getattr(v.regime, field))
    close(exact.path.log_psi_norm, v.path.log_psi_norm)
    close(exact.path.log_scale, v.path.log_scale)
    close(exact.coherence_solution.value, v.coherence_solution.value)
    truth = float(exact.path.log_residual_norm)
    assert found.residual.log_lower <= truth <= found.residual.log_upper
    if not estimated:
        close(truth, found.residual.log_norm)
    if np.isfinite(truth):
        unit = np.asarray(exact.path.residual_unit)
        spectral = truth + np.log(np.linalg.norm(unit, 2) / np.linalg.norm(unit))
        assert abs(float(found.residual.log_spectral) - spectral) < 1e-6


@pytest.mark.parametrize(
    ("layers", "width", "context", "silent"),
    [
        (1, 5, 6, ()),  # nothing to couple
        (3, 4, 7, ()),  # the reading spaces are the whole state
        (4, 70, 30, (0,)),  # the residual is estimated
        (4, 70, 30, (0, 1, 2, 3)),  # no context
        pytest.param(2, 5, 6, (), marks=pytest.mark.exhaustive),
        pytest.param(3, 80, 200, (1,), marks=pytest.mark.exhaustive),
    ],
)
def test_every_number_is_that_of_the_dense_chain(layers, width, context, silent):
    assert_same(*both(drawn(layers, width, context, silent=silent)))


@pytest.mark.slow
def test_one_number_per_layer():
    exact, found = both(drawn(3, 1, 2))
    assert {n: c.verdict for n, c in exact.claims.items()} == {
        n: c.verdict for n, c in found.verification.claims.items()
    }


@pytest.fixture(scope="module")
def attractor():
    return st.ensembles.planted(
        jax.random.key(0), layers=4, width=70, context=30, sigma=1.02, kappa=0.9999, xi=5e-4, gamma=0.5, coherence=0.9
    )


def test_where_the_hypotheses_hold_the_conclusions_are_found(attractor):
    exact, found = both(attractor)
    assert exact.claims["c2"].verdict == st.Verdict.HOLDS
    assert_same(exact, found)
    v = found.verification
    assert v.claims["c1"].verdict == v.claims["c2"].verdict == v.claims["cone_growth"].verdict == st.Verdict.HOLDS


def test_no_claim_is_decided_inside_the_interval(attractor):
    exact, found = both(attractor, sketch=2, probes=4)
    r, v = found.residual, found.verification
    assert exact.claims["row_exact_upper"].verdict == st.Verdict.HOLDS  # tight to one part in a million
    assert r.log_lower < exact.bounds.log_row_exact < r.log_upper
    assert v.claims["row_exact_upper"].verdict == st.Verdict.UNDECIDED
    # and the interval is no allowance of claims that do not speak of the residual
    assert float(v.claims["transfer_telescoping"].tolerance) == float(exact.claims["transfer_telescoping"].tolerance)
    assert float(v.claims["row_exact_upper"].tolerance) > 1e3 * float(exact.claims["row_exact_upper"].tolerance)


def test_all_rows_leave_no_interval_but_rounding(attractor):
    exact, found = both(attractor, sketch=35)
    assert found.residual.rows == 70
    assert abs(float(found.residual.log_norm - exact.path.log_residual_norm)) < 1e-9
    assert float(found.residual.log_upper - found.residual.log_lower) < 1e-4
    assert_same(exact, found)


def test_products_that_overflow_do_not_matter():
    chain = drawn(4, 70, 30)
    _, same = both(chain)
    loud = dataclasses.replace(chain, propagators=chain.propagators * 1e110)
    exact_loud, found = both(loud)
    assert not np.isfinite(np.asarray(exact_loud.path.residual)).all()
    assert_same(exact_loud, found)
    for name, claim in same.verification.claims.items():
        if name != "dispersion":
            assert found.verification.claims[name].verdict == claim.verdict, name


def test_float32_agrees_to_its_own_rounding():
    chain = drawn(4, 70, 30, dtype="float32")
    exact, found = both(chain)
    v = found.verification
    assert v.bounds.log_row_exact.dtype == jnp.float32
    assert v.violated == ()
    for field in exact.bounds.__dataclass_fields__:
        np.testing.assert_allclose(getattr(v.bounds, field), getattr(exact.bounds, field), atol=1e-4)
    for name, condition in exact.conditions.items():
        assert v.conditions[name].verdict == condition.verdict
    assert found.residual.log_lower <= exact.path.log_residual_norm <= found.residual.log_upper


def test_rounding_is_counted_in_the_wide_state(attractor):
    exact, found = both(attractor)
    for name in ("identity", "propagator_norm", "psi_lower_sharp"):
        np.testing.assert_allclose(found.verification.claims[name].tolerance, exact.claims[name].tolerance, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_spaces_are_carried_into_each_other(seed):
    chain = drawn(5, 30, 20, seed=seed)
    t = st.decompose(chain)
    spaces = reading_spaces(lambda layer, y: y @ chain.propagators[layer], t)
    rng = np.random.default_rng(seed)
    for j, q in enumerate(spaces.bases):
        np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-13)
        for vectors in (t.U[j], t.V[j + 1] if j + 1 < 5 else t.U[j]):
            np.testing.assert_allclose(q @ (q.T @ vectors), vectors, atol=1e-12)
    # v_{l+1}^T W_l ... W_i x, for every l and i, from coordinates alone
    x = rng.normal(size=30)
    for last in range(1, 4):
        small, wide_row = spaces.bases[last].T @ t.v[last + 1], t.v[last + 1]
        for layer in range(last, 0, -1):
            small, wide_row = small @ spaces.maps[layer - 1], wide_row @ chain.propagators[layer]
            np.testing.assert_allclose(small @ (spaces.bases[layer - 1].T @ x), wide_row @ x, atol=1e-11)


def test_rows_in_parts_keep_inner_products_and_small_rows():
    rows = np.random.default_rng(0).normal(size=(5, 60)) * np.asarray([1.0, 1e-9, 1.0, 1.0, 1.0])[:, None]
    short = isometric_rows(jnp.asarray(rows[:, a : a + 7]) for a in range(0, 60, 7))
    assert short.shape == (5, 5)
    gram, ours = rows @ rows.T, np.asarray(short @ short.T)
    size = np.sqrt(np.diag(gram))
    np.testing.assert_allclose(ours / np.outer(size, size), gram / np.outer(size, size), atol=1e-12)


def test_parts_of_the_context_change_nothing(monkeypatch):
    chain = drawn(4, 70, 30)
    one = both(chain)[1]
    monkeypatch.setattr(wide, "_BYTES", 8 * 24 * 7)
    other = both(chain)[1]
    for field in one.verification.bounds.__dataclass_fields__:
        np.testing.assert_allclose(
            getattr(one.verification.bounds, field), getattr(other.verification.bounds, field), atol=1e-11
        )


def test_a_wrong_coupling_is_seen_by_the_identity():
    chain = drawn(4, 70, 30)
    t, path, p = st.decompose(chain), st.verify(chain).path, dense_products(chain)
    ask = lambda t, path: float(identity_error(p, t, path, key=jax.random.key(0)) - path.log_scale)
    assert ask(t, path) < -30
    # any vectors would do, if only kappa, amplitudes and gains are theirs
    assert ask(dataclasses.replace(t, kappa=t.kappa * (1 + 1e-6)), path) > -24
    assert ask(t, dataclasses.replace(path, log_amplitude=path.log_amplitude + 1e-6)) > -24
    assert ask(t, dataclasses.replace(path, sign=path.sign.at[0].multiply(-1))) > -10


def test_the_deviation_is_its_own_transpose_and_both_routes():
    chain = drawn(5, 30, 20, silent=(1,))
    t, v = st.decompose(chain), st.verify(chain)
    one = products._Deviation(dense_products(chain), t, v.path)
    scale = np.exp(float(one.peak))
    residual = np.asarray(v.path.residual)
    np.testing.assert_allclose(one.back(jnp.eye(30)) * scale, residual, atol=1e-11 * np.abs(residual).max())
    np.testing.assert_allclose(one.ahead(jnp.eye(20)).T * scale, residual, atol=1e-11 * np.abs(residual).max())
    np.testing.assert_allclose(one.by_recursion(jnp.eye(30)) * scale, residual, atol=1e-11 * np.abs(residual).max())
    np.testing.assert_allclose(one.psi() * scale, v.path.psi, atol=1e-11 * np.abs(v.path.psi).max())


def test_norms_of_products_and_the_cone_against_dense_ones():
    chain = drawn(5, 30, 20)
    t, p = st.decompose(chain), dense_products(chain)
    w = np.asarray(chain.propagators)
    found = log_product_norms(p, t, key=jax.random.key(0))
    product = np.eye(30)
    for layer in range(4, -1, -1):
        product = product @ w[layer]
        assert abs(float(found[layer]) - np.log(np.linalg.norm(product, 2))) < 1e-6
    cone = cone_output(p, t)
    np.testing.assert_allclose(cone.value * np.exp(cone.log), w[4] @ w[3] @ w[2] @ w[1] @ t.v[1], atol=1e-10)


def test_a_norm_that_does_not_converge_is_unknown():
    flat = jnp.linspace(1.0, 1.001, 300)
    value, residual, sure = leading_value(
        lambda x: x * flat, width=300, dtype=flat.dtype, key=jax.random.key(0), most=8, tolerance=1e-10
    )
    assert not sure and 0 < value <= 1.001 and residual > 0
    assert not leading_value(lambda x: x * jnp.nan, width=9, dtype=flat.dtype, key=jax.random.key(0))[2]
    assert leading_value(lambda x: 0 * x, width=9, dtype=flat.dtype, key=jax.random.key(0)) == (0.0, 0.0, True)
    rank_one = lambda x: (x @ flat)[:, None] * flat
    assert leading_value(rank_one, width=300, dtype=flat.dtype, key=jax.random.key(0))[0] == pytest.approx(
        float(flat @ flat), rel=1e-12
    )
    with pytest.raises(InputError, match="width=0"):
        leading_value(rank_one, width=0, dtype=flat.dtype, key=jax.random.key(0))


@pytest.mark.parametrize("dropped", ["carried", "before", "rest"])
def test_what_is_left_out_is_missed(monkeypatch, dropped):
    """Each part of the spaces is needed: without it some bound is another."""
    chain = drawn(4, 70, 30)
    exact, _ = both(chain)
    t = st.decompose(chain)
    norms = jnp.linalg.norm(chain.injections, axis=(1, 2))
    if dropped == "carried":
        monkeypatch.setattr(closed, "_unit", lambda rows: 0 * rows)
    pull = lambda layer, y: y @ chain.propagators[layer]
    bent = dataclasses.replace(t, U=t.V) if dropped == "before" else t
    spaces = reading_spaces(pull, bent)
    rows = [q.T @ g for q, g in zip(spaces.bases, chain.injections[:-1], strict=False)]
    if dropped == "rest":
        norms = jnp.asarray([jnp.linalg.norm(r) for r in [*rows, chain.injections[-1]]])
    small, moved = stand_in(spaces, rows, norms, t)
    found = st.residual_bounds(small, moved)
    off = [abs(float(getattr(found, f"log_{n}") - getattr(exact.bounds, f"log_{n}"))) for n in ("row_exact", "top_k")]
    assert max(off) > 1e-3
