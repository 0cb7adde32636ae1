"""Sequence scope: layers and linear maps of all positions, against forward differentiation and each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import scopes, whisper
from spectral_theorem.scopes import sequence_chain, sequence_triplets
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Dims, blocks
from spectral_theorem.whisper.tangents import injection_square

DIMS = Dims(
    width=16,
    mels=8,
    frames=7,
    vocabulary=11,
    positions=12,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=20,
    decoder_layers=3,
    decoder_heads=4,
    decoder_hidden=24,
)
TOKENS = [9, 1, 2, 3, 4]
WIDE, CONTEXT = len(TOKENS) * 16, 7 * 16


@pytest.fixture(scope="module")
def model():
    return whisper.random_model(jax.random.key(1), DIMS, dtype="float64")


@pytest.fixture(scope="module")
def context(model):
    return model.encode(jax.random.normal(jax.random.key(2), (8, 14), "float64"))


@pytest.fixture(scope="module", params=["block", "sub-block"])
def granularity(request):
    return request.param


@pytest.fixture(scope="module")
def layers(model, context, granularity):
    return whisper.sequence_layers(model, context, TOKENS, granularity)


@pytest.fixture(scope="module")
def dense(layers):
    """Return the chain by `jax.jacfwd`, which shares no line with the maps."""
    return st.linearize(layers.layers, layers.state, layers.context)


@pytest.fixture(scope="module")
def maps(model, context, granularity):
    return whisper.sequence_maps(model, context, TOKENS, granularity, norms=True)


apply = jax.jit(lambda layer, h, c: layer(h, c))
jacobian = jax.jit(lambda linear, zero: jax.jacfwd(linear)(zero))


@jax.jit
def transposed(linear, like, y):
    return jax.vmap(lambda row: jax.linear_transpose(linear, like)(row)[0])(y)


def distance(x, y):
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())


def test_layers_reproduce_the_residual_stream(model, context, layers, maps):
    run = whisper.decoder_pass(model.parameters["decoder"], jnp.asarray(TOKENS), context, heads=4)
    every = len(layers.layers) // DIMS.decoder_layers
    h, states = layers.state, [layers.state]
    for layer in layers.layers:
        h = apply(layer, h, layers.context)
        states.append(h)
    for block in range(DIMS.decoder_layers + 1):
        assert distance(states[block * every], run.residual[block].ravel()) < 1e-12
    assert distance(maps.states, jnp.stack(states)) < 1e-12
    assert layers.names == maps.names and len(set(layers.names)) == len(layers.layers)
    assert layers.positions == len(TOKENS)


def test_maps_are_the_jacobians(maps, dense):
    for i, (w, g) in enumerate(zip(maps.propagators, maps.injections, strict=True)):
        assert distance(jacobian(w, jnp.zeros(WIDE)), dense.propagators[i]) < 1e-12
        assert distance(jacobian(g, jnp.zeros(CONTEXT)), dense.injections[i]) < 1e-12


def test_transposed_maps_are_the_transposed_jacobians(maps, dense):
    y = jax.random.normal(jax.random.key(4), (3, WIDE))
    for i, (w, g) in enumerate(zip(maps.propagators, maps.injections, strict=True)):
        assert distance(transposed(w, jnp.zeros(WIDE), y), y @ dense.propagators[i]) < 1e-12
        assert distance(transposed(g, jnp.zeros(CONTEXT), y), y @ dense.injections[i]) < 1e-12


def test_one_layer_is_not_mistaken_for_another(maps, dense):
    every = len(maps.propagators) // DIMS.decoder_layers
    for part in range(every):
        w = jacobian(maps.propagators[part], jnp.zeros(WIDE))
        assert distance(w, dense.propagators[part + every]) > 1e-2


def test_norms_of_injections_are_exact(maps, dense, layers):
    exact = jnp.linalg.norm(dense.injections, axis=(1, 2))
    assert distance(maps.norms, exact) < 1e-12
    assert distance(st.operators(layers.layers, layers.state, layers.context).injection_norm(), exact) < 1e-12


def test_the_norm_of_an_injection_is_that_of_its_positions(model, context):
    norms = whisper.sequence_maps(model, context, TOKENS, norms=True).norms
    squares = 0.0
    for position in range(len(TOKENS)):
        token = whisper.token_layers(model, context, TOKENS, position)
        squares = squares + st.operators(token.layers, token.state, token.context).injection_norm() ** 2
    assert distance(norms, jnp.sqrt(squares)) < 1e-12


def test_the_norm_needs_the_mlp_and_every_position(model, context):
    maps = whisper.sequence_maps(model, context, TOKENS)
    _, content, mlp = maps.injections[0].args
    parameters = model.parameters["decoder"]["layers"][0]
    whole = float(injection_square(parameters, content, mlp))
    assert abs(float(injection_square(parameters, content, None)) / whole - 1) > 1e-2
    fewer = dataclasses.replace(
        content, weights=content.weights[:, 1:], queries=content.queries[:, 1:], output=content.output[:, 1:]
    )
    assert float(injection_square(parameters, fewer, None)) < float(injection_square(parameters, content, None))
    for name in ("weights", "queries", "values", "output"):
        bent = dataclasses.replace(content, **{name: 1.01 * getattr(content, name)})
        assert abs(float(injection_square(parameters, bent, mlp)) / whole - 1) > 1e-6, name


def test_propagators_never_look_ahead(maps):
    blocks_of = jacobian(maps.propagators[0], jnp.zeros(WIDE)).reshape(5, 16, 5, 16).transpose(0, 2, 1, 3)
    sizes = np.asarray(jnp.linalg.norm(blocks_of, axis=(2, 3)))
    assert (sizes[np.triu_indices(5, 1)] == 0).all()
    later = sizes[np.tril_indices(5, -1)]
    assert (later > 0).all() if "attention" in maps.names[0] or len(maps.names) == 3 else (later == 0).all()


@pytest.mark.parametrize("position", [0, 2, 4])
def test_own_block_of_the_propagator_is_token_scope(model, context, granularity, dense, position):
    token = whisper.token_layers(model, context, TOKENS, position, granularity)
    frozen = st.linearize(token.layers, token.state, token.context)
    at = slice(16 * position, 16 * position + 16)
    assert distance(dense.propagators[:, at, at], frozen.propagators) < 1e-12
    assert distance(dense.injections[:, at], frozen.injections) < 1e-12


def test_chain_runs_on_operators_and_on_maps_alike(layers, maps, dense):
    by_layers = st.operators(layers.layers, layers.state, layers.context)
    by_maps = sequence_chain(maps)
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(dense.depth, 2, WIDE)))
    c = jnp.asarray(rng.normal(size=(dense.depth, 2, CONTEXT)))
    for name, given in (("matvec", x), ("rmatvec", x), ("injection_matvec", c), ("injection_rmatvec", x)):
        assert distance(getattr(by_layers, name)(given), getattr(by_maps, name)(given)) < 1e-11, name
    assert distance(by_maps.propagators(), dense.propagators) < 1e-12
    assert distance(by_maps.injection_norm(), maps.norms) < 1e-12


def test_triplets_of_the_whole_sequence(model, context):
    maps = whisper.sequence_maps(model, context, TOKENS)
    chain = sequence_chain(maps)
    found = sequence_triplets(chain, key=jax.random.key(0))
    u, sigma, v = np.linalg.svd(np.asarray(chain.propagators()))
    assert distance(found.sigma, sigma[:, :2]) < 1e-11
    kappa = np.abs(np.einsum("ld,ld->l", v[1:, 0], u[:-1, :, 0]))
    assert distance(np.abs(found.kappa), kappa) < 1e-9
    assert not found.certified.any()


@pytest.mark.parametrize(
    "granularity", ["block", pytest.param("sub-block", marks=pytest.mark.exhaustive)], indirect=True
)
def test_triplets_of_a_wide_layer_need_no_dense_matrix(model, context, granularity):
    # Beyond 64 rows and a basis shorter than the state the space is searched, not written down.
    chain = sequence_chain(whisper.sequence_maps(model, context, [*TOKENS, *TOKENS, 5, 6], granularity))
    found = sequence_triplets(chain, top=3)
    _, sigma, v = np.linalg.svd(np.asarray(chain.propagators()))
    assert distance(found.sigma_top[:, :3], sigma[:, :3]) < 1e-10
    assert distance(np.abs(np.einsum("ld,ld->l", found.v, v[:, 0])), 1) < 1e-9
    assert found.resolved.all() and not found.certified.any()


def test_what_does_not_converge_is_not_resolved(model, context, monkeypatch):
    chain = sequence_chain(whisper.sequence_maps(model, context, [*TOKENS, *TOKENS, 5, 6]))
    monkeypatch.setattr(scopes, "_BASIS", 16)
    assert not sequence_triplets(chain, top=40).resolved.any()


def test_maps_hold_no_array_of_the_size_of_w_or_g(maps):
    largest = {"weights": 24 * 16}  # the MLP's kernel
    for each in (*maps.propagators, *maps.injections):
        for leaf in jax.tree.leaves(each):
            assert leaf.size <= max(largest["weights"], 4 * 5 * 4 * 4, 7 * 16 * 4)
            assert leaf.size < WIDE * WIDE and leaf.size < WIDE * CONTEXT


def test_all_layers_of_a_kind_share_one_trace(model, context):
    traces = []

    @jax.jit
    def image(layer, h, c):
        traces.append(layer)
        return layer(h, c)

    for tokens in (TOKENS, TOKENS[::-1]):
        chain = whisper.sequence_layers(model, context, tokens)
        for layer in chain.layers:
            image(layer, chain.state, chain.context)
    assert len(traces) == 1


def test_one_position_is_token_scope(model, context):
    whole = whisper.sequence_layers(model, context, TOKENS[:1])
    token = whisper.token_layers(model, context, TOKENS[:1], 0)
    for a, b in zip(whole.layers, token.layers, strict=True):
        assert distance(apply(a, whole.state, context), apply(b, token.state, context)) < 1e-13


def test_float32_stays_float32(context):
    model = whisper.random_model(jax.random.key(1), DIMS, dtype="float32")
    c = context.astype("float32")
    maps = whisper.sequence_maps(model, c, TOKENS, norms=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((maps.propagators, maps.injections))} == {jnp.dtype("float32")}
    layers = whisper.sequence_layers(model, c, TOKENS)
    dense = st.linearize(layers.layers, layers.state, layers.context)
    assert 0 < distance(jacobian(maps.propagators[1], jnp.zeros(WIDE, "float32")), dense.propagators[1]) < 1e-4
    assert distance(maps.norms / jnp.linalg.norm(dense.injections, axis=(1, 2)), 1.0) < 1e-5


def test_derivative_of_layer_norm_sees_the_epsilon(model, context):
    # Rows of tiny variance, where epsilon rules and a normalisation without it would be wrong by a factor.
    flat = 1e-4 * jax.random.normal(jax.random.key(3), (5, 16))
    parameters = model.parameters["decoder"]["layers"][0]
    from spectral_theorem.whisper import tangents

    norm, _ = tangents._norm_point(parameters["final_layer_norm"], flat)
    found = jax.jacfwd(lambda x: tangents._after_norm(parameters["final_layer_norm"], norm, x))(flat)
    exact = jax.jacfwd(lambda x: blocks.layer_norm(parameters["final_layer_norm"], x))(flat)
    assert distance(found, exact) < 1e-9 * float(jnp.abs(exact).max())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tokens": []}, "no tokens"),
        ({"tokens": [9, 11]}, "token 11"),
        ({"tokens": [1] * 13}, "position 12"),
        ({"encoder_output": jnp.zeros((6, 16))}, "encoder output"),
        ({"encoder_output": jnp.zeros((7, 16), "float32")}, "float32"),
        ({"granularity": "head"}, "granularity"),
    ],
)
@pytest.mark.parametrize("function", [whisper.sequence_layers, whisper.sequence_maps])
def test_nonsense_is_refused(model, context, function, change, word):
    arguments = {"encoder_output": context, "tokens": TOKENS} | change
    with pytest.raises(InputError, match=word):
        function(model, **arguments)
