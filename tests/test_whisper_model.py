"""The model and its decomposition into layers, against itself by other routes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from spectral_theorem import whisper
from spectral_theorem.audio import load_audio
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Cache, Dims, blocks

DIMS = Dims(
    width=16,
    mels=8,
    frames=7,
    vocabulary=11,
    positions=12,
    encoder_layers=2,
    encoder_heads=2,
    encoder_hidden=20,
    decoder_layers=3,
    decoder_heads=4,
    decoder_hidden=24,
)
TOKENS = [9, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def model():
    return whisper.random_model(jax.random.key(1), DIMS, dtype="float64")


@pytest.fixture(scope="module")
def context(model):
    return model.encode(jax.random.normal(jax.random.key(2), (8, 14), "float64"))


@pytest.fixture(scope="module")
def run(model, context):
    return whisper.decoder_pass(model.parameters["decoder"], jnp.asarray(TOKENS), context, heads=DIMS.decoder_heads)


apply = jax.jit(lambda layer, h, c: layer(h, c))
by_context = jax.jit(lambda layer, h, c: jax.jacrev(layer, 1)(h, c))


def distance(x, y):
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())


# The model.


def test_parameters_are_named_and_shaped_as_in_the_flax_port(model):
    layer = model.parameters["decoder"]["layers"][0]
    assert layer["fc1"]["kernel"].shape == (16, 24)
    assert set(layer["encoder_attn"]["k_proj"]) == {"kernel"}
    assert set(layer["encoder_attn"]["v_proj"]) == {"kernel", "bias"}
    assert model.parameters["encoder"]["conv2"]["kernel"].shape == (3, 16, 16)
    assert model.label == "random weights (plumbing only)"


def test_stem_is_two_convolutions(model):
    parameters = model.parameters["encoder"]
    mel = np.random.default_rng(0).standard_normal((8, 14))
    erf = np.vectorize(__import__("math").erf)
    x = mel.T
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel, bias = (np.asarray(parameters[name][part]) for part in ("kernel", "bias"))
        rows = []
        for at in range(0, x.shape[0], stride):
            taps = [(i, at + i - 1) for i in range(3) if 0 <= at + i - 1 < x.shape[0]]
            rows.append(bias + sum(x[j] @ kernel[i] for i, j in taps))
        y = np.asarray(rows)
        x = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    expected = x + np.asarray(parameters["embed_positions"]["embedding"])
    assert distance(jax.jit(blocks.encoder_stem)(parameters, jnp.asarray(mel)), expected) < 1e-13


def test_layer_norm_uses_whispers_epsilon():
    x = jnp.asarray([1e-3, -1e-3])
    one = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    assert distance(blocks.layer_norm(one, x), x / np.sqrt(1e-6 + 1e-5)) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_same_over_few_queries_of_one_head_at_a_time(monkeypatch, causal):
    q, k, v = (jax.random.normal(key, (5, 2, 3)) for key in jax.random.split(jax.random.key(0), 3))
    mask = jnp.tri(5, dtype=bool) if causal else None
    together, jacobian = blocks.attend(q, k, v, mask), jax.jacrev(blocks.attend)(q, k, v, mask)
    monkeypatch.setattr(blocks, "_LARGE", 0)
    monkeypatch.setattr(blocks, "_QUERIES_AT_ONCE", 2)
    assert distance(together, blocks.attend(q, k, v, mask)) < 1e-14
    assert distance(jacobian, jax.jacrev(blocks.attend)(q, k, v, mask)) < 1e-14
    assert distance(jacobian, jax.jacfwd(blocks.attend)(q, k, v, mask)) < 1e-14
    scores = jnp.einsum("nhi,mhi->hnm", q, k)
    weights = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, -jnp.inf), axis=-1)
    assert distance(together, jnp.einsum("hnm,mhi->nhi", weights, v).reshape(5, 6)) < 1e-14


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_gelu_is_the_exact_one_in_every_precision(dtype):
    x = jnp.linspace(-12, 12, 20001).astype(dtype)
    exact, eps = np.asarray(x, float), float(jnp.finfo(dtype).eps)
    value, slope = jax.jvp(blocks.gelu, (x,), (jnp.ones_like(x),))
    assert value.dtype == dtype
    assert np.all(np.abs(np.asarray(value, float) - exact * ndtr(exact)) <= 2 * eps * np.maximum(np.abs(exact), 1))
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    assert distance(slope, ndtr(exact) + exact * density) < 2 * eps


def test_decoder_never_looks_ahead(model, context, run):
    other = model.logits(jnp.asarray([*TOKENS[:3], 7, 8]), context)
    assert distance(other[:3], run.logits[:3]) < 1e-13
    assert distance(other[3], run.logits[3]) > 1e-3


def test_sub_block_outputs_add_up_to_the_residual_stream(run):
    added = run.self_attention + run.cross_attention + run.mlp
    assert distance(run.residual[:-1] + added, run.residual[1:]) < 1e-13


def test_batches_equal_singles(model):
    mel = jax.random.normal(jax.random.key(3), (2, 8, 14), "float64")
    tokens = jnp.asarray([TOKENS, TOKENS[::-1]])
    batch = model(mel, tokens)
    assert batch.shape == (2, 5, 11)
    for i in range(2):
        assert distance(batch[i], model(mel[i], tokens[i])) < 1e-13


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_lower_precision_stays_near(model, context, run, dtype, allowed):
    weights = jax.tree.map(lambda x: x.astype(dtype), model.parameters["decoder"])
    low = whisper.decoder_pass(weights, jnp.asarray(TOKENS), context.astype(dtype), heads=DIMS.decoder_heads)
    assert low.logits.dtype == jnp.dtype(dtype)
    assert 0 < distance(low.logits.astype("float64"), run.logits) < allowed


def test_wrong_windows_are_refused(model):
    with pytest.raises(InputError, match="log-mel of shape"):
        model.encode(jnp.zeros((8, 13)))


# What a run keeps.


def test_a_record_keeps_what_it_names_and_nothing_else(model, context, run):
    wanted = whisper.Record(mlp=True, residual=True, layers=(0, 2))
    some = whisper.decoder_pass(
        model.parameters["decoder"], jnp.asarray(TOKENS), context, heads=DIMS.decoder_heads, record=wanted
    )
    assert distance(some.mlp, run.mlp[jnp.asarray([0, 2])]) == 0
    assert distance(some.residual, run.residual[jnp.asarray([0, 1, 3])]) == 0
    absent = ("keys", "values", "self_attention", "cross_attention", "logits")
    assert all(getattr(some, name) is None for name in absent)


@pytest.mark.parametrize("part", ["self_attention", "cross_attention", "mlp", "residual", "logits"])
def test_every_part_alone_is_the_same_part(model, context, run, part):
    wanted = whisper.Record(**{part: True})
    alone = whisper.decoder_pass(
        model.parameters["decoder"], jnp.asarray(TOKENS), context, heads=DIMS.decoder_heads, record=wanted
    )
    assert distance(getattr(alone, part), getattr(run, part)) < 1e-13
    assert len(jax.tree.leaves(alone)) == 1


def test_the_encoder_is_recorded_as_it_runs(model):
    mel = jax.random.normal(jax.random.key(2), (8, 14), "float64")
    found = whisper.encoder_pass(model.parameters["encoder"], mel, heads=DIMS.encoder_heads)
    assert distance(found.context, model.encode(mel)) < 1e-13
    assert distance(found.residual[:-1] + found.self_attention + found.mlp, found.residual[1:]) < 1e-13
    first = whisper.Record(self_attention=True, layers=(0,))
    some = whisper.encoder_pass(model.parameters["encoder"], mel, heads=DIMS.encoder_heads, record=first)
    assert distance(some.self_attention, found.self_attention[:1]) < 1e-13
    assert some.residual is None and some.mlp is None


def test_records_run_over_batches(model, context, run):
    wanted = whisper.Record(cross_attention=True)
    one = lambda tokens: whisper.decoder_pass(
        model.parameters["decoder"], tokens, context, heads=DIMS.decoder_heads, record=wanted
    )
    both = jax.vmap(one)(jnp.asarray([TOKENS, TOKENS[::-1]]))
    assert both.cross_attention.shape == (2, 3, 5, 16)
    assert distance(both.cross_attention[0], run.cross_attention) < 1e-13


def test_records_that_make_no_sense_are_refused(model, context):
    for layers in ((1, 0), (0, 0), (-1,)):
        with pytest.raises(InputError, match="block numbers"):
            whisper.Record(layers=layers)
    with pytest.raises(InputError, match="layer 3"):
        whisper.decoder_pass(
            model.parameters["decoder"],
            jnp.asarray(TOKENS),
            context,
            heads=DIMS.decoder_heads,
            record=whisper.Record(mlp=True, layers=(3,)),
        )


def test_batches_of_windows_are_encoded_in_turn_as_side_by_side(model, monkeypatch):
    from spectral_theorem.whisper import passes

    mel = jax.random.normal(jax.random.key(3), (3, 8, 14), "float64")
    beside = model.encode(mel)
    monkeypatch.setattr(passes, "_LONGEST_ON_ONE_CORE", 0)
    passes._encoder_block.clear_cache()
    in_turn = model.encode(mel)
    passes._encoder_block.clear_cache()
    assert distance(beside, in_turn) < 1e-13
    assert distance(beside[1], model.encode(mel[1])) < 1e-13


# The chain of one token.


@pytest.mark.parametrize("granularity", ["block", "sub-block"])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_layers_reproduce_the_residual_stream(model, context, run, granularity, position):
    chain = whisper.token_layers(model, context, TOKENS, position, granularity)
    every = len(chain.layers) // DIMS.decoder_layers
    h = chain.state
    assert distance(h, run.residual[0, position]) < 1e-12
    for i, layer in enumerate(chain.layers):
        h = apply(layer, h, chain.context)
        if (i + 1) % every == 0:
            assert distance(h, run.residual[(i + 1) // every, position]) < 1e-12
    assert len(chain.names) == len(chain.layers) == len(set(chain.names))


def test_later_tokens_and_their_number_do_not_matter(model, context):
    short = whisper.token_layers(model, context, TOKENS[:3], 2)
    long = whisper.token_layers(model, context, [*TOKENS[:3], 8, 8, 8], 2)
    for a, b in zip(short.layers, long.layers, strict=True):
        assert distance(apply(a, short.state, context), apply(b, long.state, context)) == 0.0


def test_all_layers_share_one_trace(model, context):
    traces = []

    @jax.jit
    def image(layer, h, c):
        traces.append(layer)
        return layer(h, c)

    for position in (1, 3):
        chain = whisper.token_layers(model, context, TOKENS, position)
        for layer in chain.layers:
            image(layer, chain.state, chain.context)
    assert len(traces) == 1


def test_own_key_and_value_are_differentiated(model):
    # With no past the only weight is 1, so the sub-block is h + W_O (W_V LN(h) + b_V) + b_O.
    parameters = model.parameters["decoder"]["layers"][1]
    nothing = jnp.zeros((4, 4, 4))
    h = jax.random.normal(jax.random.key(5), (16,), "float64")
    norm = jax.jit(jax.jacfwd(lambda h: blocks.layer_norm(parameters["self_attn_layer_norm"], h)))(h)
    attention = parameters["self_attn"]
    expected = jnp.eye(16) + (norm.T @ attention["v_proj"]["kernel"] @ attention["out_proj"]["kernel"]).T
    found = jax.jit(jax.jacfwd(lambda h: blocks.self_attention(parameters, h, Cache(nothing, nothing, jnp.asarray(0)))))
    assert distance(found(h), expected) < 1e-13


def test_cache_beyond_its_length_is_not_seen(model, run):
    parameters = model.parameters["decoder"]["layers"][0]
    h, length = run.residual[0, 3], jnp.asarray(3)
    attention = jax.jit(blocks.self_attention)
    clean = attention(parameters, h, Cache(run.keys[0], run.values[0], length))
    dirty = attention(parameters, h, Cache(run.keys[0].at[3:].set(1e3), run.values[0].at[3:].set(1e3), length))
    assert distance(clean, dirty) == 0.0
    assert distance(clean, attention(parameters, h, Cache(run.keys[0], run.values[0], length - 1))) > 1e-6


@jax.jit
def derivative_errors(layer, h, c, h_directions, c_directions, w):
    """Compare jacfwd, jvp and vjp of a layer with each other and with central differences, relatively."""
    central = lambda f, d, step: (f(step * d) - f(-step * d)) / (2 * step)
    fourth = lambda f, d, step: (4 * central(f, d, step) - central(f, d, 2 * step)) / 3
    worst = lambda found, expected: jnp.abs(found - expected).max() / jnp.abs(expected).max()
    propagator = jax.jacfwd(layer)(h, c)
    back_h, back_c = jax.vjp(layer, h, c)[1](w)
    pushed = jax.lax.map(lambda d: jax.jvp(lambda c: layer(h, c), (c,), (d,))[1], c_directions)
    c_differences = jax.lax.map(lambda d: central(lambda e: layer(h, c + e), d, 1e-5), c_directions)
    h_differences = jax.vmap(lambda d: fourth(lambda e: layer(h + e, c), d, 1e-4))(h_directions)
    return {
        "propagator, differences": worst(h_differences, h_directions @ propagator.T),
        "propagator, vjp": worst(back_h, w @ propagator),
        "injection, differences": worst(c_differences, pushed),
        "injection, vjp": worst(jnp.einsum("nfd,fd->n", c_directions, back_c), pushed @ w),
    }


def directions(width, frames, n_h, n_c):
    keys = jax.random.split(jax.random.key(7), 3)
    shapes = ((n_h, width), (n_c, frames, width), (width,))
    return [jax.random.normal(key, shape, "float64") for key, shape in zip(keys, shapes, strict=True)]


def test_layer_derivatives_agree_with_differences(model, context):
    chain = whisper.token_layers(model, context, TOKENS, 3)
    h = chain.state
    for layer in chain.layers:
        errors = derivative_errors(layer, h, context, *directions(16, 7, 16, 4))
        assert max(map(float, errors.values())) < 1e-8, errors
        h = apply(layer, h, context)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"position": 5}, "position 5"),
        ({"position": -1}, "position -1"),
        ({"tokens": [9, 11], "position": 1}, "token 11"),
        ({"tokens": [1] * 13, "position": 12}, "position 12"),
        ({"encoder_output": jnp.zeros((6, 16))}, "encoder output"),
        ({"encoder_output": jnp.zeros((7, 16), "float32")}, "float32"),
        ({"granularity": "head"}, "granularity"),
    ],
)
def test_nonsense_is_refused(model, context, change, word):
    arguments = {"encoder_output": context, "tokens": TOKENS, "position": 0} | change
    with pytest.raises(InputError, match=word):
        whisper.token_layers(model, **arguments)


# The structured injection.


@pytest.fixture(scope="module")
def factors(model, context):
    return whisper.cross_factors(model, context, TOKENS, 3)


@pytest.fixture(scope="module")
def dense(model, context):
    """Return G of every cross-attention sub-block, (L, D, F, D), by reverse-mode differentiation."""
    chain = whisper.token_layers(model, context, TOKENS, 3, "sub-block")
    h, found = chain.state, []
    for name, layer in zip(chain.names, chain.layers, strict=True):
        if "cross" in name:
            found.append(by_context(layer, h, context))
        h = apply(layer, h, context)
    return jnp.stack(found)


def test_gram_of_every_pair_of_layers_is_exact(factors, dense):
    flat = dense.reshape(3, 16, -1)
    grams = whisper.injection_gram_pairs(factors)
    assert distance(grams, jnp.einsum("kif,ljf->klij", flat, flat)) < 1e-12
    assert distance(grams[0, 2], grams[2, 0].T) == 0.0


def test_gram_needs_every_term(factors, dense):
    flat = dense.reshape(3, 16, -1)
    one = jax.tree.map(lambda leaf: leaf[0], factors)
    for field in ("weights", "values", "output", "key", "value_map", "output_map"):
        bent = type(one)(**{name: getattr(one, name) * (1.01 if name == field else 1.0) for name in vars(one)})
        assert distance(whisper.injection_gram(bent, one), flat[0] @ flat[0].T) > 1e-6


def test_sum_over_frames_is_free(factors, dense):
    assert distance(whisper.injection_frame_sum(factors), dense.sum(2)) < 1e-13


def test_rows_of_the_injection(factors, dense):
    one = jax.tree.map(lambda leaf: leaf[1], factors)
    vectors = jax.random.normal(jax.random.key(9), (3, 16), "float64")
    assert distance(whisper.injection_rows(one, vectors), jnp.einsum("nx,xfd->nfd", vectors, dense[1])) < 1e-13


def test_block_injection_is_the_mlp_applied_to_the_cross_injection(model, context, dense):
    whole = whisper.token_layers(model, context, TOKENS, 3)
    parts = whisper.token_layers(model, context, TOKENS, 3, "sub-block")
    own, cross, mlp = parts.layers[:3]
    after = apply(cross, apply(own, whole.state, context), context)
    through = jax.jacfwd(lambda h: mlp(h, context))(after)
    assert (
        distance(by_context(whole.layers[0], whole.state, context), jnp.einsum("xy,yfd->xfd", through, dense[0]))
        < 1e-13
    )


# Real blocks.


@pytest.mark.exhaustive
def test_real_blocks_have_the_derivatives_that_differences_show(shared):
    """Every decoder block at three steps: W by jacfwd, G along 16 directions of the full context.

    `test_real_layers` asks the same of another recording.
    """
    model = whisper.load(shared / "models" / "whisper-tiny.en-digits", "float64")
    clip = shared / "data" / "fsdd" / "recordings" / "7_jackson_0.wav"
    context, _ = whisper.encode_audio(model, load_audio(clip)[0])
    sequence = [*model.generation.prompt, 7, 10]
    for position in (1, 2, 3):
        chain = whisper.token_layers(model, context, sequence, position)
        h = chain.state
        for layer in chain.layers:
            errors = derivative_errors(layer, h, context, *directions(384, 1500, 4, 16))
            assert max(map(float, errors.values())) < 1e-8, errors
            h = apply(layer, h, context)
