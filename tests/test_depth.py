"""Ten thousand layers: products of 3^10000 and 0.3^10000 change no verdict that does not speak of gains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem.verification import CLAIMS

DEPTH = 10_000
SIGMAS = (1.0, 3.0, 0.3)
# compiled as users run it: at the suite's own settings the O(L^2) sweep takes four times as long
FAST = {"xla_backend_optimization_level": 3}


@pytest.fixture(scope="module")
def deep():
    plant = lambda sigma: st.ensembles.planted(
        jax.random.key(0),
        layers=DEPTH,
        width=2,
        context=2,
        sigma=sigma,
        kappa=1 - 4e-6,
        xi=4e-6,
        gamma=0.5,
        coherence=0.9,
    )
    verify = jax.jit(lambda chain: st.verify(chain), compiler_options=FAST)
    return {sigma: jax.device_get(verify(plant(sigma))) for sigma in SIGMAS}


@pytest.mark.parametrize("sigma", SIGMAS[1:])
def test_verdicts_of_deep_chains_are_those_of_gain_one(deep, sigma):
    one, other = deep[1.0], deep[sigma]
    names = lambda v: {name: condition.verdict.name for name, condition in v.conditions.items()}
    assert names(one) == {"stability": "VIOLATED", "alignment": "HOLDS", "coherence": "HOLDS", "purity": "HOLDS"}
    assert names(other) == names(one) | {"stability": "HOLDS" if sigma > 1 else "VIOLATED"}
    about_gains = {name for name, spec in CLAIMS.items() if "stability" in spec.needs} | {"dispersion"}
    for name in CLAIMS.keys() - about_gains:
        assert other.claims[name].verdict == one.claims[name].verdict, name
    assert other.violated == one.violated == ()
    expected = "HOLDS" if sigma > 1 else "NOT_APPLICABLE"
    assert {other.claims[name].verdict.name for name in ("c1", "c2")} == {expected}
    assert other.regime.regime.name == ("ATTRACTOR" if sigma > 1 else "DISPERSIVE")


@pytest.mark.parametrize("sigma", SIGMAS)
def test_logarithms_of_deep_chains_are_finite_and_right(deep, sigma):
    v, steps = deep[sigma], np.arange(DEPTH - 1, 0, -1)
    gain = steps * np.log(sigma)
    np.testing.assert_allclose(v.path.log_amplitude, gain + (steps - 1) * np.log1p(-4e-6), atol=1e-6)
    for name in ("log_psi_norm", "log_residual_norm", "log_identity_error", "log_scale"):
        assert np.isfinite(getattr(v.path, name)), name
    # every injection has unit size; all agree on one direction to within the planted coherence
    scale = np.logaddexp.reduce(gain)
    np.testing.assert_allclose(v.path.log_scale, scale, atol=1e-6)
    assert np.log(0.9 * 0.5) - 0.05 <= v.path.log_psi_norm - scale <= np.log(0.5)
    bounds = [v.path.log_residual_norm, v.bounds.log_transfer, v.bounds.log_telescoping, v.bounds.log_paper]
    assert (np.diff(bounds) > -1e-6).all() and np.isfinite(bounds).all()
    assert np.isfinite(v.bounds.log_propagator_norm).all()
    assert v.path.log_identity_error < v.path.log_scale + np.log(1e-9)
    np.testing.assert_allclose(v.regime.lyapunov[0], np.log(sigma), atol=1e-5)


def test_plain_numbers_may_overflow_and_say_so(deep):
    assert np.isinf(jnp.exp(deep[3.0].bounds.log_paper)) and jnp.exp(deep[0.3].bounds.log_propagator_norm[0]) == 0
    assert np.isinf(deep[3.0].path.residual).any() and np.isfinite(deep[3.0].path.residual_unit).all()
