"""Chains too long to hold, many chains in flat memory, and exponents that are known in closed form."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import mutant

import spectral_theorem as st
from spectral_theorem import solvable
from spectral_theorem.deep import batch_means, stream
from spectral_theorem.largest import largest_singular_value
from spectral_theorem.types import InputError

SAME = {
    "path": ("log_scale", "log_psi_norm", "log_residual_norm"),
    "bounds": ("log_paper", "log_telescoping", "log_row_exact", "log_row_exact_lower", "log_total_norm"),
}


@pytest.fixture(scope="module", params=[False, True], ids=["from layer 1", "initial"])
def pair(request):
    chain = st.ensembles.gaussian(jax.random.key(1), layers=37, width=5, context=3, initial=request.param)
    return chain, st.verify(chain)


def layers_of(chain):
    return zip(np.asarray(chain.propagators), np.asarray(chain.injections), strict=True)


def differences(found, whole):
    return {
        name: abs(float(getattr(found, name)) - float(getattr(getattr(whole, part), name)))
        for part, names in SAME.items()
        for name in names
    }


def test_a_stream_says_what_the_whole_chain_says(pair):
    """Blocks of 8 do not divide 37 layers, and the numbers of the dense route come from other sums."""
    chain, whole = pair
    found = stream(layers_of(chain), initial=chain.initial, chunk=8)
    assert max(differences(found, whole).values()) < 1e-11, differences(found, whole)
    assert found.log_identity_error < found.log_residual_norm + np.log(1e-12)
    np.testing.assert_allclose(found.sigma, whole.triplets.sigma[:, 0], rtol=1e-13)
    np.testing.assert_allclose(np.abs(found.kappa), np.abs(whole.triplets.kappa), atol=1e-12)
    assert found.depth == 37 and np.isfinite(found.exponents).all()


@pytest.mark.parametrize("pair", [False], indirect=True)
def test_blocks_functions_and_iterators_are_the_same_chain(pair):
    chain, _ = pair
    pairs = list(layers_of(chain))
    one = stream(iter(pairs), chunk=8)
    several = [
        stream(lambda number: pairs[number - 1], depth=37, chunk=8),
        stream([jax.tree.map(lambda x, i=i: x[i : i + 20], chain) for i in (0, 20)], chunk=8),
    ]
    for other in several:
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


# what is changed in deep.py, and the number that must show it; where something enters before layer 1
SLIPS = [
    ("logaddexp(path + c, enters)", "logaddexp(path + k, enters)", "log_telescoping"),
    ("t.kappa, tails[:-1], tails[1:]", "t.kappa, tails[1:], tails[1:]", "log_row_exact"),
    ("lambda a, b: jnp.where(take, a, b)", "lambda a, b: a", "log_residual_norm"),
]


@pytest.mark.parametrize("pair", [True], indirect=True)
@pytest.mark.parametrize(("old", "new", "name"), SLIPS)
def test_a_slip_in_the_stream_is_seen(pair, old, new, name):
    chain, whole = pair
    with mutant("deep", old, new) as load:
        slipped = load("deep")
        pairs = [(np.asarray(w), np.asarray(g)) for w, g in layers_of(chain)]
        found = slipped.stream(pairs, initial=chain.initial, chunk=8)
        assert differences(found, whole)[name] > 1e-6


def test_ten_thousand_growing_layers_stay_finite():
    planted = st.ensembles.planted(
        jax.random.key(0), layers=40, width=5, context=3, sigma=3.0, kappa=0.99, xi=0.1, gamma=0.5, coherence=0.9
    )
    pairs = list(layers_of(planted))
    found = stream((pairs[i % 40] for i in range(10_000)), chunk=256)
    assert found.depth == 10_000
    for field in dataclasses.fields(found):
        if field.name.startswith("log_"):
            assert np.isfinite(getattr(found, field.name)), field.name
    assert found.log_row_exact_lower <= found.log_residual_norm <= found.log_row_exact + 1e-9
    assert found.log_row_exact <= found.log_telescoping <= found.log_paper
    assert found.log_gain > 10_000 * np.log(2.9)
    assert found.exponents[0] * 10_000 < found.log_total_norm + 100


def test_nothing_is_lost_beside_a_bound_that_outgrows_it():
    """The row-exact bound of Gaussian layers outgrows the residual by a quarter of a nat per layer, beyond a double."""
    rng = np.random.default_rng(0)
    found = stream(((w, g) for w, g in zip(*rng.standard_normal((2, 4000, 5, 5)), strict=True)))
    assert found.log_row_exact > found.log_residual_norm + 750
    assert found.log_identity_error < found.log_residual_norm + np.log(1e-10)
    assert 0 <= found.log_residual_norm - found.log_row_exact_lower < 20


def test_streams_refuse_what_is_no_chain():
    eye = np.eye(2)
    for layers, how, message in [
        ([], {}, "no layer"),
        (lambda number: eye, {}, "depth"),
        ([eye, (eye, eye)], {}, "some layers only"),
        ([eye, np.eye(3)], {}, "different shapes"),
        ([eye * np.nan], {}, "non-finite"),
        ([eye], {"exponents": 3}, "exponents"),
        ([eye], {"chunk": 0}, "chunk"),
    ]:
        with pytest.raises(InputError, match=message):
            stream(layers, **how)


# closed forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(solvable.ENSEMBLES))
def test_a_sweep_finds_the_closed_form(name):
    """Five standard errors, so that a hundred exponents pass by chance all but once in ten thousand suites."""
    ensemble = solvable.ENSEMBLES[name]
    rng = np.random.default_rng([1, len(name)])
    frame, logs = np.linalg.qr(rng.standard_normal((ensemble.width,) * 2))[0], []
    for w in ensemble.draw(rng, 2500):
        frame, r = np.linalg.qr(w @ frame)
        logs.append(np.log(np.abs(np.diagonal(r))))
    means, errors, _ = batch_means(logs)
    assert (np.abs(means - ensemble.exponents) <= 5 * errors + 1e-13).all(), (means, ensemble.exponents, errors)
    # and it would not pass for another ensemble's exponents
    assert (np.abs(means - np.asarray(ensemble.exponents) - 0.2) > 5 * errors).any()


def test_the_streamed_exponents_are_those_of_the_sweep():
    ensemble = solvable.ENSEMBLES["gaussian 4"]
    w = ensemble.draw(np.random.default_rng(3), 2048)
    frame, logs = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0], []
    for one in w:
        frame, r = np.linalg.qr(one @ frame)
        logs.append(np.log(np.abs(np.diagonal(r))))
    means, errors, batches = batch_means(logs)
    found = stream(iter(w), chunk=256)
    np.testing.assert_allclose(found.exponents, means, atol=1e-10)
    np.testing.assert_allclose(found.exponents_error, errors, rtol=1e-6)
    assert found.batches == batches


def test_standard_errors_cover():
    """Of means of correlated numbers, about 95 in 100 lie within two standard errors of the truth."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4096, 300))
    for i in range(1, len(noise)):
        noise[i] += 0.5 * noise[i - 1]
    means, errors, _ = batch_means(noise)
    assert 0.9 < np.mean(np.abs(means) < 2 * errors) < 0.99


def test_too_few_layers_have_no_error():
    golden = np.log(0.5 * (1 + np.sqrt(5)))  # rounded to one side at every step, it would be off by 4e-14
    np.testing.assert_allclose(batch_means(np.full((100_000, 2), golden))[0], golden, rtol=1e-15)
    means, errors, count = batch_means(np.ones((10, 2)))
    assert means.tolist() == [1.0, 1.0] and np.isnan(errors).all() and count == 0


# the largest singular value, and many chains --------------------------------------------------------------


def test_the_largest_singular_value_of_wide_matrices():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 32, 32)) / 6
    x[1] = np.linalg.qr(x[1])[0]  # all tied
    x[2] = np.outer(x[2, 0], x[2, 1])  # rank one
    x[3] = 0.0
    x[4] = np.diag(np.append(np.ones(31), 1 + 1e-9))
    found = np.asarray(jax.jit(largest_singular_value)(jnp.asarray(x)))
    np.testing.assert_allclose(found, np.linalg.norm(x, ord=2, axis=(1, 2)), rtol=1e-13, atol=1e-300)
    apart = jax.jit(lambda y: largest_singular_value(y, one_by_one=True))(jnp.asarray(x))
    np.testing.assert_array_equal(apart, found)
    assert np.isnan(largest_singular_value(jnp.asarray(x).at[0, 1, 1].set(jnp.nan))[0])
    u, _, v = np.linalg.svd(x[5])
    slope = jax.grad(lambda y: largest_singular_value(y))(jnp.asarray(x[5]))
    np.testing.assert_allclose(slope, np.outer(u[:, 0], v[0]), atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 7), (7, 2), (2, 2), (1, 5), (5, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_the_largest_singular_value_of_narrow_matrices(shape, scale):
    x = np.random.default_rng(0).standard_normal((5, *shape))
    x[1] = np.outer(x[1, :, 0], x[1, 0])  # rank one
    x[2] = np.eye(*shape)  # tied
    x[3] = 0.0
    x[4, 0, 0] = np.nan
    found = np.asarray(largest_singular_value(jnp.asarray(scale * x))) / scale
    np.testing.assert_allclose(found[:4], np.linalg.norm(x[:4], ord=2, axis=(1, 2)), rtol=1e-14)
    assert np.isnan(found[4])
    slope = jax.grad(largest_singular_value)(jnp.asarray(x[0]))
    u, _, v = np.linalg.svd(x[0])
    np.testing.assert_allclose(slope, np.outer(u[:, 0], v[0]), atol=1e-12)


def test_batches_of_chains_do_not_depend_on_how_they_are_cut():
    make = lambda key: st.ensembles.gaussian(key, layers=3, width=2, context=2)
    keys = jax.random.split(jax.random.key(0), 7)
    join = lambda parts: jax.tree.map(lambda *x: np.concatenate(x), *parts)
    one = join(st.verify_batches(make, keys, batch=4, workers=1))
    other = join(st.verify_batches(make, keys, batch=4, workers=2))
    whole = st.verify_many(jax.vmap(make)(keys))
    assert (one["claims"] == whole.claims.code).all() and len(one["regime"]) == 7
    np.testing.assert_allclose(one["log_residual_norm"], whole.path.log_residual_norm, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    beside = join(st.verify_batches(make, keys, batch=4, at_once=4))
    np.testing.assert_allclose(beside["log_residual_norm"], one["log_residual_norm"], rtol=1e-12)
    with pytest.raises(InputError, match="at_once=4 with workers=2"):
        next(st.verify_batches(make, keys, at_once=4, workers=2))
    with pytest.raises(InputError, match="batch"):
        next(st.verify_batches(make, keys, batch=0))
    with pytest.raises(InputError, match="no keys"):
        next(st.verify_batches(make, keys[:0]))


def test_records_say_which_rate_they_hold(pair):
    _, whole = pair
    record = whole.to_dict()["regime"]
    assert record["lyapunov_by"] == "qr" and len(record["lyapunov"]) == 5
    by_norm = dataclasses.replace(whole, regime=dataclasses.replace(whole.regime, lyapunov=whole.regime.lyapunov[:1]))
    assert by_norm.to_dict()["regime"]["lyapunov_by"] == "norm"


@pytest.mark.parametrize("pair", [False], indirect=True)
def test_the_peer_of_the_benchmark_gives_the_same_answers(pair, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import numpy_peer

    chain, whole = pair
    peer = numpy_peer.verify(np.asarray(chain.propagators), np.asarray(chain.injections))
    products = peer["bounds"].pop("products")
    np.testing.assert_allclose(whole.bounds.log_propagator_norm, np.log(products[1:]), atol=1e-10)
    for name, value in peer["bounds"].items():
        if value > 1e-12:  # no direction is common to these rows, and one lower bound is 0 but for rounding
            np.testing.assert_allclose(getattr(whole.bounds, f"log_{name}"), np.log(value), atol=1e-10, err_msg=name)
    np.testing.assert_allclose(whole.path.log_residual_norm, np.log(peer["path"]["residual"]), atol=1e-12)
    np.testing.assert_allclose(whole.regime.lyapunov[0], peer["regime"]["lyapunov"][0], atol=0.02)
    for name in ("gain", "cumulative_gain", "alignment", "projection", "purity", "sign_consistency"):
        np.testing.assert_allclose(whole.conditions[name].value, peer["conditions"][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["verify", "lyapunov"])
def test_benchmark_pages_are_drawn_from_their_files(name, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    module = importlib.import_module({"verify": "verify_page", "lyapunov": "measure_lyapunov"}[name])
    folder = repository / "docs" / "benchmarks"
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert (folder / f"{name}.md").read_text(encoding="utf-8") == module.page(record)
