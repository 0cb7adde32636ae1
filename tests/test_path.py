"""The dominant path: against the oracle, in closed form, and the two routes to the residual kept apart."""

import agreement
import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st

SHAPES = [(8, 4, 3, False), (5, 6, 4, True), (7, 2, 2, False), (4, 1, 2, False), (2, 2, 2, False)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_path_agrees_with_the_oracle(shape):
    chains, found, _ = batches.examined(shape)
    only = type("Found", (), {"triplets": found.triplets, "path": found.path})
    assert not agreement.disagreements(chains, only)


def routes_differ(path):
    """Say whether the two routes to the residual round differently, as two computations do and one cannot."""
    return np.mean(np.isfinite(path.log_identity_error)) > 0.5


def test_the_two_routes_share_no_intermediate():
    """Equal to rounding and not beyond: an error of exactly 0 on most chains would mean one route."""
    for shape in ((8, 4, 3, False), (7, 2, 2, False)):
        path = batches.examined(shape)[1].path
        assert routes_differ(path)
        assert (path.log_identity_error < path.log_scale + np.log(1e-13)).mean() > 0.9


def test_closed_form():
    """W_l = diag(2, 1), injections (1, 1): 2 + 4 along the path, 1 + 1 beside it."""
    chain = st.LayerChain(jnp.stack([jnp.diag(jnp.asarray([2.0, 1.0]))] * 3), jnp.ones((3, 2, 1)))
    path = st.dominant_path(chain, st.decompose(chain))
    np.testing.assert_allclose(np.outer(path.u, path.psi), [[6.0], [0.0]], atol=1e-12)
    np.testing.assert_allclose(path.residual, [[0.0], [2.0]], atol=1e-12)
    np.testing.assert_allclose(path.direct, [[1.0], [1.0]])
    np.testing.assert_allclose(st.context_jacobian(chain), [[7.0], [3.0]], atol=1e-12)
    np.testing.assert_allclose(np.exp(path.log_amplitude), [4.0, 2.0], rtol=1e-14)
    np.testing.assert_allclose(np.exp(path.log_scale), np.sqrt(2) * 6, rtol=1e-14)


def test_a_right_angle_cuts_the_path():
    """kappa = 0: what entered before it contributes nothing to Psi, and has no sign."""
    turn = jnp.asarray([[0.0, -1.0], [1.0, 0.0]])
    w = jnp.stack([jnp.diag(jnp.asarray([2.0, 1.0]))] * 4).at[2].set(turn @ jnp.diag(jnp.asarray([2.0, 1.0])))
    chain = st.LayerChain(w, jnp.ones((4, 2, 1)))
    path = st.dominant_path(chain, st.decompose(chain))
    assert path.sign.tolist() == [0.0, 0.0, path.sign[2]] and abs(path.sign[2]) == 1.0
    assert np.isneginf(path.log_amplitude[:2]).all()
    np.testing.assert_allclose(np.outer(path.u, path.psi), [[2.0], [0.0]], atol=1e-12)


def test_scales_beyond_floating_point_stay_finite_in_logarithms():
    """A planted chain times 1e250 per layer: logs move by the gains, directions stay, plain numbers overflow."""
    plant = lambda sigma: st.ensembles.planted(
        jax.random.key(0), layers=3, width=2, context=1, sigma=sigma, kappa=0.9, xi=0.3, gamma=0.5, coherence=1.0
    )
    find = jax.jit(lambda chain: st.dominant_path(chain, st.decompose(chain)))
    small, large = find(plant(1.0)), find(plant(np.asarray([1.0, 1e200, 1e200])))
    # one layer acts on G_2, two act on G_1: the last dominates by 1e200
    assert np.isinf(large.psi).all() and np.isfinite(large.log_psi_norm) and np.isfinite(large.residual_unit).all()
    np.testing.assert_allclose(
        large.log_amplitude - small.log_amplitude, np.log(1e200) * np.asarray([2, 1]), rtol=1e-12
    )
    assert large.log_identity_error < large.log_scale + np.log(1e-13)


def test_without_context_there_is_no_path_to_speak_of():
    chains, found, _ = batches.examined((6, 3, 0, False))
    assert not agreement.disagreements(chains, found)
    assert found.path.psi.shape[1:] == (0,) and found.path.residual.shape[1:] == (3, 0)
    assert np.isneginf(found.path.log_psi_norm).all() and np.isneginf(found.path.log_scale).all()
    with pytest.raises(st.InputError, match="chain without context"):
        st.context_jacobian(batches.take(chains, 0))


def test_one_layer_has_only_its_direct_term():
    chains, found, _ = batches.examined((1, 3, 2, False))
    np.testing.assert_array_equal(found.path.direct, chains.injections[:, 0])
    assert not found.path.psi.any() and not found.path.residual.any()
    assert found.path.log_amplitude.shape == (len(found.path.u), 0)


def test_one_layer_with_a_first_state_that_depends_on_the_context_is_a_chain():
    chains, found, _ = batches.examined((1, 3, 2, True))
    assert not agreement.disagreements(chains, found)
    assert (found.path.log_scale > -np.inf).any()


def test_gradient_of_the_path_where_a_weak_rest_is_tied():
    """Psi depends on leading vectors only: equal singular values below them are no obstacle to its gradient."""
    chain = st.ensembles.planted(
        jax.random.key(2), layers=4, width=3, context=2, sigma=1.1, kappa=0.8, xi=0.4, gamma=0.6, coherence=0.8
    )
    size = lambda c: st.dominant_path(c, st.decompose(c)).log_psi_norm
    value, gradient = jax.jit(size), jax.jit(jax.grad(size))(chain)
    step, direction = 1e-5, np.random.default_rng(0).normal(size=chain.propagators.shape)
    moved = lambda by: st.LayerChain(chain.propagators + by * direction, chain.injections)
    slope = (value(moved(step)) - value(moved(-step))) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient.propagators * direction), slope, rtol=1e-6)
