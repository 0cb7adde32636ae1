"""Nulls keep what they say and lose the rest; gains agree with NumPy; responses are the trajectory itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from makers import frames, unit

from spectral_theorem import InputError, LayerChain
from spectral_theorem.chaingains import chain_gains
from spectral_theorem.nulls import NULLS, conjugated, rotated, shuffled
from spectral_theorem.responses import responses

DEPTH, WIDTH = 4, 12


def aligned_chain(seed=0):
    """Layers whose leading directions meet exactly, with a gap: all that nulls should destroy."""
    rng = np.random.default_rng(seed)
    turns = frames(rng, DEPTH + 1, WIDTH, WIDTH)
    values = np.concatenate([[3.0], np.linspace(1.0, 0.2, WIDTH - 1)])
    w = turns[1:] * values @ np.swapaxes(turns[:-1], 1, 2)
    return LayerChain(jnp.asarray(w), jnp.asarray(rng.normal(size=(DEPTH, WIDTH, 3))))


@pytest.mark.parametrize("name", NULLS)
def test_a_null_keeps_singular_values_and_the_size_of_injections(name):
    chain = aligned_chain()
    null = NULLS[name](jax.random.key(1), chain)
    values = lambda c: np.sort(np.linalg.svd(np.asarray(c.propagators), compute_uv=False), axis=0)
    np.testing.assert_allclose(values(null), values(chain), atol=1e-12)
    sizes = lambda c: np.sort(np.linalg.norm(np.asarray(c.injections), axis=(1, 2)))
    np.testing.assert_allclose(sizes(null), sizes(chain), atol=1e-12)
    assert not np.allclose(null.propagators, chain.propagators)


def test_rotations_bring_alignment_to_chance_and_conjugation_keeps_the_identity():
    chain = aligned_chain()
    assert float(chain_gains(chain).kappa_abs.min()) > 1 - 1e-12
    keys = jax.random.split(jax.random.key(0), 32)
    for null in (rotated, conjugated):
        squares = [np.mean(np.asarray(chain_gains(null(key, chain)).kappa_abs) ** 2) for key in keys]
        error = np.std(squares) / np.sqrt(len(squares))
        assert abs(np.mean(squares) - 1 / WIDTH) < 4 * error
    eye = LayerChain(jnp.broadcast_to(jnp.eye(WIDTH), (DEPTH, WIDTH, WIDTH)))
    np.testing.assert_allclose(conjugated(keys[0], eye).propagators, eye.propagators, atol=1e-12)
    assert not np.allclose(rotated(keys[0], eye).propagators, eye.propagators)


def test_shuffling_never_gives_the_old_order_and_needs_two_layers():
    chain = LayerChain(jnp.arange(2.0)[:, None, None] * jnp.eye(2))
    for number in range(8):
        assert shuffled(jax.random.key(number), chain).propagators[:, 0, 0].tolist() == [1.0, 0.0]
    with pytest.raises(InputError, match="one layer to shuffle"):
        shuffled(jax.random.key(0), LayerChain(jnp.eye(2)[None]))


def test_gains_of_products_agree_with_numpy():
    chain = aligned_chain(3)
    turned = rotated(jax.random.key(5), chain)
    found = chain_gains(turned)
    w = np.asarray(turned.propagators)
    product, logs = np.eye(WIDTH), []
    for one in w[::-1]:
        product = product @ one
        logs.append(np.log(np.linalg.norm(product, 2)))
    np.testing.assert_allclose(found.log_norm, logs[::-1], atol=1e-12)
    u, s, vt = np.linalg.svd(w)
    lam = np.log(s[:-1, 0] * np.abs(np.einsum("ld,ld->l", vt[1:, 0], u[:-1, :, 0])))
    np.testing.assert_allclose(found.lam, lam, atol=1e-10)
    np.testing.assert_allclose(found.log_dominant[0], lam.sum() + np.log(s[-1, 0]), atol=1e-10)
    assert np.all(np.asarray(found.log_norm) <= np.asarray(found.log_aligned) + 1e-12)


def _saturating(w, h, c):
    return jnp.tanh(w @ h + c)


def test_responses_are_linear_when_small_and_follow_the_trajectory_when_large():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(3, WIDTH, WIDTH)) / np.sqrt(WIDTH))
    layers = [jax.tree_util.Partial(_saturating, one) for one in w]
    h, c = jnp.asarray(rng.normal(size=WIDTH)), jnp.asarray(rng.normal(size=WIDTH))
    towards, axes = rng.normal(size=(3, WIDTH)), unit(rng.normal(size=(2, WIDTH)))
    for of_context in (False, True):
        found = responses(layers, h, c, directions=towards, sizes=[1e-5, 2.0], axes=axes, of_context=of_context)
        assert found.nonlinearity[0].max() < 1e-4 < 0.05 < found.nonlinearity[1].min()
        base = np.asarray(c if of_context else h)
        for i, size in enumerate(found.sizes):
            for j, direction in enumerate(towards):
                move = size * direction / np.linalg.norm(direction) * np.linalg.norm(base)
                ends = []
                for shift in (0.0, move):
                    x, context = np.asarray(h), np.asarray(c)
                    x, context = (x, context + shift) if of_context else (x + shift, context)
                    for one in np.asarray(w):
                        x = np.tanh(one @ x + context)
                    ends.append(x)
                change = ends[1] - ends[0]
                cosine = np.abs(axes @ change) / np.linalg.norm(change)
                np.testing.assert_allclose(found.cosine[i, j], cosine, atol=1e-5)
                np.testing.assert_allclose(found.log_size[i, j, -1], np.log(np.linalg.norm(change)), atol=1e-5)


def test_responses_of_a_rank_one_layer_lie_on_one_line_and_those_of_an_orthogonal_one_do_not():
    rng = np.random.default_rng(1)
    directions = np.eye(WIDTH)[:4]
    u = unit(rng.normal(size=WIDTH))
    linear = lambda w: [jax.tree_util.Partial(lambda w, h, c: w @ h, jnp.asarray(w))]
    ask = lambda w: responses(
        linear(w), jnp.ones(WIDTH), jnp.zeros(1), directions=directions, sizes=[0.1], axes=u[None]
    )
    line, spread = ask(np.outer(u, rng.normal(size=WIDTH))), ask(frames(rng, WIDTH, WIDTH))
    assert abs(line.dimensions[0] - 1) < 1e-9 and line.cosine.min() > 1 - 1e-9 and line.agreement[0] > 1 - 1e-9
    assert abs(spread.dimensions[0] - 4) < 1e-9 and spread.agreement[0] < 1e-9


def test_bad_perturbations_are_refused():
    layers, one = [jax.tree_util.Partial(_saturating, jnp.eye(2))], jnp.ones(2)
    with pytest.raises(InputError, match="directions of shape"):
        responses(layers, one, one, directions=np.ones((1, 3)), sizes=[0.1], axes=np.eye(2))
    with pytest.raises(InputError, match="positive numbers"):
        responses(layers, one, one, directions=np.ones((1, 2)), sizes=[0.0], axes=np.eye(2))
    still = responses(
        [jax.tree_util.Partial(lambda h, c: 0 * h)], one, one, directions=np.eye(2), sizes=[0.1], axes=np.eye(2)
    )
    assert np.isnan(still.cosine).all() and np.isneginf(still.log_size[0, :, -1]).all()
