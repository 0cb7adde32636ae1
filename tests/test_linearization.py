"""Jacobians from layer functions: dense, matrix-free and compressed must be one chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as strategies
from jax.tree_util import Partial

import spectral_theorem as st
from spectral_theorem import linearization as module
from spectral_theorem import operatorchain
from spectral_theorem.types import InputError

WIDTH, FRAMES, CHANNELS = 6, 5, 4


def attend(weights, h, c):
    """Cross-attention to the rows of c, then a gated update: nonlinear in both arguments."""
    query, value, mlp = weights
    p = jax.nn.softmax(c @ (query @ jnp.sin(h)))
    h = h + value @ (p @ c)
    return h + jnp.tanh(mlp @ h)


def stack(key=0, depth=4, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(key), 3 * depth)
    draw = lambda k, *shape: jax.random.normal(k, shape, dtype)
    return [
        Partial(
            attend,
            (
                draw(keys[3 * i], CHANNELS, WIDTH),
                0.5 * draw(keys[3 * i + 1], WIDTH, CHANNELS),
                0.3 * draw(keys[3 * i + 2], WIDTH, WIDTH),
            ),
        )
        for i in range(depth)
    ]


def weighted(f, scale, h, c):
    return h + scale * f(h, c)


def inputs(key=7, dtype=jnp.float64):
    a, b = jax.random.split(jax.random.key(key))
    return jax.random.normal(a, (WIDTH,), dtype), jax.random.normal(b, (FRAMES, CHANNELS), dtype)


def states_of(layers, state, context):
    states = [state]
    for layer in layers:
        states.append(layer(states[-1], context))
    return states


def central(f, x, direction, step=1e-3):
    """Sixth-order central difference."""
    at = lambda k: f(x + k * step * direction)
    return (45 * (at(1) - at(-1)) - 9 * (at(2) - at(-2)) + (at(3) - at(-3))) / (60 * step)


@jax.jit
def differences(layer, h, c, x, y):
    """Return central differences of one layer along directions (4, ...) of the state and of the context."""
    by_state = jax.vmap(lambda d: central(lambda z: layer(z, c), h, d))(x)
    return by_state, jax.vmap(lambda d: central(lambda z: layer(h, z), c, d))(y)


def worst(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


def difference_from_finite_differences(w, g, layers, state, context):
    """Compare W x and G y with central differences of the layers themselves, along random directions."""
    rng = np.random.default_rng(3)
    found = []
    for l, (layer, h) in enumerate(zip(layers, states_of(layers, state, context)[:-1], strict=True)):
        x, y = (jnp.asarray(rng.normal(size=(4, *z.shape))) for z in (h, context))
        by_state, by_context = differences(layer, h, context, x, y)
        found += [worst(w[l] @ x[i], by_state[i]) for i in range(4)]
        found += [worst(g[l] @ y[i].ravel(), by_context[i]) for i in range(4)]
    return max(found)


@pytest.fixture(scope="module")
def dense():
    return st.linearize(stack(), *inputs())


@pytest.fixture(scope="module")
def free():
    return st.operators(stack(), *inputs())


def test_jacobians_agree_with_central_differences(dense):
    layers, (h, c) = stack(), inputs()
    assert difference_from_finite_differences(dense.propagators, dense.injections, layers, h, c) < 1e-9


def test_jacobians_at_the_wrong_state_are_noticed(dense):
    layers, (h, c) = stack(), inputs()
    wrong = jnp.stack([jax.jacfwd(layer)(h, c) for layer in layers])
    assert difference_from_finite_differences(wrong, dense.injections, layers, h, c) > 1e-2


def test_column_major_context_is_noticed(dense):
    layers, (h, c) = stack(), inputs()
    g = dense.injections.reshape(4, WIDTH, FRAMES, CHANNELS)
    wrong = jnp.swapaxes(g, 2, 3).reshape(4, WIDTH, -1)
    assert difference_from_finite_differences(dense.propagators, wrong, layers, h, c) > 1e-2


def test_closed_form_of_an_affine_stack():
    rng = np.random.default_rng(0)
    w, g = jnp.asarray(rng.normal(size=(3, 4, 4))), jnp.asarray(rng.normal(size=(3, 4, 5)))
    layers = [Partial(lambda a, b, h, c: a @ h + b @ c, a, b) for a, b in zip(w, g, strict=True)]
    chain = st.linearize(layers, jnp.ones(4), jnp.ones(5))
    assert (chain.propagators == w).all() and (chain.injections == g).all() and chain.initial is None


def test_the_total_derivative_is_that_of_the_whole_stack(dense):
    layers, (h, c) = stack(), inputs()
    total = jax.jit(jax.jacrev(lambda c: states_of(layers, h, c)[-1]))(c).reshape(WIDTH, -1)
    j = jnp.zeros_like(total)
    for w, g in zip(dense.propagators, dense.injections, strict=True):
        j = w @ j + g
    assert worst(j, total) < 1e-13


def test_a_first_state_that_depends_on_the_context():
    layers, (_, c) = stack(), inputs()
    first = lambda c: jnp.sin(c.ravel()[:WIDTH])
    chain = st.linearize(layers, None, c, initial=first)
    total = jax.jit(jax.jacrev(lambda c: states_of(layers, first(c), c)[-1]))(c).reshape(WIDTH, -1)
    j = chain.initial
    for w, g in zip(chain.propagators, chain.injections, strict=True):
        j = w @ j + g
    assert worst(j, total) < 1e-13


@pytest.mark.parametrize("shape", [(), (1,), (module._TANGENTS,), (module._TANGENTS + 1,), (3, 2, 100)])
def test_contexts_of_every_shape_and_across_blocks(shape):
    size = int(np.prod(shape))
    rng = np.random.default_rng(1)
    b = jnp.asarray(rng.normal(size=(2, size)))
    chain = st.linearize([lambda h, c: h * h + jnp.sin(b @ c.ravel())], jnp.ones(2), jnp.full(shape, 0.3))
    expected = jnp.cos(b @ jnp.full(size, 0.3))[:, None] * b
    assert chain.injections.shape == (1, 2, size)
    assert worst(chain.injections[0], expected) < 1e-14


def test_layers_of_one_function_share_a_compilation():
    module._dense_layer.clear_cache()
    st.linearize(stack(depth=4), *inputs())
    st.linearize(stack(key=9, depth=4), *inputs(8))
    assert module._dense_layer._cache_size() == 1


def test_a_batch_of_states_by_vmap(dense):
    layers, (h, c) = stack(), inputs()
    batch = jax.jit(jax.vmap(lambda h: st.linearize(layers, h, c)))(jnp.stack([h, 2 * h]))
    assert batch.propagators.shape == (2, 4, WIDTH, WIDTH)
    assert worst(batch.propagators[0], dense.propagators) < 1e-13
    assert worst(batch.injections[0], dense.injections) < 1e-13


def test_float32_stays_float32():
    chain = st.linearize(stack(dtype=jnp.float32), *inputs(dtype=jnp.float32))
    assert chain.dtype == jnp.float32 and chain.injections.dtype == jnp.float32
    free = st.operators(stack(dtype=jnp.float32), *inputs(dtype=jnp.float32))
    assert free.dtype == jnp.float32 and free.compress().chain.dtype == jnp.float32
    assert worst(free.injection_gram(), jnp.einsum("ldc,lec->lde", chain.injections, chain.injections)) < 1e-5


# ---------------------------------------------------------------- operators


def test_sizes(free):
    assert (free.depth, free.width, free.context_size, free.dtype) == (4, WIDTH, FRAMES * CHANNELS, jnp.float64)
    assert worst(free.states, jnp.stack(states_of(stack(), *inputs()))) < 1e-14


@pytest.mark.parametrize("batch", [None, "one", 1, 3])
@pytest.mark.parametrize("name", ["matvec", "rmatvec", "injection_matvec", "injection_rmatvec"])
def test_products_agree_with_the_dense_chain(dense, free, name, batch):
    matrix = dense.injections if "injection" in name else dense.propagators
    matrix = jnp.swapaxes(matrix, 1, 2) if name.endswith("rmatvec") else matrix
    shape = {None: (4,), "one": ()}.get(batch, (4, batch))
    x = jax.random.normal(jax.random.key(2), (*shape, matrix.shape[2]))
    expected = jnp.einsum(
        "lij,lbj->lbi",
        matrix,
        jnp.broadcast_to(x[..., None, :] if x.ndim == 2 else x, (4, *((batch,) if x.ndim == 3 else (1,)), x.shape[-1])),
    )
    expected = expected if x.ndim == 3 else expected[:, 0]
    out = getattr(free, name)(x)
    assert out.shape == expected.shape
    assert worst(out, expected) < 1e-13


def test_products_in_blocks_agree_with_one_block(free, monkeypatch):
    x = jax.random.normal(jax.random.key(3), (4, 7, WIDTH))
    whole, gram = free.injection_rmatvec(x), free.injection_gram_pairs()
    monkeypatch.setattr(operatorchain, "_BYTES", 4 * 8 * FRAMES * CHANNELS * 4)
    assert free._chunk == 4  # 7 rows and 6 dimensions: neither is a multiple
    assert worst(free.injection_rmatvec(x), whole) < 1e-14
    assert worst(free.injection_gram_pairs(), gram) < 1e-14
    assert worst(free.injection_norm() ** 2, jnp.trace(free.injection_gram(), axis1=1, axis2=2)) < 1e-14


def test_grams_norms_rows_and_propagators_agree_with_the_dense_chain(dense, free):
    g, v = dense.injections, jax.random.normal(jax.random.key(4), (4, WIDTH))
    assert worst(free.injection_norm(), jnp.linalg.norm(g, axis=(1, 2))) < 1e-13
    assert worst(free.injection_gram(), jnp.einsum("ldc,lec->lde", g, g)) < 1e-13
    assert worst(free.injection_gram_pairs(), jnp.einsum("kdc,lec->klde", g, g)) < 1e-13
    assert worst(free.vt_g(v), jnp.einsum("ld,ldc->lc", v[1:], g[:-1])) < 1e-13
    assert worst(free.propagators(), dense.propagators) < 1e-13


def test_rows_of_a_single_layer_are_none():
    free = st.operators(stack(depth=1), *inputs())
    assert free.vt_g(jnp.ones((1, WIDTH))).shape == (0, FRAMES * CHANNELS)


def test_operators_pass_through_jit_and_compile_once(free):
    calls = []

    @jax.jit
    def apply(chain, x):
        calls.append(1)
        return chain.matvec(x)

    x = jnp.ones((4, WIDTH))
    assert worst(apply(free, x), free.matvec(x)) < 1e-14
    apply(st.operators(stack(), *inputs(11)), x)
    assert len(calls) == 1


# ---------------------------------------------------------------- compression


def isometry_defect(short, dense, trials=20):
    """Largest disagreement of ||sum A_l G_l||_F^2, relative to (sum ||A_l|| ||G_l||_F)^2."""
    rng = np.random.default_rng(5)
    found = 0.0
    for _ in range(trials):
        a = rng.normal(size=(dense.depth, 3, dense.width)) * 10.0 ** rng.uniform(-8, 2, size=(dense.depth, 1, 1))
        total = lambda g, a=a: float(np.linalg.norm(np.einsum("lpd,ldc->pc", a, np.asarray(g))) ** 2)
        size = np.linalg.norm(np.asarray(dense.injections), axis=(1, 2))
        scale = float((np.linalg.norm(a, 2, axis=(1, 2)) * size).sum())
        found = max(found, abs(total(short.injections) - total(dense.injections)) / scale**2)
    return found


def test_compression_keeps_every_norm(dense, free):
    short = free.compress()
    assert short.rank == 4 * CHANNELS  # the attention's output passes through CHANNELS numbers
    assert short.chain.injections.shape == (4, WIDTH, short.rank)
    assert worst(short.chain.propagators, dense.propagators) < 1e-13
    assert isometry_defect(short.chain, dense) <= short.error < 1e-13


def test_a_damaged_compression_is_noticed(dense, free):
    short = free.compress()
    g = short.chain.injections
    assert isometry_defect(st.LayerChain(short.chain.propagators, g[:, :, :-1]), dense) > short.error
    assert isometry_defect(st.LayerChain(short.chain.propagators, g.at[2].multiply(1 + 1e-9)), dense) > short.error


def test_compression_of_a_long_context_has_at_most_l_d_columns():
    free = st.operators(stack(depth=2), inputs()[0], jax.random.normal(jax.random.key(0), (2500, CHANNELS)))
    short = free.compress()
    g = jnp.stack([free.injection_rmatvec(jnp.eye(WIDTH)[i]) for i in range(WIDTH)], axis=1)
    assert short.rank <= 2 * WIDTH < free.context_size
    assert isometry_defect(short.chain, st.LayerChain(free.propagators(), g)) <= short.error


def test_a_precomputed_gram_is_used(free):
    pairs = free.injection_gram_pairs()
    assert (free.compress(pairs).chain.injections == free.compress().chain.injections).all()
    assert worst(free.compress(4 * pairs).chain.injections, 2 * free.compress().chain.injections) < 1e-12


def test_a_weak_injection_beside_a_strong_one_keeps_its_digits():
    layers, (h, c) = stack(depth=3), inputs()
    weak = [layers[0], Partial(weighted, layers[1], jnp.asarray(1e-9)), layers[2]]
    dense, short = st.linearize(weak, h, c), st.operators(weak, h, c).compress().chain
    rows = lambda g: jnp.einsum("dc,ec->de", g, g)
    assert worst(rows(short.injections[1]), rows(dense.injections[1])) < 1e-12


def test_layers_that_ignore_the_context():
    free = st.operators([lambda h, c: jnp.sin(h)] * 3, jnp.ones(4), jnp.ones((50, 300)))
    short = free.compress()
    assert short.rank == 0 and short.error < 1e-12
    assert short.chain.injections.shape == (3, 4, 1) and not short.chain.injections.any()
    assert not free.injection_norm().any() and not free.injection_rmatvec(jnp.ones(4)).any()
    dense = st.linearize([lambda h, c: jnp.sin(h)], jnp.ones(4), jnp.ones(3))
    assert not dense.injections.any()


def test_one_layer_that_uses_the_context_among_others_that_do_not():
    layers, (h, c) = stack(depth=3), inputs()
    layers = [layers[0], lambda h, c: h + jnp.tanh(h), layers[2]]
    short = st.operators(layers, h, c).compress()
    assert not short.chain.injections[1].any()
    assert isometry_defect(short.chain, st.linearize(layers, h, c)) <= short.error


@settings(max_examples=15)
@given(strategies.integers(0, 2**16), strategies.sampled_from([1, 3]), strategies.integers(-6, 6))
def test_dense_and_free_chains_agree(seed, depth, exponent):
    layers, (h, c) = stack(seed, depth), inputs(seed)
    layers = [
        Partial(weighted, f, jnp.asarray(10.0 ** (s * exponent))) for f, s in zip(layers, (1, 0, -1, 0), strict=False)
    ]
    dense, free = st.linearize(layers, h, c), st.operators(layers, h, c)
    assert worst(free.propagators(), dense.propagators) < 1e-12
    assert worst(free.injection_norm(), jnp.linalg.norm(dense.injections, axis=(1, 2))) < 1e-12
    short = free.compress()
    assert isometry_defect(short.chain, dense, trials=3) <= short.error


# ---------------------------------------------------------------- bad input

GOOD = lambda h, c: h + c.sum()
VECTOR = jnp.ones(3)


@pytest.mark.parametrize("build", [st.linearize, st.operators])
@pytest.mark.parametrize(
    ("layers", "state", "context", "message"),
    [
        ([], VECTOR, VECTOR, "no layers"),
        (GOOD, VECTOR, VECTOR, "sequence of functions"),
        ([GOOD, 3], VECTOR, VECTOR, "layer 2 of type int"),
        ([GOOD, lambda h, c: h[:2]], VECTOR, VECTOR, r"layer 2 with output of shape \(2,\)"),
        ([lambda h, c: (h, c)], VECTOR, VECTOR, "layer 1 returning a tuple"),
        ([lambda h, c: h.astype("float32")], VECTOR, VECTOR, "layer 1 with output in float32"),
        ([GOOD, lambda h, c: jnp.log(h - 100.0)], VECTOR, VECTOR, "non-finite activations after layer 2"),
        ([GOOD], jnp.ones((3, 3)), VECTOR, "state with shape"),
        ([GOOD], jnp.ones(0), VECTOR, "no empty axis"),
        ([GOOD], jnp.arange(3), VECTOR, "state with dtype int"),
        ([GOOD], VECTOR.astype("float16"), VECTOR.astype("float16"), "dtype float16"),
        ([GOOD], VECTOR, jnp.arange(3), "context with dtype int"),
        ([GOOD], VECTOR, "c", "context of type str"),
        ([GOOD], VECTOR, jnp.ones((3, 0)), "no empty axis"),
        ([GOOD], VECTOR, jnp.full(3, jnp.nan), "context with non-finite"),
        ([GOOD], jnp.full(3, jnp.inf), VECTOR, "state with non-finite"),
        ([GOOD], VECTOR, VECTOR.astype("float32"), "state in float64 beside context in float32"),
        ([GOOD], None, VECTOR, "state of type NoneType"),
    ],
)
def test_bad_input_is_named(build, layers, state, context, message):
    with pytest.raises(InputError, match=message) as caught:
        build(layers, state, context)
    assert "\n" not in str(caught.value)


def test_a_large_context_is_refused_with_its_price():
    context = jnp.ones((1500, 384))
    with pytest.raises(InputError, match=r"\(2, 3, 576000\) take 0.0276 GB.*st\.operators"):
        st.linearize([GOOD, GOOD], VECTOR, context)
    assert st.operators([GOOD, GOOD], VECTOR, context).context_size == 576_000
    assert st.linearize([GOOD], VECTOR, jnp.ones(10_000)).context_size == 10_000


def test_a_kink_is_named():
    with pytest.raises(InputError, match="non-finite Jacobian at layer 2"):
        st.linearize([GOOD, lambda h, c: h + jnp.sqrt(h - h)], VECTOR, VECTOR)


def test_two_first_states_are_refused():
    with pytest.raises(InputError, match="both state and initial"):
        st.linearize([GOOD], VECTOR, VECTOR, initial=lambda c: c)
    with pytest.raises(InputError, match="initial of type int"):
        st.linearize([GOOD], None, VECTOR, initial=3)


def test_vectors_of_the_wrong_shape_are_refused(free):
    for bad in (jnp.ones(WIDTH + 1), jnp.ones((3, WIDTH)), jnp.ones((4, WIDTH + 1)), jnp.ones((4, 1, 1, WIDTH))):
        with pytest.raises(InputError, match="vectors with shape"):
            free.matvec(bad)
    with pytest.raises(InputError, match="v with shape"):
        free.vt_g(jnp.ones(WIDTH))
    with pytest.raises(InputError, match="gram_pairs with shape"):
        free.compress(jnp.ones((4, WIDTH, WIDTH)))
    with pytest.raises(InputError, match="gram_pairs with non-finite"):
        free.compress(jnp.full((4, 4, WIDTH, WIDTH), jnp.nan))
