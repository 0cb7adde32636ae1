"""What must not change when nothing that matters does: gauge, bases, units, and how many chains are looked at."""

import dataclasses

import agreement
import batches
import jax
import makers
import numpy as np
import oracle
import pytest

import spectral_theorem as st
from spectral_theorem.conditions import ROWS
from spectral_theorem.types import Verdict
from spectral_theorem.verification import CLAIMS

SHAPE = (8, 4, 3, False)
L, D, C = SHAPE[:3]
FAMILIES = (makers.gaussian, makers.any_scalars, makers.theorem, makers.pure_but_turned, makers.near_identity)
N = 50


def turned(w, g, rng):
    """Other orthonormal coordinates after every layer."""
    q = makers.frames(rng, len(w), L + 1, D, D)
    back = np.swapaxes(q[:, 1:], -1, -2)
    return back @ w @ q[:, :-1], back @ g


def context_turned(w, g, rng):
    return w, g @ makers.frames(rng, len(w), 1, C, C)


def context_permuted(w, g, rng):
    return w, g[..., rng.permutation(C)]


def rescaled(w, g, rng):
    """Layer 4 writes its state in a unit five times smaller, layer 5 reads it so."""
    w, g = w.copy(), g.copy()
    w[:, 3], g[:, 3], w[:, 4] = 5 * w[:, 3], 5 * g[:, 3], w[:, 4] / 5
    return w, g


def larger_injections(w, g, rng):
    return w, 1000 * g


CHANGES = {f.__name__: f for f in (turned, context_turned, context_permuted, rescaled, larger_injections)}


@pytest.fixture(scope="module")
def found():
    """Every chain as it is and after every change, verified in one call."""
    w, g, _, _ = makers.block(9, N, L, D, C, families=FAMILIES)
    versions = [(w, g), *(change(w, g, np.random.default_rng(1)) for change in CHANGES.values())]
    everything = batches.verified(batches.batch(*(np.concatenate(x) for x in zip(*versions, strict=True))))
    cut = lambda i: jax.tree.map(lambda x: x[N * i : N * (i + 1)], everything)
    return {name: cut(i) for i, name in enumerate(["as it is", *CHANGES])}


# what may move with rounding: the basis of a triplet is known to its error over the gap
def close(a, b, scale=1.0):
    np.testing.assert_allclose(a, b, atol=1e-7 * scale, rtol=1e-7)


def decided(v, row):
    """Say of which chains the margin of a condition is more than its error bars."""
    i = ROWS.index(row)
    return np.abs(v.conditions.margin[:, i]) > 1e-6 + 10 * v.conditions.error[:, i]


@pytest.mark.parametrize("name", CHANGES)
def test_numbers_of_the_theorem_stay(found, name):
    before, after = found["as it is"], found[name]
    sure = before.triplets.resolved.all(axis=1)
    assert sure.sum() > 40
    unit = np.log(1000) if name == "larger_injections" else 0.0
    present = sure & np.isfinite(before.path.log_scale)
    assert present.sum() > 30
    close(after.path.log_scale[present], before.path.log_scale[present] + unit)
    relative = lambda v: v.path.log_scale[present]
    for field in ("log_paper", "log_telescoping", "log_transfer", "log_row_exact", "log_psi_lower_sharp"):
        share = lambda v, field=field: np.exp(getattr(v.bounds, field)[present] - relative(v))
        close(share(after), share(before))
    # the leading K are a basis only where the next singular value is smaller
    top = before.triplets.sigma_top
    apart = (top[..., 1] - top[..., 2] > 1e-6 * top[..., 0]).all(axis=1)[present]
    assert apart.sum() > 10
    share = lambda v: np.exp(v.bounds.log_top_k[present] - relative(v))[apart]
    close(share(after), share(before))
    for field in ("log_psi_norm", "log_residual_norm"):
        share = lambda v, field=field: np.exp(getattr(v.path, field)[present] - relative(v))
        close(share(after), share(before))
    close(np.abs(after.triplets.kappa[sure]), np.abs(before.triplets.kappa[sure]))
    close(after.triplets.misalignment[sure], before.triplets.misalignment[sure])
    close(after.triplets.xi[sure], before.triplets.xi[sure])
    for row in ("alignment", "projection", "sign_consistency", "purity"):
        at = ROWS.index(row)
        a, b = after.conditions.value[present, at], before.conditions.value[present, at]
        clear = np.isfinite(b) & (before.conditions.error[present, at] < 1e-8)
        assert clear.sum() > 15
        close(a[clear], b[clear])


@pytest.mark.parametrize("name", CHANGES)
def test_verdicts_stay(found, name):
    before, after = found["as it is"], found[name]
    rows = ["alignment", "coherence", "purity"] + ["stability", "gain", "cumulative_gain"] * (name != "rescaled")
    for row in rows:
        clear = decided(before, row) & decided(after, row)
        at = ROWS.index(row)
        assert (before.conditions.code[clear, at] == after.conditions.code[clear, at]).all(), row
    for v in (before, after):
        assert not (v.claims.code == Verdict.VIOLATED).any()
    settled = [name for name, spec in CLAIMS.items() if not spec.needs and spec.applies is None]
    for claim in settled:
        a, b = (batches.codes(v)[claim] for v in (before, after))
        either = (a == Verdict.UNDECIDED) | (b == Verdict.UNDECIDED)  # a slack of rounding size may fall on either side
        assert (a == b)[~either].all() and either.mean() < 0.5, claim
    if name != "rescaled":
        clear = np.abs(before.regime.cone_margin) > 1e-6
        assert (before.regime.code == after.regime.code)[clear].all()


def test_a_change_of_units_moves_what_the_theory_says_and_nothing_else(found):
    before, after = found["as it is"], found["rescaled"]
    five = np.log(5)
    close(after.triplets.lam - before.triplets.lam, np.tile([0, 0, 0, five, -five, 0, 0], (N, 1)))
    close(after.path.log_amplitude - before.path.log_amplitude, np.tile([0, 0, 0, -five, 0, 0, 0], (N, 1)))
    moved = after.bounds.log_propagator_norm - before.bounds.log_propagator_norm
    close(moved, np.tile([0, 0, 0, -five, 0, 0, 0], (N, 1)))
    close(after.bounds.log_total_norm, before.bounds.log_total_norm)
    close(after.regime.log_contraction, before.regime.log_contraction)
    gain = ROWS.index("gain")
    rho = np.exp(after.triplets.lam[:, 1:])
    close(after.conditions.value[:, gain], rho.min(axis=1))


def test_signs_of_singular_vectors_are_a_matter_of_convention():
    """Flip u_l and v_l of random layers, layer L among them: nothing that is reported moves."""
    chains, v, _ = batches.examined((5, 6, 4, True))
    n, depth = v.triplets.xi.shape
    sign = np.random.default_rng(0).choice([-1.0, 1.0], (n, depth))
    t = v.triplets
    each, pair = sign[..., None], sign[:, 1:] * sign[:, :-1]
    flipped = dataclasses.replace(
        t,
        u=t.u * each,
        v=t.v * each,
        kappa=t.kappa * pair,
        U=t.U * each[..., None],
        V=t.V * each[..., None],
    )
    after = reported(chains, flipped)
    before = reported(chains, t)
    outer = lambda path: np.einsum("nd,nc->ndc", path.u, path.psi)
    np.testing.assert_array_equal(outer(after[0]), outer(before[0]))
    np.testing.assert_array_equal(after[0].sign, before[0].sign * sign[:, 1:] * sign[:, -1:])
    assert (before[0].sign != after[0].sign).any()
    np.testing.assert_allclose(after[0].residual, before[0].residual, rtol=1e-12, atol=1e-12)
    for a, b in zip(jax.tree.leaves(after[1:]), jax.tree.leaves(before[1:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@jax.jit
@jax.vmap
def reported(chain, t):
    path = st.dominant_path(chain, t)
    bounds = st.residual_bounds(chain, t, path=path)
    return path, bounds, st.check_conditions(chain, t), st.classify(chain, t, bounds=bounds)


def test_an_identity_layer_changes_the_jacobian_not_at_all_and_certifies_nothing():
    """Its directions are tied: hypotheses about them are UNDECIDED, bounds hold for the basis chosen."""
    w, g, _, _ = makers.block(2, 20, L - 1, D, C, families=(makers.theorem,))
    at = 3
    longer = (np.insert(w, at, np.eye(D), axis=1), np.insert(g, at, 0.0, axis=1))
    chains = batches.batch(*longer)
    found = batches.verified(chains)
    for i in range(20):
        v, short = batches.take(found, i), oracle.Stack(w[i], g[i])
        scale = short.scale() + oracle.norm(short.G[L - 1])
        whole = np.outer(v.path.u, v.path.psi) + v.path.direct + v.path.residual
        np.testing.assert_allclose(whole, short.jacobian(), atol=1e-12 * scale)
    # H3 asks of the tied layer only what entered before it, or right before it
    asked = np.any(g[:, : at + 1] != 0, axis=(1, 2, 3))
    assert asked.sum() > 10
    for name in ("stability", "alignment"):
        assert not (found.conditions[name].code == Verdict.HOLDS).any()
    assert not (found.conditions["coherence"].code[asked] == Verdict.HOLDS).any()
    assert (found.conditions["purity"].code == Verdict.VIOLATED).sum() > 10
    assert not (found.claims.code == Verdict.VIOLATED).any()
    assert not agreement.disagreements(chains, found)


def test_in_one_dimension_an_identity_layer_is_no_layer():
    w, g, _, _ = makers.block(2, 20, 3, 1, 2, families=(makers.any_scalars,))
    found = batches.verified(batches.batch(np.insert(w, 2, 1.0, axis=1), np.insert(g, 2, 0.0, axis=1)))
    for i in range(20):
        v, short = batches.take(found, i), oracle.Stack(w[i], g[i])
        np.testing.assert_allclose(np.outer(v.path.u, v.path.psi), np.outer(short.u[3], short.psi()), rtol=1e-12)
        np.testing.assert_allclose(np.exp(v.path.log_scale), short.scale(), rtol=1e-12)
        mine, wanted = v.conditions["cumulative_gain"].value, short.conditions()["cumulative_gain"]
        np.testing.assert_allclose(mine, wanted, rtol=1e-12)


def test_many_chains_at_once_are_each_verified_as_if_alone():
    w, g, _, _ = makers.block(4, 45, 6, 8, 3)
    chains = batches.batch(w, g)
    together = jax.jit(jax.vmap(st.verify))(chains)
    for i in range(45):
        alone = st.verify(jax.tree.map(lambda x, i=i: x[i], chains))
        here = jax.tree.map(lambda x, i=i: np.asarray(x)[i], together)
        assert (alone.claims.code == here.claims.code).all(), i
        assert (alone.conditions.code == here.conditions.code).all(), i
        assert alone.regime.code == here.regime.code
        for part in ("path", "bounds"):
            mine, other = getattr(alone, part), getattr(here, part)
            for name in type(mine).__dataclass_fields__:
                if name not in ("log_identity_error", "psi_direction", "residual_unit"):
                    unit = np.exp(alone.path.log_scale) if not name.startswith("log") else 1.0
                    a, b = np.asarray(getattr(mine, name)), getattr(other, name)
                    rounding = a < -30 + np.asarray(alone.path.log_scale) if name.startswith("log") else False
                    np.testing.assert_allclose(
                        np.where(rounding, 0, a), np.where(rounding, 0, b), rtol=1e-7, atol=1e-7 * max(unit, 1e-300)
                    )
