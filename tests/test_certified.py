"""Certified triplets: error bars contain the truth also where residuals conspire and where a value was missed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_theorem.certificate import certified

D = 24


def observed(w, sigma, u, v):
    """What Lanczos reports: the residual of the worse of two triplets."""
    ahead, back = w @ v - u * sigma, w.T @ u - v * sigma
    return np.sqrt((ahead**2).sum(0) + (back**2).sum(0)).max()


def judged(w, sigma, u, v, dtype=np.float64):
    residual = observed(w, sigma[:2], u, v)
    leaves = (np.asarray(x, dtype)[None] for x in (w, sigma, u, v))
    return certified(*map(jnp.asarray, leaves), residual=jnp.asarray([residual], dtype), converged=jnp.asarray([True]))


def basis(rng, columns=D):
    return np.linalg.qr(rng.normal(size=(D, columns)))[0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1e-9, 1e-5, 1e-3])
def test_bars_contain_values_and_vectors_of_a_disturbed_matrix(seed, size):
    rng = np.random.default_rng(seed)
    left, right = basis(rng), basis(rng)
    values = np.sort(rng.uniform(0, 1, D))[::-1]
    values[:3] = 3.0, 2.9 if seed % 2 else 2.0, 1.5
    u, v = left[:, :2], right[:, :2]
    # all of the disturbance in rows and columns of the triplets, both columns along one direction: they conspire
    side = rng.normal(size=D)
    push = np.outer(side / np.linalg.norm(side), np.ones(2) / np.sqrt(2))
    w = left * values @ right.T + size * (push @ v.T + (u @ push.T if seed % 3 else 0))
    t, bound = judged(w, values[:3], u, v)
    exact_u, exact, exact_v = np.linalg.svd(w)
    assert bool(t.certified[0]) and np.linalg.norm(w - u * values[:2] @ v.T, 2) < float(bound[0])
    assert abs(exact[0] - values[0]) <= float(t.sigma_error[0]) and abs(exact[1] - values[1]) <= float(
        t.sigma2_error[0]
    )
    sine = lambda a, b: np.linalg.norm(a - (a @ b) * b)
    for mine, truth in ((u[:, 0], exact_u[:, 0]), (v[:, 0], exact_v[0])):
        assert sine(mine, truth) <= np.sin(float(t.vector_error[0])) + 1e-15


def test_a_second_value_that_was_missed_is_within_its_bar_or_nothing_is_certified():
    rng = np.random.default_rng(0)
    left, right = basis(rng), basis(rng)
    for missed in (2.0, 2.0 * (1 - 1e-4), 2.015, 2.03, 2.9, 3.5):
        values = np.r_[3.0, 2.0, missed, np.linspace(1.0, 0.1, D - 3)]
        w = left * values @ right.T
        for third in (1.0, 1.99, 1.999):  # estimates of the third value, from below
            t, bound = judged(w, np.r_[3.0, 2.0, third], left[:, :2], right[:, :2])
            exact = np.linalg.svd(w, compute_uv=False)
            if bool(t.certified[0]):
                assert missed < float(bound[0])
                assert abs(exact[0] - 3.0) <= float(t.sigma_error[0])
                assert abs(exact[1] - 2.0) <= float(t.sigma2_error[0])
        assert missed < 2.02 or not bool(t.certified[0])


def test_a_value_missed_between_a_tie_and_the_proof_is_within_the_bars_of_both():
    """All three estimates tied, and one value a little above them: float32 cannot prove that it is not there."""
    rng = np.random.default_rng(1)
    left, right = basis(rng), basis(rng)
    w = left * np.r_[2.0, 2.0, 2.0002, np.linspace(1.0, 0.1, D - 3)] @ right.T
    t, bound = judged(w, np.r_[2.0, 2.0, 2.0], left[:, :2], right[:, :2], np.float32)
    assert bool(t.certified[0]) and float(bound[0]) > 2.0002
    assert min(float(t.sigma_error[0]), float(t.sigma2_error[0])) >= 2.0002 - 2.0 - 1e-6 and not bool(t.resolved[0])


def test_values_that_nearly_tie_with_the_third_are_known_to_rounding_in_float64():
    rng = np.random.default_rng(4)
    left, right = basis(rng), basis(rng)
    values = np.r_[2.001, 2.0, 1.9999, np.linspace(1.0, 0.1, D - 3)]
    t, _ = judged(left * values @ right.T, values[:3], left[:, :2], right[:, :2])
    assert bool(t.certified[0]) and bool(t.resolved[0]) and float(t.sigma2_error[0]) < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_triplets_have_bars_of_rounding(dtype):
    rng = np.random.default_rng(2)
    w = np.asarray(rng.normal(size=(D, D)), dtype)
    u, values, v = np.linalg.svd(w.astype(np.float64))
    t, _ = judged(w, values[:3], u[:, :2], v[:2].T, dtype)
    eps = float(np.finfo(dtype).eps)
    assert bool(t.certified[0]) and float(t.sigma_error[0]) < 200 * eps * values[0]
    assert abs(values[0] - float(t.sigma[0, 0])) <= float(t.sigma_error[0])


def test_the_proof_is_refused_where_it_is_false():
    @jax.jit
    def try_one(w, sigma, u, v):
        return certified(w[None], sigma[None], u[None], v[None], residual=jnp.zeros(1), converged=jnp.asarray([True]))[
            1
        ]

    rng = np.random.default_rng(3)
    for gap in (1e-3, 1e-6, 1e-10, 1e-13):
        left, right = basis(rng), basis(rng)
        # the norm of what is left is above the level by a hair
        w = left * np.r_[3.0, 1.01, 1.01 * (1 + gap), np.zeros(D - 3)] @ right.T
        bound = try_one(w, np.r_[3.0, 1.0, 1.0], left[:, :2], right[:, :2])
        exact = np.linalg.norm(w - left[:, :2] * np.r_[3.0, 1.0] @ right[:, :2].T, 2)
        assert float(bound[0]) > exact
