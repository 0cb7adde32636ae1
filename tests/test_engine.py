"""The engine against the dense route, and its proofs against triplets that are wrong on purpose."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spectra
from factored import PLACES, case, chains
from mutation import mutant

import spectral_theorem as st
from spectral_theorem import certificate, tokenwise
from spectral_theorem.engine import sweep_tokens
from spectral_theorem.summary import to_plain
from spectral_theorem.types import InputError
from spectral_theorem.whisper import token_factors

exhaustive = pytest.mark.exhaustive
CASES = [
    ("small", "block"),
    ("small", "sub-block"),
    ("wide", "block"),
    ("one layer", "block"),
    pytest.param("wide", "sub-block", marks=exhaustive),
    pytest.param("two layers", "block", marks=exhaustive),
]
both = pytest.mark.parametrize(("shape", "granularity"), CASES)


@functools.cache
def sweep(shape, granularity="block", dtype="float64"):
    return sweep_tokens(case(shape, dtype).factors, granularity)


def plain(found, t):
    return to_plain(jax.tree.map(lambda leaf: leaf[t], found.verification))


@functools.cache
def dense(shape, granularity, t):
    chain = chains(shape, granularity)[t]
    return st.verify(chain).to_dict(), st.dominant_path(chain, st.decompose(chain)), chain


OWN = ("error", "tolerance", "residual_unit", "lyapunov", "identity.log", "identity.slack")


def differences(a, b, limit, path=""):
    """List where two verifications as plain values differ; error bars and tolerances are each route's own."""
    if any(
        word in path for word in ("error", "tolerance", "residual_unit", "lyapunov", "identity.log", "identity.slack")
    ):
        return []
    if isinstance(a, dict):
        missing = [f"{path}: {sorted(set(a) ^ set(b))}"] if set(a) != set(b) else []
        return missing + [one for key in a if key in b for one in differences(a[key], b[key], limit, f"{path}.{key}")]
    if isinstance(a, list):
        missing = [f"{path}: {len(a)} and {len(b)}"] if len(a) != len(b) else []
        pairs = enumerate(zip(a, b, strict=False))
        return missing + [one for i, (x, y) in pairs for one in differences(x, y, limit, f"{path}[{i}]")]
    if isinstance(a, float) and isinstance(b, float):
        # the ends of error bars enter a cone factor near 1/0; logs of rounding differ as rounding does
        wide = 1e-2 if "contraction" in path else limit
        same = abs(a - b) <= wide * max(1, abs(a)) or ("log_" in path and max(a, b) < -28)
        return [] if same else [f"{path}: {a} and {b}"]
    return [] if a == b else [f"{path}: {a} and {b}"]


@both
def test_every_number_and_verdict_is_that_of_the_dense_route(shape, granularity):
    found = sweep(shape, granularity)
    for t in range(len(PLACES)):
        wanted, path, chain = dense(shape, granularity, t)
        assert differences(wanted, plain(found, t), 1e-8) == []
        product = functools.reduce(lambda m, w: w @ m, np.asarray(chain.propagators))
        exponent = math.log(np.linalg.norm(product, 2)) / chain.depth
        np.testing.assert_allclose(plain(found, t)["regime"]["lyapunov"], exponent, atol=1e-4)
        norms = np.linalg.norm(chain.injections, axis=(1, 2))
        np.testing.assert_allclose(found.injection_norm[t], norms, rtol=1e-11)
        exact = np.linalg.svd(chain.injections, compute_uv=False)[:, :2]
        mine = np.asarray(found.injection_sigma[t])
        has = norms > 0
        np.testing.assert_allclose(mine[has], exact[has], rtol=1e-9)
        assert np.isnan(mine[~has]).all() and np.isnan(found.injection_u[t][~has]).all()
        assert (np.abs(mine - exact)[has].max(1) <= np.asarray(found.injection_residual[t])[has] + 1e-13).all()
        residual = np.asarray(path.residual)
        if chain.depth == 1 or not np.any(residual):
            continue
        truth = np.linalg.norm(residual)
        error = math.exp(found.log_residual_error[t])
        assert abs(math.exp(found.verification.path.log_residual_norm[t]) - truth) <= error
        assert error < 1e-6 * math.exp(path.log_scale)
        spectral = np.linalg.norm(residual, 2)
        assert abs(math.exp(found.log_residual_spectral[t]) / spectral - 1) < 1e-3


@pytest.mark.parametrize(
    ("shape", "granularity"),
    [("small", "block"), ("one layer", "block"), pytest.param("small", "sub-block", marks=exhaustive)],
)
def test_float32_violates_no_claim(shape, granularity):
    found = sweep(shape, granularity, "float32")
    assert [
        leaf.dtype.name for leaf in jax.tree.leaves(found) if leaf.dtype.kind == "f" and leaf.dtype != "float32"
    ] == []
    for t in range(len(PLACES)):
        claims = plain(found, t)["claims"]
        assert not [name for name, claim in claims.items() if claim["verdict"] == "VIOLATED"]
        if len(found.injection_norm[t]) > 1:
            assert claims["identity"]["verdict"] == "HOLDS"


@both
def test_certificates_bound_what_is_left(shape, granularity):
    found = sweep(shape, granularity)
    for t in range(len(PLACES)):
        w = np.asarray(chains(shape, granularity)[t].propagators)
        t3 = np.linalg.svd(w, compute_uv=False)[:, 2]
        bound = np.asarray(found.certificate[t])
        assert (t3 < bound).all()
        assert np.asarray(found.verification.triplets.certified[t]).mean() > 0.9


# metamorphic -----------------------------------------------------------------------------------------------------


def test_permuted_tokens_give_permuted_results():
    made, order = case("small"), [2, 0, 1]
    factors = token_factors(made.model, made.context, made.tokens, [made.places[i] for i in order])
    found, base = sweep_tokens(factors), sweep("small")
    for i, t in enumerate(order):
        assert differences(plain(base, t), plain(found, i), 1e-9) == []


def test_count_leaves_out_what_fills_a_shape():
    found, base = sweep_tokens(case("small").factors, count=2), sweep("small")
    assert {leaf.shape[0] for leaf in jax.tree.leaves(found) if leaf.ndim} == {2}
    for t in range(2):
        assert differences(plain(base, t), plain(found, t), 1e-10) == []


def test_starts_change_nothing_but_work():
    base = sweep("wide")
    good = base.verification.triplets.v[1]
    for start in (good, good * 0, good * jnp.nan, jnp.roll(good, 1, axis=1)):
        found = sweep_tokens(case("wide").factors, start=start)
        for t in range(len(PLACES)):
            assert differences(plain(base, t), plain(found, t), 1e-8) == []


@pytest.mark.parametrize("signs", [(-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_signs_of_singular_vectors_change_nothing(signs, monkeypatch):
    true, turn, called = tokenwise._leading, np.asarray(signs)[:, None, None], []

    def flipped(*arguments):
        called.append(True)
        found = true(*arguments)
        return dataclasses.replace(found, U=found.U * turn, V=found.V * turn)

    base = sweep("small")
    tokenwise.judge_token.clear_cache()
    monkeypatch.setattr(tokenwise, "_leading", flipped)
    found = sweep_tokens(case("small").factors)
    tokenwise.judge_token.clear_cache()
    assert called
    for t in range(len(PLACES)):
        assert differences(plain(base, t), plain(found, t), 1e-12) == []


@pytest.mark.parametrize("tolerance", [0.0, 1e-18, float("nan"), -1.0])
def test_tolerances_below_rounding_are_refused(tolerance):
    with pytest.raises(InputError, match="tolerance="):
        sweep_tokens(case("small").factors, tolerance=tolerance)


def test_weights_that_are_not_finite_hold_nothing():
    f = case("small").factors
    bad = dataclasses.replace(f[1], slope=f[1].slope.at[1].set(jnp.nan))
    found, base = sweep_tokens([f[0], bad, f[2]]), sweep("small")
    assert differences(plain(base, 0), plain(found, 0), 1e-9) == []
    spoiled = plain(found, 1)
    assert not [name for name, claim in spoiled["claims"].items() if claim["verdict"] in ("HOLDS", "VIOLATED")]
    assert not found.verification.triplets.certified[1, 1] and not found.verification.triplets.resolved[1, 1]


# the residual where almost all of it cancels ---------------------------------------------------------------------


def planted_residual(dtype, xi, seed=0, module=tokenwise):
    """Give (log norms and error of _residual, exact ||R||_F, spectral, scale) of an aligned chain of four layers."""
    rng = np.random.default_rng(seed)
    depth, width, heads, frames = 4, 20, 2, 30
    q = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(depth + 1)]
    # W_l = U_l diag V_l^T with V_{l+1} = U_l: every coupling is 1, and what is left is xi
    s = np.array([1.0, *[xi] * (width - 1)])
    w = np.stack([q[l + 1] @ np.diag(s) @ q[l].T for l in range(depth)]).astype(dtype)
    g = rng.normal(size=(depth, width, heads * frames)).astype(dtype)
    chain = st.LayerChain(jnp.asarray(w), jnp.asarray(g))
    t = st.decompose(chain)
    path = st.dominant_path(chain, t)
    log_gains = jnp.flip(jnp.cumsum(jnp.flip(jnp.log(t.sigma[:, 0]))))
    products = module._unit_products(jnp.swapaxes(chain.propagators, 1, 2), t.sigma[:, 0])
    cores = [[jnp.asarray(g[k] @ g[l].T) for l in range(k, depth)] for k in range(depth)]
    outer = [jnp.eye(width, dtype=dtype)] * depth
    norms = jnp.linalg.norm(chain.injections, axis=(1, 2))
    found = module._residual(path, products, t, list(range(depth)), outer, cores, log_gains, norms)
    # the truth for the triplets used, in float64
    wide = lambda x: np.asarray(x, float)
    exact, product = np.zeros(g.shape[1:]), np.eye(width)
    for k in range(depth - 2, -1, -1):
        product = product @ wide(w[k + 1])
        amplitude = float(path.sign[k]) * math.exp(path.log_amplitude[k])
        exact += (product - amplitude * np.outer(wide(t.u[-1]), wide(t.v[k + 1]))) @ wide(g[k])
    return found, np.linalg.norm(exact), np.linalg.norm(exact, 2), math.exp(path.log_scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("xi", [0.5, 1e-2, 1e-4, 1e-6, 0.0])
def test_the_error_bar_of_the_residual_covers_cancellation(xi, dtype):
    for seed in range(5):
        found, truth, spectral, scale = planted_residual(dtype, xi, seed)
        error = math.exp(found["log_error"])
        assert abs(math.exp(found["log_norm"]) - truth) <= error
        assert error <= 8 * math.sqrt(np.finfo(dtype).eps) * scale
        if truth > 1e3 * error:
            assert abs(math.exp(found["log_spectral"]) / spectral - 1) < 1e-2
        np.testing.assert_allclose(found["relative_error"], error / scale, rtol=1e-3)


# certificates ----------------------------------------------------------------------------------------------------

_certified = jax.jit(certificate.certified)


@functools.cache
def planted(width, count):
    truth = spectra.planted(7, count, width)
    return truth, truth.dense()


def given(truth, which=(0, 1, 2), *, blur=0.0, converged=True, next_value=None, module=None):
    """Hand over exact triplets of these numbers, rounded, or moved by blur."""
    rng = np.random.default_rng(1)
    u, v = (np.stack([truth.triplet(i)[side] for i in which[:2]], axis=2) for side in (1, 2))
    if blur:
        u, v = (np.linalg.qr(x + blur * rng.normal(size=x.shape))[0] for x in (u, v))
        sign = np.sign(np.einsum("nik,nij,njk->nk", u, truth.dense(), v))[:, None]
        u = u * np.where(sign == 0, 1, sign)
    w = truth.dense()
    sigma = truth.values[:, list(which)].astype(float)
    if next_value is not None:
        sigma[:, 2] = next_value
    ahead, back = w @ v - u * sigma[:, None, :2], np.swapaxes(w, 1, 2) @ u - v * sigma[:, None, :2]
    residual = np.sqrt(np.sum(ahead**2 + back**2, axis=1)).max(1)
    f = lambda x: jnp.asarray(x.astype(np.float32))
    count = len(sigma)
    return (module or _certified)(
        f(w), f(sigma), f(u), f(v), residual=f(residual), converged=jnp.full(count, converged)
    )


WRONG = {"second and third": (1, 2, 3), "first and third": (0, 2, 3), "third and fourth": (2, 3, 4)}


@pytest.mark.parametrize("width", [8, 40])
def test_certified_triplets_are_the_leading_ones(width):
    truth, w = planted(width, 1700)
    triplets, bound = given(truth)
    assert spectra.misjudged(triplets, truth) == spectra.misjudged(triplets, truth, certified_only=True) == []
    left = truth.values[:, 2].astype(float)
    assert (left < np.asarray(bound, float)).all()
    # what is subtracted are the rounded factors
    rest = w - np.einsum("nik,nk,njk->nij", *(np.asarray(x, float) for x in (triplets.U, triplets.sigma, triplets.V)))
    assert (np.linalg.norm(rest, 2, axis=(1, 2)) < np.asarray(bound, float)).all()
    sure = np.asarray(triplets.certified)
    for family in ("separated", "one above a flat floor", "rank one", "rank two", "fast decay"):
        assert sure[truth.family == family].mean() > 0.9, family
    assert not sure[truth.family == "zero"].any()


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("width", [8, 40])
def test_triplets_that_are_not_the_leading_ones_are_never_certified(width, name):
    truth, _ = planted(width, 1700)
    triplets, bound = given(truth, WRONG[name])
    missed = 0 if WRONG[name][0] else 1
    apart = truth.values[:, missed] > 1.02 * np.maximum(truth.values[:, missed + 1], 1e-4 * truth.values[:, 0])
    assert apart.sum() > 400 and not np.asarray(triplets.certified)[apart].any()
    assert (truth.values[:, missed] < np.asarray(bound, float)).all()
    assert spectra.misjudged(triplets, truth, certified_only=True) == []


@pytest.mark.parametrize("blur", [1e-5, 1e-3, 1e-1])
def test_blurred_triplets_have_bars_that_reach_the_truth(blur):
    truth, _ = planted(40, 1700)
    triplets, _ = given(truth, blur=blur)
    assert spectra.misjudged(triplets, truth, certified_only=True) == []


def test_what_did_not_converge_is_not_certified():
    truth, _ = planted(8, 1700)
    triplets, _ = given(truth, converged=False)
    assert not triplets.certified.any() and not triplets.resolved.any()


@pytest.mark.parametrize("exponent", [-18, -12, 12, 18])
def test_certificates_do_not_depend_on_scale(exponent):
    truth, _ = planted(8, 1700)
    plain = truth.values[:, 0] == 1
    values = (truth.values * 10.0**exponent).astype(np.float32)
    scaled = dataclasses.replace(truth, values=values)
    triplets, _ = given(scaled)
    base, _ = given(truth)
    assert (np.asarray(triplets.certified) == np.asarray(base.certified))[plain].mean() > 0.99
    assert np.asarray(triplets.certified)[plain].mean() > 0.8
    assert spectra.misjudged(triplets, scaled, certified_only=True) == []


# seeded errors ---------------------------------------------------------------------------------------------------


def close_to_the_level(judge):
    """Say which remainders are proven whose norm is 1e-5 below the level, less than rounding may amount to."""
    width, level = 40, 0.75 * (1 - 1e-5)
    values = np.concatenate([[[1.0, 1.0]], np.full((1, width - 2), level)], axis=1).repeat(20, 0).astype(np.float32)
    draw = lambda: np.random.default_rng(3).normal(size=(2, 20, width)).astype(np.float32)
    truth = spectra.Planted(values, draw(), draw(), np.asarray(["flat"] * 20))
    # told that the next value is 0.5, the proof tries 0.75
    return np.isfinite(given(truth, next_value=0.5, module=judge)[1])


def by_proof(load):
    """Say whether proofs hold: right triplets have bars with the truth inside, wrong ones no certificate."""
    truth, _ = planted(8, 1700)
    judge = jax.jit(load("certificate").certified)
    said = []
    for which in ((0, 1, 2), *WRONG.values()):
        triplets, bound = given(truth, which, module=judge)
        said += spectra.misjudged(triplets, truth, certified_only=True)
        left = truth.values[:, 2 if which[:2] == (0, 1) else 1 if which[0] == 0 else 0]
        said += [("bound",)] * int((left >= np.asarray(bound, float)).sum())
    triplets, _ = given(truth, blur=1e-3, module=judge)
    said += spectra.misjudged(triplets, truth)
    said += [("converged",)] * int(given(truth, converged=False, module=judge)[0].certified.sum())
    said += [("room",)] * int(close_to_the_level(judge).sum())
    easy = truth.family == "rank one"
    said += [("silent",)] * int(not np.asarray(given(truth, module=judge)[0].certified)[easy].all())
    return said


CERTIFIED = {
    "the next estimate for the proven level": ("jnp.where(sure, bound, 8", "jnp.where(sure, sigma[:, kept], 8"),
    "proof from nothing": ("jnp.isfinite(factor).all(axis=(1, 2)), level", "jnp.isfinite(level), level"),
    "an error bar of nothing": ("math.sqrt(kept) * residual + 2 * sigma[:, 0] * (", "0 * sigma[:, 0] * ("),
    "certified without convergence": ("& jnp.isfinite(residual) & converged", "& jnp.isfinite(residual)"),
    "no room for rounding of what is zero": ("(1 + spare) * above + 2 * slip", "(1 + spare) * above"),
    "no room for rounding": ("- gram - room[:, None, None] * eye)", "- gram)"),
    "bound of another matrix": ("sigma[:, :kept], v, precision", "sigma[:, :kept], u, precision"),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_every_mutant_of_the_certificate_is_caught(name):
    with mutant("certificate", *CERTIFIED[name]) as load:
        assert by_proof(load)


def test_error_bars_without_what_the_proof_leaves_open_are_caught():
    with mutant("triplets", "residual + jnp.clip(excess - gap, 0.0)", "residual") as load:
        assert "sigma1" in {name for name, *_ in by_proof(load)}


def test_nothing_is_said_against_the_proofs_themselves():
    with mutant("certificate", "import math\n", "import math\n") as load:
        assert by_proof(load) == []


SHARE = "share = path.sign[k] * jnp.exp(path.log_amplitude[k] - log_gains[k + 1])\n        rest"
RESIDUALS = {
    "an error bar without cancellation": ("blur = 16 * eps * scale**2", "blur = 16 * eps * frobenius"),
    "the sign of the path": (SHARE, SHARE.replace("path.sign[k] * ", "")),
    "one injection alone": ("for b, (j, _) in list(enumerate(sources))[a + 1 :]:", "for b, (j, _) in []:"),
    "pairs counted twice": ("met = 0.5 * _matmul(", "met = _matmul("),
    "the last layer's injection too": ("if k < depth - 1]", "if k < depth]"),
    "without the dominant path": ("- share * jnp.outer(outer[i] @ t.v[k + 1], t.u[-1])", ""),
}


def residuals_are_right(load):
    for seed, xi in enumerate((0.5, 1e-3, 0.0, 0.1)):
        try:
            found, truth, *_ = planted_residual(np.float32, xi, seed, load("tokenwise"))
        except IndexError:
            return False
        if not abs(math.exp(found["log_norm"]) - truth) <= math.exp(found["log_error"]):
            return False
    return True


@pytest.mark.parametrize("name", RESIDUALS)
def test_every_mutant_of_the_residual_is_caught(name):
    with mutant("tokenwise", *RESIDUALS[name]) as load:
        assert not residuals_are_right(load)


def test_nothing_is_said_against_the_residual_itself():
    with mutant("tokenwise", "import functools\n", "import functools\n") as load:
        assert residuals_are_right(load)


def test_one_layer_by_its_own_norm_has_norm_one():
    # the residual, added to an estimate, pushed it above the bound that it equals: a violation that was none
    products = jax.random.normal(jax.random.key(0), (3, 200, 200))
    products = products / jnp.linalg.norm(products, ord=2, axis=(1, 2), keepdims=True)
    found = tokenwise._log_norms(products)
    assert found[-1] == 0.0
    np.testing.assert_allclose(found[:-1], 0.0, atol=1e-4)
