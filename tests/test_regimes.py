"""Regimes: certificates against the oracle, the phase diagram in closed form, Lyapunov exponents."""

import agreement
import batches
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import spectral_theorem as st
from spectral_theorem.types import Regime

SHAPES = [(8, 4, 3, False), (5, 6, 4, True), (7, 2, 2, False), (4, 1, 2, False), (2, 2, 2, False)]
SPECTRAL = lambda w: np.linalg.norm(w, 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_regimes_agree_with_the_oracle(shape):
    chains, found, _ = batches.examined(shape)
    parts = {"triplets": found.triplets, "regime": found.regime, "thresholds": found.thresholds}
    assert not agreement.disagreements(chains, type("Found", (), parts))


# the phase diagram --------------------------------------------------------------------------------------


def grid():
    kappa, xi = np.meshgrid([0.0, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0], [0.0, 1e-6, 0.1, 0.5, 0.9, 1.0])
    return kappa.ravel(), xi.ravel()


def test_growth_rate_is_the_spectral_radius_of_the_plane_that_grows_fastest():
    kappa, xi = grid()
    rates = st.phase(3.0, kappa, xi).growth_rate
    radius = [3 * np.abs(np.linalg.eigvals(oracle.growth_matrix(k, x))).max() for k, x in zip(kappa, xi, strict=True)]
    np.testing.assert_allclose(rates, radius, atol=1e-9)
    np.testing.assert_allclose(st.phase(1.0, kappa, np.zeros_like(xi)).growth_rate, kappa)  # pure: rho decides


def test_cone_rate_is_the_growth_of_the_direction_that_attracts():
    kappa, xi = grid()
    rates = np.asarray(st.phase(2.0, kappa, xi).cone_rate)
    s = np.sqrt((1 - kappa) * (1 + kappa))
    inside = s * (1 + xi) < 1 - xi
    np.testing.assert_array_equal(np.isfinite(rates), inside)
    for k, x, rate in zip(kappa[inside], xi[inside], rates[inside], strict=True):
        values = np.linalg.eigvals(oracle.turning_matrix(k, x))
        assert np.abs(values.imag).max() < 1e-12
        np.testing.assert_allclose(rate, 2 * values.real.max(), rtol=1e-9)


def test_regions():
    """sigma r* below 1 disperses, a cone with sigma r_- of at least 1 attracts, and between them nothing is said."""
    regime = lambda *scalars: st.phase(*scalars).regime
    assert regime(0.99, 1.0, 0.0) == Regime.DISPERSIVE
    assert regime(1.0, 1.0, 0.0) == Regime.ATTRACTOR
    assert regime(3.0, 0.1, 0.9) == Regime.INDETERMINATE  # rho = 0.3, and the plane grows by 2.86 per layer
    assert regime(3.0, 0.1, 0.0) == Regime.DISPERSIVE  # pure: there rho < 1 is right
    assert regime(1.02, -0.9999, 0.01) == Regime.ATTRACTOR  # the sign of kappa is a matter of gauge
    assert [r.name for r in st.phase([0.5, 2.0], 1.0, 0.5).regime] == ["DISPERSIVE", "ATTRACTOR"]


def test_nothing_is_certified_of_nan():
    found = jax.jit(st.phase)(jnp.asarray([jnp.nan, 1.0, 1.0]), jnp.asarray([1.0, jnp.nan, 1.0]), jnp.asarray(0.1))
    assert np.asarray(found.code)[:2].tolist() == [Regime.INDETERMINATE] * 2


@pytest.mark.parametrize("scalars", [(0, 1, 0), (-1, 1, 0), (1, 1.1, 0), (1, 0, -0.1), (1, 0, 1.1), (np.nan, 1, 0)])
def test_scalars_out_of_range_are_refused(scalars):
    with pytest.raises(st.InputError, match=r"got .*; expected sigma > 0.*; try phase"):
        st.phase(*scalars)


def test_rates_have_gradients():
    rate = lambda k, x: st.phase(2.0, k, x).growth_rate + st.phase(2.0, k, x).cone_rate
    for i in (0, 1):
        at = np.asarray([0.95, 0.1])
        step = 1e-6 * np.eye(2)[i]
        slope = (rate(*(at + step)) - rate(*(at - step))) / 2e-6
        np.testing.assert_allclose(jax.grad(rate, argnums=i)(*at), slope, rtol=1e-7)


# one chain of each kind, in the shape (7, 2, 2) ---------------------------------------------------------


def constant(layer):
    return np.tile(np.asarray(layer, float), (7, 1, 1))


edge = (1 - 0.3) / (1 + 0.3)
KINDS = {
    "attracts": constant(2 * oracle.turning_matrix(np.sqrt(1 - 0.1**2), 0.1)),
    "shrinks": constant(0.3 * np.eye(2) @ np.diag([1.0, 0.9])),
    "grows with rho below one": constant(3 * oracle.growth_matrix(0.1, 0.9)),
    "just inside the cone": constant(2 * oracle.turning_matrix(np.sqrt(1 - (edge - 1e-9) ** 2), 0.3)),
    "just outside the cone": constant(2 * oracle.turning_matrix(np.sqrt(1 - (edge + 1e-9) ** 2), 0.3)),
    "right angle": constant([[0.0, -0.5], [1.0, 0.0]]),
    "tied": constant(np.eye(2)),
}


@pytest.fixture(scope="module")
def kinds():
    w = np.stack(list(KINDS.values()))
    g = np.tile(np.eye(2), (len(w), 7, 1, 1))
    found = batches.verified(batches.batch(w, g))
    return {name: batches.take(found, i) for i, name in enumerate(KINDS)}


def test_certified_and_naive_readings_part_ways(kinds):
    read = {name: (v.regime.regime.name, v.regime.naive.name) for name, v in kinds.items()}
    assert read["attracts"] == ("ATTRACTOR", "ATTRACTOR")
    assert read["shrinks"] == ("DISPERSIVE", "DISPERSIVE")
    assert read["grows with rho below one"] == ("INDETERMINATE", "DISPERSIVE")
    assert np.linalg.norm(np.linalg.matrix_power(KINDS["grows with rho below one"][0], 6), 2) > 2.8**6 * 0.3
    # no cone passes a right angle; this plane decays by sqrt(xi) per layer
    assert read["right angle"][0] == "DISPERSIVE" and np.isneginf(kinds["right angle"].regime.cone_margin)
    assert read["tied"][1] == "INDETERMINATE" and kinds["tied"].regime.cone_margin <= 0


def test_the_cone_ends_where_the_plane_starts_to_rotate(kinds):
    inside, outside = kinds["just inside the cone"].regime, kinds["just outside the cone"].regime
    assert 0 < inside.cone_margin < 1e-7 and -1e-7 < outside.cone_margin < 0
    assert np.isnan(outside.log_tracked_growth) and np.isnan(outside.output_angle) and not outside.caught.any()


def test_the_tracked_cone_is_attained_by_the_turning_plane(kinds):
    regime, layer = kinds["attracts"].regime, KINDS["attracts"][0]
    x = np.linalg.matrix_power(layer, 6) @ [1.0, 0.0]  # v is the first axis, u the layer's first column
    u = layer[:, 0] / np.linalg.norm(layer[:, 0])
    np.testing.assert_allclose(regime.output_angle, np.arccos(u @ x / np.linalg.norm(x)), rtol=1e-9)
    along = (np.linalg.matrix_power(layer, 5) @ [1.0, 0.0])[0] * 2  # what the last layer's v picks up
    np.testing.assert_allclose(np.exp(regime.log_tracked_growth), along, rtol=1e-9)
    assert regime.log_cone_growth <= regime.log_tracked_growth


def test_an_injection_is_caught_up_to_the_widest_aperture():
    """tau* = (1 - s)/(kappa xi), with gamma = 1/sqrt(1 + tau^2): 1 % inside is caught, 1 % outside is not."""
    kappa, xi = np.sqrt(1 - 0.1**2), 0.3
    widest = (1 - 0.1) / (kappa * xi)
    w = KINDS["attracts"] * 0 + 2 * oracle.turning_matrix(kappa, xi)
    g = np.stack([np.tile([[1.0, 0.0], [0.0, widest * f]], (7, 1, 1)) for f in (0.99, 1.01)])
    found = batches.verified(batches.batch(np.stack([w, w]), g))
    # the last injection meets no coupling: its cone is wider still
    assert found.regime.caught[:, :-1].tolist() == [[True] * 5, [False] * 5]
    assert found.regime.caught[:, -1].all()


# Lyapunov exponents -------------------------------------------------------------------------------------


def test_exponents_add_up_to_the_volume_of_all_layers():
    for shape in ((8, 4, 3, False), (7, 2, 2, False)):
        chains, found, _ = batches.examined(shape)
        compared, gains = 0, []
        for i, stack in enumerate(agreement.stacks(chains, found.triplets)):
            mine, w = found.regime.lyapunov[i], np.asarray(chains.propagators[i])
            assert (mine[1:] <= mine[:-1]).all()
            if np.linalg.cond(w).max() > 1e6:
                continue  # where a layer is singular its volume is nothing but rounding
            np.testing.assert_allclose(mine.sum(), np.linalg.slogdet(w)[1].mean(), atol=1e-9)
            if np.prod(np.linalg.cond(w)) < 1e9:  # so that the oracle's product keeps seven digits of its volumes
                np.testing.assert_allclose(mine.sum(), sum(stack.lyapunov()), atol=1e-7)
                # no m directions gain more volume than the m leading singular values of the product
                most = np.cumsum(np.log(np.linalg.svd(stack.product(0))[1])) / stack.L
                assert (np.cumsum(mine) <= most + 1e-7).all() and (np.cumsum(stack.lyapunov()) <= most + 1e-7).all()
                # on average the sweep back through the layers finds more of it than an arbitrary frame
                gains.append((np.cumsum(mine) - np.cumsum(stack.lyapunov()))[:-1].mean())
                compared += 1
        assert compared > 10 and np.mean(gains) > 0.01


def test_exponents_are_close_to_the_singular_values_of_the_product():
    """Within log 2 over L for the first, since the sweep starts within 60 degrees of the product's own direction."""
    chains, found, families = batches.examined((8, 4, 3, False))
    generic = [i for i, name in enumerate(families) if name in ("gaussian", "any_scalars", "near_identity")]
    assert len(generic) > 10
    for i in generic:
        stack = agreement.stacks(jax.tree.map(lambda x, i=i: x[i : i + 1], chains), one(found.triplets, i))[0]
        largest = np.log(SPECTRAL(stack.product(0))) / stack.L
        assert largest - np.log(2) / stack.L <= found.regime.lyapunov[i][0] <= largest + 1e-12


def one(triplets, i):
    return jax.tree.map(lambda x: x[i : i + 1], triplets)


def test_exponents_of_commuting_and_of_singular_layers():
    exponents = lambda w: np.asarray(st.lyapunov_exponents(jnp.asarray(w)))
    np.testing.assert_allclose(exponents(np.tile(np.diag([0.5, 2.0]), (5, 1, 1))), [np.log(2), -np.log(2)], atol=1e-12)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    np.testing.assert_allclose(exponents(np.tile(3 * turn, (5, 1, 1))), [np.log(3)] * 2, atol=1e-12)
    singular = exponents(np.tile(np.diag([2.0, 0.0]), (5, 1, 1)))
    np.testing.assert_allclose(singular[0], np.log(2), atol=1e-12)
    assert np.isneginf(singular[1])
