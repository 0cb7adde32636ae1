"""Leading triplets: closed forms, what was planted, and error bars that contain the exact number."""

import itertools
from decimal import Decimal, getcontext

import agreement
import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st

SHAPES = [(8, 4, 3, False), (5, 6, 4, True), (7, 2, 2, False), (4, 1, 2, False), (2, 2, 2, False)]
EPS = np.finfo(np.float64).eps


def chain_of(*matrices):
    return st.LayerChain(jnp.asarray(np.stack(matrices), jnp.float64))


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triplets_agree_with_the_oracle(shape):
    chains, found, _ = batches.examined(shape)
    only = type("Found", (), {"triplets": found.triplets})
    assert not agreement.disagreements(chains, only)


def test_closed_form():
    t = st.decompose(chain_of([[0.0, -3.0], [1.0, 0.0]], [[0.6, -0.8], [1.6, 1.2]]))
    np.testing.assert_allclose(t.sigma, [[3, 1], [2, 1]], rtol=1e-15)
    np.testing.assert_allclose(t.xi, [1 / 3, 1 / 2], rtol=1e-15)
    np.testing.assert_allclose(np.abs(t.u), [[1, 0], [0, 1]], atol=1e-15)
    np.testing.assert_allclose(np.abs(t.v), [[0, 1], [0.8, 0.6]], atol=1e-15)
    np.testing.assert_allclose(np.abs(t.kappa), [0.8], rtol=1e-15)
    np.testing.assert_allclose(t.misalignment, [0.6], rtol=1e-15)
    np.testing.assert_allclose(t.alignment_defect, [0.2], rtol=1e-14)
    np.testing.assert_allclose(t.rho, [2.4], rtol=1e-15)
    np.testing.assert_allclose(t.lam, [np.log(2.4)], rtol=1e-14)
    np.testing.assert_allclose(t.gap, [2, 1], rtol=1e-15)
    assert t.resolved.all() and t.certified.all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_canonical_sign_makes_the_largest_entry_of_u_positive(shape):
    _, found, _ = batches.examined(shape)
    u = found.triplets.u
    largest = np.take_along_axis(u, np.argmax(np.abs(u), axis=-1)[..., None], axis=-1)
    assert (largest > 0).all()


def test_planted_scalars_are_recovered_after_a_change_of_basis():
    L, D, C = 64, 64, 48
    rng = np.random.default_rng(0)
    sigma, xi, gamma = rng.uniform(0.5, 2, L), rng.uniform(0, 0.95, L), rng.uniform(0.1, 1, L)
    kappa = rng.uniform(0.1, 1, L - 1) * rng.choice([-1, 1], L - 1)
    kappa[::7] = 1 - 1e-7
    chain = st.ensembles.planted(
        jax.random.key(1), layers=L, width=D, context=C, sigma=sigma, kappa=kappa, xi=xi, gamma=gamma, coherence=0.9
    )
    basis = np.linalg.qr(rng.normal(size=(L + 1, D, D)))[0]
    turned = st.LayerChain(
        jnp.asarray(np.swapaxes(basis[1:], 1, 2) @ np.asarray(chain.propagators) @ basis[:-1]),
        jnp.asarray(np.swapaxes(basis[1:], 1, 2) @ np.asarray(chain.injections)),
    )
    decompose = jax.jit(st.decompose)
    for each in (chain, turned):
        t = decompose(each)
        np.testing.assert_allclose(t.sigma[:, 0], sigma, rtol=1e-9)
        np.testing.assert_allclose(t.xi, xi, atol=1e-9)
        np.testing.assert_allclose(np.abs(t.kappa), np.abs(kappa), atol=1e-9)
        np.testing.assert_allclose(t.alignment_defect, 1 - np.abs(kappa), atol=1e-12)
        np.testing.assert_allclose(t.misalignment, np.sqrt((1 - kappa) * (1 + kappa)), atol=1e-9)
        rows = np.einsum("kd,kdc->kc", t.v[1:], each.injections[:-1])
        found = np.linalg.norm(rows, axis=1) / np.linalg.norm(each.injections[:-1], axis=(1, 2))
        np.testing.assert_allclose(found, gamma[:-1], atol=1e-9)


@pytest.mark.parametrize("angle", [1e-9, 1e-12, 1e-5, 0.3, np.pi / 2])
def test_misalignment_has_no_cancellation(angle):
    t = st.decompose(chain_of(np.diag([2.0, 1.0]), rotation(0.7) @ np.diag([2.0, 1.0]) @ rotation(-angle)))
    np.testing.assert_allclose(t.misalignment, [np.sin(angle)], rtol=1e-9, atol=4 * EPS)
    np.testing.assert_allclose(
        t.alignment_defect, [2 * np.sin(angle / 2) ** 2], rtol=1e-12, atol=4 * EPS * angle + EPS**2
    )


def exact(matrix):
    """Return sigma_1, sigma_2, angle-free right and left vectors of an integer 2x2 matrix to 60 digits."""
    getcontext().prec = 60
    (a, b), (c, d) = [[Decimal(int(x)) for x in row] for row in matrix]
    total, determinant = a * a + b * b + c * c + d * d, abs(a * d - b * c)
    first = ((total + 2 * determinant).sqrt() + (total - 2 * determinant).sqrt()) / 2
    second = determinant / first
    m, o = a * a + c * c, a * b + c * d  # first column of W^T W
    v = (o, first**2 - m) if abs(first**2 - m) > abs(o) else (first**2 - (b * b + d * d), o)
    size = (v[0] ** 2 + v[1] ** 2).sqrt()
    v = (v[0] / size, v[1] / size)
    u = ((a * v[0] + b * v[1]) / first, (c * v[0] + d * v[1]) / first)
    return first, second, u, v


def test_error_bars_contain_the_exact_numbers():
    """Integer 2x2 matrices, well separated and nearly tied, against 60-digit arithmetic."""
    rng = np.random.default_rng(3)
    wide = rng.integers(-(2**20), 2**20, (60, 2, 2))
    near = [[[n, 1], [-1, n + k]] for n, k in itertools.product((10**4, 10**6, 10**7), (1, 3, 50))]
    matrices = np.concatenate([wide, np.asarray(near)]).astype(np.float64)
    t = st.decompose(chain_of(*matrices))
    answers = [exact(w) for w in matrices]
    number = lambda x: np.array([float(abs(d)) for d in x])
    exactly = lambda x: [Decimal(float(value)) for value in x]
    sigma = [Decimal(x) for x in map(float, t.sigma[:, 0])]
    assert (number(s - a[0] for s, a in zip(sigma, answers, strict=True)) <= t.sigma_error).all()
    second = [Decimal(x) for x in map(float, t.sigma[:, 1])]
    assert (number(s - a[1] for s, a in zip(second, answers, strict=True)) <= t.sigma2_error).all()
    xi = number(s - a[1] / a[0] for s, a in zip(exactly(t.xi), answers, strict=True))
    assert (xi <= t.xi_error).all()
    for vectors, which in ((t.u, 2), (t.v, 3)):
        cross = [x[0] * a[which][1] - x[1] * a[which][0] for x, a in zip(map(exactly, vectors), answers, strict=True)]
        assert (number(cross) <= np.sin(t.vector_error) + 1e-18).all(), which
    kappa = [abs(a[2][0] * b[3][0] + a[2][1] * b[3][1]) for a, b in itertools.pairwise(answers)]
    off = lambda got, wanted: number(g - w for g, w in zip(exactly(got), wanted, strict=True))
    assert (off(np.abs(t.kappa), kappa) <= t.kappa_error).all()
    rho = [a[0] * k for a, k in zip(answers, kappa, strict=False)]
    assert (off(t.rho, rho) <= t.rho_error).all()
    assert (off(t.lam, [r.ln() for r in rho]) <= t.lam_error + 4 * EPS * np.abs(t.lam)).all()
    # and they are not vacuous: far from a tie they are a few hundred units of rounding
    assert (t.sigma_error[:60] <= 100 * EPS * t.sigma[:60, 0]).all()
    separated = (t.gap > 0.1 * t.sigma[:, 0])[:60]
    assert separated.sum() > 30
    assert (t.vector_error[:60][separated] <= 1e-12).all()


@pytest.mark.parametrize(("gap", "resolved"), [(0.0, False), (64 * 2 * EPS * 0.9, False), (1e-9, True), (0.5, True)])
def test_resolved_follows_its_definition(gap, resolved):
    t = st.decompose(chain_of(np.diag([1.0, 1.0 - gap]), np.diag([2.0, 1.0])))
    assert t.resolved.tolist() == [resolved, True]
    assert t.certified.all()


def test_a_residual_too_large_for_the_gap_leaves_a_triplet_unresolved():
    """At width 128 the certified residual is some 1e-13: a gap of 1e-12 is above rounding, and still not known."""
    t = st.decompose(chain_of(np.diag(np.append([1.0, 1.0 - 2e-11], np.full(126, 0.5)))))
    rotated = np.linalg.qr(np.random.default_rng(0).normal(size=(128, 128)))[0]
    s = st.decompose(chain_of(rotated @ np.diag(np.append([1.0, 1.0 - 2e-11], np.full(126, 0.5))) @ rotated.T))
    for each in (t, s):
        assert (each.resolved == ((each.residual <= 1e-3 * each.gap) & (each.gap > 64 * 128 * EPS))).all()
    assert not s.resolved.any()


def test_a_zero_matrix_has_every_direction_tied():
    t = st.decompose(chain_of(np.zeros((2, 2)), np.diag([2.0, 1.0])))
    assert t.xi.tolist() == [1.0, 0.5] and t.resolved.tolist() == [False, True]
    assert t.sigma[0].tolist() == [0.0, 0.0] and t.rho.tolist() == [0.0]
    assert all(np.isfinite(x).all() for x in (t.u, t.v, t.kappa, t.misalignment, t.vector_error))
    assert np.isneginf(t.lam).all() and np.isinf(t.lam_error).all()


def test_width_one():
    t = st.decompose(chain_of([[-3.0]], [[0.5]], [[2.0]]))
    assert t.sigma.tolist() == [[3.0, 0.0], [0.5, 0.0], [2.0, 0.0]]
    assert t.xi.tolist() == [0.0] * 3 and np.abs(t.kappa).tolist() == [1.0, 1.0]
    assert t.misalignment.tolist() == [0.0, 0.0] and t.u.tolist() == [[1.0]] * 3
    assert t.U.shape == t.V.shape == (3, 1, 1) and t.sigma_top[:, -1].tolist() == [0.0] * 3


def test_nothing_is_certified_of_nan():
    for bad in (np.nan, np.inf):
        w = jnp.asarray([[[2.0, 0.0], [0.0, 1.0]], [[2.0, bad], [0.0, 1.0]]])
        t = jax.vmap(st.decompose)(batches.batch(w[None]))
        assert t.resolved[0].tolist() == [True, False] and t.certified[0].tolist() == [True, False]
        assert np.isnan(t.xi[0, 1]) and t.vector_error[0, 1] == np.pi / 2


@pytest.mark.parametrize("top", [1, 3, 4])
def test_the_leading_K_are_kept(top):
    w = np.random.default_rng(0).normal(size=(3, 4, 4))
    t = st.decompose(chain_of(*w), top=top)
    values = np.linalg.svd(w)[1]
    assert t.U.shape == t.V.shape == (3, 4, top)
    np.testing.assert_allclose(t.sigma_top, np.pad(values, ((0, 0), (0, 1)))[:, : top + 1], atol=1e-14)
    np.testing.assert_allclose(np.einsum("lij,ljk->lik", w, t.V), t.U * values[:, None, :top], atol=1e-14)


def test_batches_and_single_chains_agree():
    chains, found, _ = batches.examined((8, 4, 3, False))
    alone = st.decompose(jax.tree.map(lambda x: x[0], chains))
    for name in type(alone).__dataclass_fields__:
        np.testing.assert_allclose(getattr(alone, name), getattr(found.triplets, name)[0], rtol=1e-9, atol=1e-12)


def test_single_precision_stays_single():
    w = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    t = st.decompose(st.LayerChain(jnp.asarray(w)))
    assert {x.dtype for x in jax.tree.leaves(t)} == {jnp.dtype("float32"), jnp.dtype("bool")}
    np.testing.assert_allclose(t.sigma[:, 0], np.linalg.svd(w.astype(np.float64))[1][:, 0], rtol=1e-6)
    assert (np.abs(t.sigma[:, 0] - np.linalg.svd(w.astype(np.float64))[1][:, 0]) <= t.sigma_error).all()
