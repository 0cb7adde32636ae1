"""Real decoder blocks in float64: forward mode, operators and finite differences are one derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import spectral_theorem as st
from spectral_theorem import whisper
from spectral_theorem.krylov import leading_triplets

DIRECTIONS = 16
STEPS = (0, 2, 4)


def along(layer, context, directions, h, t):
    """Move the encoder output along the directions: a context of DIRECTIONS numbers."""
    return layer(h, context + jnp.tensordot(t, directions, 1))


def central(f, step):
    """Fourth-order central difference of a function of a step size."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


@jax.jit
def differences_by_state(layer, h, c, directions):
    return jax.vmap(lambda x: central(lambda t: layer(h + t * x, c), 1e-4))(directions)


@jax.jit
def differences_by_context(layer, h, c, directions):
    return jax.lax.map(lambda y: central(lambda t: layer(h, c + t * y), 1e-3), directions)


@jax.jit
def jacobian(layer, h, c):
    return jax.jacfwd(layer)(h, c)


def worst(a, b):
    """Return the largest relative error over rows, in norm."""
    return float(jnp.max(jnp.linalg.norm(a - b, axis=-1) / jnp.linalg.norm(b, axis=-1)))


@pytest.fixture(scope="module")
def clip(shared):
    model = whisper.load(shared / "models" / "whisper-tiny.en-digits", jnp.float64)
    context, _ = whisper.encode_audio(model, shared / "data" / "speech" / "jfk.flac")
    transcript = whisper.transcriptions(model, whisper.greedy(model, context[None]), [11.0])[0]
    assert transcript.steps > max(STEPS)
    return model, context, transcript


@pytest.fixture(scope="module", params=STEPS, ids=lambda step: f"step {step}")
def step(clip, request):
    model, context, transcript = clip
    tokens = whisper.token_layers(model, context, transcript.sequence, transcript.position(request.param))
    return tokens, st.operators(tokens.layers, tokens.state, tokens.context)


@pytest.fixture(scope="module")
def directions(clip):
    rng = np.random.default_rng(8)
    return jnp.asarray(rng.normal(size=(DIRECTIONS, *clip[1].shape)))


def test_derivatives_by_the_state(step):
    tokens, chain = step
    rng = np.random.default_rng(9)
    x = jnp.asarray(rng.normal(size=(DIRECTIONS, chain.width)))
    dense = chain.propagators()
    assert chain.depth == len(tokens.layers) == 4
    for l, layer in enumerate(tokens.layers):
        w = jacobian(layer, chain.states[l], tokens.context)
        assert worst(dense[l], w) < 1e-13
        differences = differences_by_state(layer, chain.states[l], tokens.context, x)
        assert worst(x @ w.T, differences) < 1e-8
        assert worst(x @ dense[(l + 1) % 4].T, differences) > 1e-2  # another block's Jacobian is noticed
    rows = jnp.broadcast_to(x, (4, *x.shape))
    assert worst(chain.matvec(rows), jnp.einsum("lij,lbj->lbi", dense, rows)) < 1e-13
    assert worst(chain.rmatvec(rows), jnp.einsum("lij,lbi->lbj", dense, rows)) < 1e-13


@pytest.mark.slow
def test_derivatives_by_the_encoder_output(step, directions):
    tokens, chain = step
    moved = [Partial(along, layer, tokens.context, directions) for layer in tokens.layers]
    projected = st.linearize(moved, tokens.state, jnp.zeros(DIRECTIONS))
    forward = jnp.swapaxes(projected.injections, 1, 2)  # (L, directions, D)
    flat = directions.reshape(DIRECTIONS, -1)
    pushed = chain.injection_matvec(jnp.broadcast_to(flat, (4, *flat.shape)))
    assert worst(pushed, forward) < 1e-12
    for l, layer in enumerate(tokens.layers):
        differences = differences_by_context(layer, chain.states[l], tokens.context, directions)
        assert worst(forward[l], differences) < 1e-8
        assert worst(forward[(l + 1) % 4], differences) > 1e-2
    y = jnp.asarray(np.random.default_rng(10).normal(size=(4, chain.width)))
    pulled = chain.injection_rmatvec(y) @ flat.T  # (L, directions)
    assert worst(pulled, jnp.einsum("ld,lbd->lb", y, forward)) < 1e-11
    assert worst(chain.vt_g(y) @ flat.T, jnp.einsum("ld,lbd->lb", y[1:], forward[:-1])) < 1e-11
    assert worst(projected.propagators.reshape(4, -1), chain.propagators().reshape(4, -1)) < 1e-13


@pytest.mark.slow
def test_krylov_triplets_of_real_blocks(clip):
    model, context, transcript = clip
    tokens = whisper.token_layers(model, context, transcript.sequence, transcript.position(1))
    chain = st.operators(tokens.layers, tokens.state, tokens.context)
    found = leading_triplets(
        chain.matvec, chain.rmatvec, depth=4, width=chain.width, dtype=chain.dtype, key=jax.random.key(0)
    )
    sigma = jnp.linalg.svd(chain.propagators(), compute_uv=False)[:, :3]
    assert found.converged.all() and float(jnp.max(jnp.abs(found.sigma - sigma) / sigma[:, :1])) < 1e-12
