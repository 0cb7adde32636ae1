"""Planted chains have what was planted; random ones the stated law; counterexamples their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hs

import spectral_theorem as st
from spectral_theorem import ensembles, planting

KEY = jax.random.key(7)
RECIPE = {"sigma": 1.02, "kappa": 0.8, "xi": 0.3, "gamma": 0.5, "coherence": 0.9}
SHAPES = [(1, 4, 2), (2, 2, 1), (5, 3, 2), (16, 8, 5), (64, 64, 48)]


def recipe(width, context, **changes):
    """Return a recipe that is possible at this width and context size."""
    tight = {"kappa": 1.0, "gamma": 1.0} if width == 1 else {}
    return RECIPE | tight | ({"coherence": 1.0} if context == 1 else {}) | changes


def leading(matrices):
    """Return u, sigma_1, sigma_2, v of a stack by NumPy."""
    left, values, right = np.linalg.svd(np.asarray(matrices))
    second = values[..., 1] if values.shape[-1] > 1 else np.zeros_like(values[..., 0])
    return left[..., :, 0], values[..., 0], second, right[..., 0, :]


def amplitude_signs(kappa):
    """Return sign(A_{L,k}), k = 1..L-1, by its definition, one product per k."""
    return np.array([np.prod(np.sign(kappa[k:])) for k in range(1, len(kappa) + 1)])


@pytest.mark.parametrize(("layers", "width", "context"), SHAPES)
def test_an_svd_after_a_change_of_basis_finds_what_was_planted(layers, width, context):
    rng = np.random.default_rng(layers)
    per_layer = lambda low, high, n=layers: rng.uniform(low, high, n)
    kappa = per_layer(0.2, 1.0, layers - 1) * rng.choice([-1, 1], layers - 1)
    sigma, xi, gamma = per_layer(0.5, 2), per_layer(0.0, 0.9), per_layer(0.1, 1)
    c = np.ones(layers) if context == 1 else per_layer(-1, 1)
    signs = rng.choice([-1.0, 1.0], layers)
    chain, truth = planting.planted_with_answers(
        KEY, layers=layers, width=width, context=context,
        sigma=sigma, kappa=kappa, xi=xi, gamma=gamma, coherence=c, signs=signs, injection_norm=1 + np.arange(layers),
    )  # fmt: skip
    basis = np.linalg.qr(rng.normal(size=(layers + 1, width, width)))[0]
    w = np.swapaxes(basis[1:], 1, 2) @ np.asarray(chain.propagators) @ basis[:-1]
    g = np.swapaxes(basis[1:], 1, 2) @ np.asarray(chain.injections)
    u, s1, s2, v = leading(w)
    np.testing.assert_allclose(s1, sigma, rtol=1e-13)
    np.testing.assert_allclose(s2 / s1, xi, atol=1e-13)
    np.testing.assert_allclose(np.abs(np.sum(v[1:] * u[:-1], axis=1)), np.abs(kappa), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(g, axis=(1, 2)), 1 + np.arange(layers), rtol=1e-13)
    rows = np.einsum("ld,ldc->lc", v[1:], g[:-1])
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(norms / np.linalg.norm(g[:-1], axis=(1, 2)), gamma[:-1], atol=1e-12)
    # Signs mean nothing after an SVD; in the planted gauge they do.
    psi = np.asarray(truth.psi)
    exact_rows = np.einsum("ld,ldc->lc", np.asarray(truth.v)[1:], np.asarray(chain.injections)[:-1])
    wanted = signs[:-1] * amplitude_signs(kappa) * c[:-1] * norms
    np.testing.assert_allclose(np.linalg.norm(psi), 1, rtol=1e-14)
    np.testing.assert_allclose(exact_rows @ psi, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("layers", "context"), [(1, 1), (2, 3), (5, 1)])
def test_width_one_is_scalar_multiplication(layers, context):
    kappa = np.where(np.arange(layers - 1) % 2, 1.0, -1.0)
    chain, truth = planting.planted_with_answers(
        KEY, layers=layers, width=1, context=context, **recipe(1, context, kappa=kappa)
    )
    np.testing.assert_array_equal(np.abs(np.asarray(chain.propagators)).ravel(), np.full(layers, 1.02))
    np.testing.assert_array_equal(np.asarray(truth.v[1:] * truth.u[:-1])[:, 0], kappa)
    np.testing.assert_allclose(np.linalg.norm(chain.injections, axis=(1, 2)), 1, rtol=1e-14)


@pytest.mark.parametrize(("layers", "width", "context"), SHAPES[1:4])
def test_numbers_next_to_the_edges_are_planted(layers, width, context):
    near = recipe(width, context, kappa=1.0, misalignment=1e-9, xi=1 - 1e-9)
    chain, truth = planting.planted_with_answers(KEY, layers=layers, width=width, context=context, **near)
    s = np.linalg.norm(np.asarray(truth.v[1:]) - np.asarray(truth.u[:-1]), axis=1)
    np.testing.assert_allclose(s, 1e-9, atol=1e-15)
    _, s1, s2, _ = leading(chain.propagators)
    np.testing.assert_allclose(1 - s2 / s1, 1e-9, atol=1e-14)
    kappa = -(1 - 1e-9)
    chain, truth = planting.planted_with_answers(
        KEY, layers=layers, width=width, context=context, **recipe(width, context, kappa=kappa)
    )
    s = np.linalg.norm(np.asarray(truth.v[1:]) + np.asarray(truth.u[:-1]), axis=1)
    np.testing.assert_allclose(s, np.sqrt(2 * (1 + kappa)), rtol=1e-9)


def test_kappa_zero_and_gamma_one():
    chain, truth = planting.planted_with_answers(
        KEY, layers=16, width=8, context=5, **recipe(8, 5, kappa=0.0, gamma=1.0, coherence=-1.0)
    )
    u, v, psi = (np.asarray(a) for a in truth)
    np.testing.assert_allclose(np.sum(v[1:] * u[:-1], axis=1), 0, atol=1e-15)
    # Rank one, v_{k+1} times -psi: nothing is left beside the planted part.
    np.testing.assert_allclose(chain.injections[:-1], -v[1:, :, None] * psi, atol=1e-15)


@pytest.mark.parametrize(
    ("bulk", "ratios"),
    [
        ("flat", np.ones(7)),
        ("linear", 1 - np.arange(7) / 7),
        ("geometric", 0.5 ** np.arange(7)),
        ([0.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_bulk_spectrum(bulk, ratios):
    chain = ensembles.planted(KEY, layers=16, width=8, context=5, bulk=bulk, **RECIPE)
    values = np.linalg.svd(np.asarray(chain.propagators), compute_uv=False)
    np.testing.assert_allclose(
        values[:, 1:] / values[:, :1], np.broadcast_to(0.3 * np.asarray(ratios), (16, 7)), atol=1e-14
    )


def test_initial_is_one_more_injection_before_the_first():
    plain = ensembles.planted(KEY, layers=5, width=3, context=2, **RECIPE)
    chain, truth = planting.planted_with_answers(
        KEY, layers=5, width=3, context=2, initial=True, **(RECIPE | {"kappa": [-0.8, 0.8, -0.8, -0.8]})
    )
    assert plain.initial is None
    row = np.asarray(truth.v[0]) @ np.asarray(chain.initial)
    np.testing.assert_allclose(np.linalg.norm(chain.initial), 1, rtol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(row), 0.5, rtol=1e-13)
    np.testing.assert_allclose(row @ np.asarray(truth.psi), -0.45, rtol=1e-13)


def test_layers_without_injection():
    norms = np.array([0.0, 1.0, 0.0, 2.0, 0.0])
    chain = ensembles.planted(KEY, layers=5, width=3, context=2, injection_norm=norms, **RECIPE)
    np.testing.assert_allclose(np.linalg.norm(chain.injections, axis=(1, 2)), norms, rtol=1e-14)


def test_gauge_flips_of_kappa_change_no_verdict_relevant_sign():
    """Flip kappa's signs at random: the context's pull stays one-signed along the path to the output."""
    kappa = 0.8 * np.where(np.arange(15) % 3, 1, -1)
    chain, truth = planting.planted_with_answers(KEY, layers=16, width=8, context=5, **(RECIPE | {"kappa": kappa}))
    u, v, psi = (np.asarray(a) for a in truth)
    w, g = np.asarray(chain.propagators), np.asarray(chain.injections)
    for k in range(15):
        amplitude = 1.02 * np.prod([1.02 * v[j + 1] @ u[j] for j in range(k + 1, 15)])
        np.testing.assert_allclose(v[k + 1] @ g[k] @ psi * np.sign(amplitude), 0.45, rtol=1e-12)
    np.testing.assert_allclose(np.einsum("lij,lj->li", w, v), 1.02 * u, atol=1e-14)


def test_vmap_over_keys_is_a_loop_over_keys():
    keys = jax.random.split(KEY, 3)
    one = lambda key: ensembles.planted(key, layers=5, width=3, context=2, initial=True, **RECIPE)
    batch = jax.jit(jax.vmap(one))(keys)
    assert isinstance(batch, st.LayerChain)
    for i in range(3):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-15), batch, one(keys[i]))


def test_real_parameters_may_be_traced_and_differentiated():
    def energy(sigma, xi):
        chain = ensembles.planted(KEY, layers=5, width=3, context=2, **(RECIPE | {"sigma": sigma, "xi": xi}))
        return jnp.sum(chain.propagators**2)

    d_sigma, d_xi = jax.grad(energy, argnums=(0, 1))(1.5, 0.3)
    np.testing.assert_allclose(d_sigma, 5 * 2 * 1.5 * (1 + 2 * 0.3**2), rtol=1e-12)
    np.testing.assert_allclose(d_xi, 5 * 1.5**2 * 2 * 2 * 0.3, rtol=1e-12)
    swept = jax.vmap(energy, in_axes=(0, None))(jnp.array([1.0, 2.0]), 0.3)
    np.testing.assert_allclose(swept, 5 * np.array([1.0, 4.0]) * 1.18, rtol=1e-12)


def test_float32_is_asked_for_and_kept():
    chain = ensembles.planted(KEY, layers=5, width=3, context=2, dtype="float32", **RECIPE)
    assert {a.dtype for a in jax.tree.leaves(chain)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(leading(chain.propagators)[1], 1.02, rtol=1e-6)


def test_ten_thousand_layers():
    chain = ensembles.planted(KEY, layers=10_000, width=3, context=2, **(RECIPE | {"sigma": 3.0}))
    np.testing.assert_allclose(leading(chain.propagators)[1], 3.0, rtol=1e-13)


def test_directions_are_uniform():
    """First and second moments of u, v, psi-rows and the bulk, at five standard errors."""
    n = 10_000
    chain, truth = planting.planted_with_answers(
        KEY, layers=n, width=3, context=2, **(RECIPE | {"xi": 1.0, "kappa": 0.0})
    )
    five = 5 / np.sqrt(n)
    for x in (truth.u, truth.v):
        x = np.asarray(x)
        assert np.abs(x.mean(axis=0)).max() < five
        np.testing.assert_allclose(x.T @ x / n, np.eye(3) / 3, atol=five)
    # With xi = 1 every W/sigma is a Haar-random rotation or reflection: E tr = 0, E tr^2 = 1, E det = 0.
    q = np.asarray(chain.propagators) / RECIPE["sigma"]
    trace = np.trace(q, axis1=1, axis2=2)
    assert abs(trace.mean()) < five
    assert abs((trace**2).mean() - 1) < 2 * five
    assert abs(np.linalg.det(q).mean()) < five


BAD = [
    ({"layers": 0}, "layers >= 1"),
    ({"width": True}, "width >= 1"),
    ({"context": 0}, "context >= 1"),
    ({"sigma": 0.0}, "> 0"),
    ({"sigma": [1.0, 2.0]}, r"\(5,\)"),
    ({"sigma": "large"}, "a number"),
    ({"sigma": np.ones((5, 1))}, r"\(5,\)"),
    ({"xi": 1.5}, "<= 1"),
    ({"xi": float("nan")}, "finite"),
    ({"kappa": -1.1}, ">= -1"),
    ({"kappa": [0.1] * 5}, r"\(4,\)"),
    ({"gamma": 0.0}, "> 0"),
    ({"gamma": [0.5] * 3}, r"\(5,\) or \(4,\)"),
    ({"coherence": 2.0}, "<= 1"),
    ({"signs": 0.5}, r"\+1 or -1"),
    ({"injection_norm": -1.0}, ">= 0"),
    ({"injection_norm": float("inf")}, "finite"),
    ({"misalignment": 0.1}, r"misalignment\*\*2 = 1"),
    ({"bulk": "steep"}, "flat, linear, geometric"),
    ({"bulk": [0.5, 0.5]}, "largest entry 1"),
    ({"dtype": "float16"}, "float32 or float64"),
    ({"dtype": "sharp"}, "float32 or float64"),
    ({"width": 1}, "width=1"),
    ({"width": 1, "kappa": 1.0}, "gamma=1 when width=1"),
    ({"width": 1, "kappa": 1.0, "gamma": 1.0, "misalignment": 1e-17}, "misalignment=0 when width=1"),
    ({"context": 1}, "context=1"),
]


@pytest.mark.parametrize(("changes", "expected"), BAD, ids=lambda x: str(x)[:30])
def test_a_recipe_out_of_range_is_refused_in_one_line(changes, expected):
    with pytest.raises(st.InputError, match=expected) as caught:
        ensembles.planted(KEY, **({"layers": 5, "width": 3, "context": 2} | RECIPE | changes))
    assert "\n" not in str(caught.value) and "; try " in str(caught.value)


def test_gaussian_entries_have_the_stated_variance():
    chain = ensembles.gaussian(KEY, layers=64, width=64, context=48, scale=2.0, initial=True)
    w = np.asarray(chain.propagators)
    assert abs(w.mean()) < 5 * 0.25 / np.sqrt(w.size)
    np.testing.assert_allclose(w.var(), 4 / 64, rtol=5 * np.sqrt(2 / w.size))
    np.testing.assert_allclose(np.linalg.norm(chain.injections, axis=(1, 2)), 1, rtol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(chain.initial), 1, rtol=1e-14)


def test_orthogonal_and_residual():
    w = np.asarray(ensembles.orthogonal(KEY, layers=5, width=3, scale=2.0).propagators)
    np.testing.assert_allclose(w @ np.swapaxes(w, 1, 2), np.broadcast_to(4 * np.eye(3), (5, 3, 3)), atol=1e-14)
    near, far = (ensembles.residual(KEY, layers=5, width=3, epsilon=e).propagators - jnp.eye(3) for e in (0.01, 0.1))
    np.testing.assert_allclose(10 * near, far, atol=1e-15)
    gaussian = ensembles.gaussian(KEY, layers=5, width=3, scale=0.1).propagators
    np.testing.assert_allclose(far, gaussian, atol=1e-15)


@pytest.mark.parametrize("make", [ensembles.gaussian, ensembles.orthogonal])
def test_random_ensembles_refuse(make):
    for changes, expected in [
        ({"scale": 0.0}, "> 0"),
        ({"scale": [1.0, 2.0]}, r"\(1,\)"),
        ({"width": 0}, ">= 1"),
        ({"context": 0}, ">= 1"),
        ({"initial": True}, "context"),
        ({"dtype": int}, "float32 or float64"),
    ]:
        with pytest.raises(st.InputError, match=expected):
            make(KEY, **({"layers": 2, "width": 2} | changes))
    with pytest.raises(st.InputError, match="epsilon"):
        ensembles.residual(KEY, layers=2, width=2, epsilon=float("nan"))


def growth_per_layer(chain):
    """Measure the last factor by which a normalised product of a two-dimensional chain grows."""
    x = np.ones(2)
    for w in np.asarray(chain.propagators):
        x = w @ x
        grown = np.linalg.norm(x)
        x /= grown
    return grown


@given(hs.floats(0.5, 4), hs.floats(0.05, 0.99), hs.floats(0.01, 0.9))
def test_growth_of_the_extremal_chain_is_its_closed_form(sigma, kappa, xi):
    rate = 0.5 * (kappa * (1 - xi) + np.sqrt(kappa**2 * (1 - xi) ** 2 + 4 * xi))
    w = np.asarray(ensembles.growing_despite_rho_below_one(3, sigma, kappa, xi).propagators[0])
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(w)).max(), sigma * rate, rtol=1e-13)
    np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), [sigma, sigma * xi], rtol=1e-12)
    u, _, _, v = leading(w)
    np.testing.assert_allclose(abs(u @ v), kappa, atol=1e-12 / (1 - xi))


def test_the_default_extremal_chain_grows_at_the_known_rate():
    measured = growth_per_layer(ensembles.growing_despite_rho_below_one(4000))
    rate = 3 * 0.5 * (0.1 * 0.1 + np.sqrt(0.1**2 * 0.1**2 + 4 * 0.9))
    np.testing.assert_allclose(measured, rate, rtol=1e-9)
    np.testing.assert_allclose(rate, 2.86, atol=0.005)


@given(hs.floats(0.05, 0.95))
def test_the_rotating_chain_turns_exactly_beyond_the_threshold(xi):
    edge = (1 - xi) / (1 + xi)
    for s, turns in ((edge * (1 - 1e-9), False), (edge * (1 + 1e-9), True)):
        w = np.asarray(ensembles.rotating(2, 1.0, float(np.sqrt((1 - s) * (1 + s))), xi).propagators[0])
        assert np.iscomplexobj(np.linalg.eigvals(w)) == turns
        np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), [1, xi], rtol=1e-12)


def test_planted_counterexamples_break_what_they_say():
    impure = leading(ensembles.aligned_but_impure().propagators)
    np.testing.assert_allclose(impure[2] / impure[1], 0.9, rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(impure[3][1:] * impure[0][:-1], axis=1)), 1 - 1e-4, rtol=1e-12)

    flipping = ensembles.coherent_but_sign_flipping()
    u, _, _, v = leading(flipping.propagators)
    v = v * np.cumprod([1.0, *np.sign(np.sum(v[1:] * u[:-1], axis=1))])[:, None]
    u = u * np.sign(np.einsum("ld,lde,le->l", u, flipping.propagators, v))[:, None]
    assert (np.sum(v[1:] * u[:-1], axis=1) > 0).all()  # a gauge in which every amplitude is positive
    rows = np.einsum("ld,ldc->lc", v[1:], flipping.injections[:-1])
    turned = rows @ rows[0]
    assert (np.sign(turned) == np.where(np.arange(63) % 2, -1, 1)).all()

    _, s1, s2, _ = leading(ensembles.tied().propagators)
    np.testing.assert_allclose(s1, s2, rtol=1e-14)


def test_the_registry_makes_every_counterexample_with_context():
    for name, (make, finding) in ensembles.COUNTEREXAMPLES.items():
        chain = make(4, dtype="float32")
        assert isinstance(chain, st.LayerChain) and chain.depth == 4 and chain.context_size > 0, name
        assert chain.dtype == jnp.dtype("float32") and finding.endswith(".")
        with pytest.raises(st.InputError):
            make(0)
