"""Frobenius norms from products: closed forms, coverage of the intervals, and intervals seen to fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from spectral_theorem.trace import chi_square_quantile, frobenius_norm
from spectral_theorem.types import InputError

N = 100
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]
SPECTRA = {
    "flat": np.ones(N),
    "decaying": 1 / np.arange(1, N + 1),
    "geometric": 0.8 ** np.arange(N),
    "rank one": np.eye(N)[0],
    "two": np.r_[1.0, 0.7, np.zeros(N - 2)],
    "spike on a floor": np.r_[3 * np.sqrt(N), np.ones(N - 1)],
}


def many(spectrum, trials, **options):
    a = jnp.asarray(TURN * spectrum)
    one = lambda key: frobenius_norm(key, rmatvec=lambda y: y @ a, rows=N, dtype=a.dtype, **options)
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), trials)), np.linalg.norm(spectrum)


def covered(lower, upper, truth):
    return float(np.mean((np.asarray(lower) <= truth) & (truth <= np.asarray(upper))))


@pytest.mark.parametrize("sketch", [0, 8])
@pytest.mark.parametrize("name", SPECTRA)
def test_intervals_cover(name, sketch):
    found, truth = many(SPECTRA[name], 500, sketch=sketch, probes=16)
    assert covered(found.lower, found.upper, truth) >= 0.93
    assert covered(found.lower_any, found.upper_any, truth) >= 0.93
    inside = 1 + 1e-12  # they are one interval where the stable rank is 1
    assert (found.lower_any <= found.lower * inside).all() and (found.upper <= found.upper_any * inside).all()
    assert ((found.lower <= found.norm) & (found.norm <= found.upper)).all()


def test_the_count_of_coverage_can_fail():
    # A narrower interval, as if rank one had the stable rank of the flat spectrum, or half the confidence.
    found, truth = many(SPECTRA["rank one"], 500, sketch=0, probes=16)
    middle = lambda end: found.norm + 0.5 * (end - found.norm)
    assert covered(middle(found.lower), middle(found.upper), truth) < 0.93


def test_intervals_are_not_wider_than_they_need_to_be():
    for name, most in {"flat": 0.15, "decaying": 0.06, "geometric": 0.05, "spike on a floor": 0.02}.items():
        found, truth = many(SPECTRA[name], 20, sketch=8, probes=16)
        assert float(jnp.max(found.upper - found.lower)) / 2 / truth < most, name
        found, _ = many(SPECTRA[name], 20, sketch=8, probes=64)
        assert float(jnp.max(found.upper - found.lower)) / 2 / truth < 0.7 * most, name


def test_rank_one_has_the_interval_of_a_chi_square():
    found, truth = many(SPECTRA["rank one"], 4, sketch=0, probes=16)
    np.testing.assert_allclose(found.stable_rank, 1.0, rtol=1e-12)
    np.testing.assert_allclose(found.lower, found.norm * np.sqrt(16 / scipy.stats.chi2.ppf(0.975, 16)), rtol=1e-10)
    np.testing.assert_allclose(found.upper, found.norm * np.sqrt(16 / scipy.stats.chi2.ppf(0.025, 16)), rtol=1e-10)
    assert truth == 1


def test_what_the_sketch_holds_whole_is_exact():
    found, truth = many(SPECTRA["two"], 20, sketch=4, probes=8)
    np.testing.assert_allclose(found.norm, truth, rtol=1e-13)
    assert float(jnp.max(found.upper - found.lower)) < 1e-12
    np.testing.assert_allclose(found.captured, 1.0)
    whole, truth = many(SPECTRA["flat"], 3, sketch=N + 5, probes=2)
    np.testing.assert_allclose(whole.norm, truth, rtol=1e-13)


def test_estimate_is_unbiased_and_the_sketch_helps():
    plain, truth = many(SPECTRA["geometric"], 500, sketch=0, probes=32)
    better, _ = many(SPECTRA["geometric"], 500, sketch=8, probes=16)  # 32 products with the transpose each
    for found in (plain, better):
        squares = np.asarray(found.norm) ** 2
        assert abs(squares.mean() - truth**2) < 4 * squares.std() / np.sqrt(500)
    assert better.norm.std() < 0.2 * plain.norm.std()


def test_the_transpose_may_be_given():
    a = jax.random.normal(jax.random.key(0), (30, 70))
    one = frobenius_norm(jax.random.key(1), rmatvec=lambda y: y @ a, rows=30, dtype=a.dtype)
    two = frobenius_norm(jax.random.key(1), rmatvec=lambda y: y @ a, matvec=lambda x: x @ a.T, rows=30, dtype=a.dtype)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)
    assert one.lower < jnp.linalg.norm(a) < one.upper


def test_scale_goes_through():
    a = jax.random.normal(jax.random.key(0), (30, 70))
    ask = lambda a: frobenius_norm(jax.random.key(1), rmatvec=lambda y: y @ a, rows=30, dtype=a.dtype)
    one, two = ask(a), ask(1e6 * a)
    for name in ("norm", "lower", "upper", "lower_any", "upper_any"):
        np.testing.assert_allclose(getattr(two, name), 1e6 * getattr(one, name), rtol=1e-9)


def test_zero_and_float32_and_nan():
    zero = frobenius_norm(jax.random.key(0), rmatvec=lambda y: 0 * y, rows=9, dtype="float64")
    assert (float(zero.norm), float(zero.lower), float(zero.upper)) == (0.0, 0.0, 0.0)
    a = jnp.asarray(TURN * SPECTRA["decaying"], "float32")
    found = frobenius_norm(jax.random.key(0), rmatvec=lambda y: y @ a, rows=N, dtype="float32")
    assert found.upper.dtype == jnp.dtype("float32")
    assert found.lower < jnp.linalg.norm(a) < found.upper
    bad = frobenius_norm(jax.random.key(0), rmatvec=lambda y: y * jnp.nan, rows=9, dtype="float64")
    assert not bad.lower <= bad.upper


@pytest.mark.parametrize("probability", [1e-3, 0.025, 0.5, 0.975, 0.9999])
def test_quantiles(probability):
    freedom = np.asarray([0.5, 1.0, 2.0, 3.7, 32.0, 1024.0, 1e5])
    found = jax.jit(lambda v: chi_square_quantile(probability, v))(freedom)
    np.testing.assert_allclose(found, scipy.stats.chi2.ppf(probability, freedom), rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rows": 0}, "rows=0"),
        ({"probes": 0}, "probes=0"),
        ({"sketch": -1}, "sketch=-1"),
        ({"confidence": 0.5}, "confidence=0.5"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_nonsense_is_refused(change, word):
    with pytest.raises(InputError, match=word):
        frobenius_norm(jax.random.key(0), **({"rmatvec": lambda y: y, "rows": 3, "dtype": "float64"} | change))
