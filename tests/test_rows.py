"""Products with injections that are never formed, against forward mode that forms them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factored import PLACES, case, chains, rows
from mutation import mutant

from spectral_theorem.engine import injection_triplets
from spectral_theorem.whisper.rows import (
    context_basis,
    coordinates,
    injection_core,
    injection_gramian,
    pull_context,
    pull_row,
    push_context,
    push_row,
    value_gram,
)
from spectral_theorem.whisper.sensitivity import at_token, shared_and_own

PARTS = ("block", "cross-attention")
SHAPES = ("small", "one head", "many heads")
NEAR = {"rtol": 1e-11, "atol": 1e-12}


@functools.cache
def injections(shape, part):
    """Return G (L, T, D, F D) by forward mode."""
    granularity, every = ("block", slice(None)) if part == "block" else ("sub-block", slice(1, None, 3))
    return np.stack([np.asarray(chain.injections)[every] for chain in chains(shape, granularity)], axis=1)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_an_injection(shape, part):
    made, exact = case(shape), injections(shape, part)
    frames, width = made.context.shape
    x, y = rows(len(PLACES), 2, frames, width), rows(len(PLACES), 2, width, seed=6)
    flat = np.asarray(x).reshape(len(PLACES), 2, -1)
    for f, g in zip(made.factors, exact, strict=True):
        np.testing.assert_allclose(push_context(f, x, part), np.einsum("tdc,tbc->tbd", g, flat), **NEAR)
        pulled = np.asarray(pull_context(f, y, part)).reshape(len(PLACES), 2, -1)
        np.testing.assert_allclose(pulled, np.einsum("tdc,tbd->tbc", g, y), **NEAR)
        np.testing.assert_allclose(injection_gramian(f, y, part), np.einsum("tdc,tec,tbe->tbd", g, g, y), **NEAR)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_one_layer_through_the_injection_of_another(shape, part):
    made, exact = case(shape), injections(shape, part)
    y = rows(len(PLACES), 2, made.context.shape[1])
    for (f, g), (other, h) in itertools.product(zip(made.factors, exact, strict=True), repeat=2):
        found = push_row(f, other, pull_row(other, y, part), part)
        np.testing.assert_allclose(found, np.einsum("tdc,tec,tbe->tbd", g, h, y), **NEAR)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_short_coordinates_keep_inner_products_between_layers(shape, part):
    made, exact = case(shape), injections(shape, part)
    basis = context_basis(made.factors)
    frames, width = made.context.shape
    y = rows(len(PLACES), 3, width)
    short = [coordinates(basis, l, pull_row(f, y, part)) for l, f in enumerate(made.factors)]
    assert short[0].shape[2] <= len(made.factors) * made.factors[0].weights.shape[1] * (frames + width)
    full = [np.einsum("tdc,tbd->tbc", g, y) for g in exact]
    for (a, x), (b, z) in itertools.product(zip(short, full, strict=True), repeat=2):
        np.testing.assert_allclose(
            np.einsum("tbs,tcs->tbc", a, b), np.einsum("tbs,tcs->tbc", x, z), rtol=1e-10, atol=1e-11
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_gram_matrices_between_layers_and_exact_norms(shape):
    made, exact = case(shape), injections(shape, "cross-attention")
    split = [shared_and_own(f) for f in made.factors]
    for t in range(len(PLACES)):
        factors = [at_token(shared, jax.tree.map(lambda leaf, t=t: leaf[t], own)) for shared, own in split]
        for (k, a), (l, b) in itertools.product(enumerate(factors), repeat=2):
            after = [f.parameters["encoder_attn"]["out_proj"]["kernel"] for f in (a, b)]
            gram = after[0].T @ injection_core(a, b, value_gram(a, b)) @ after[1]
            np.testing.assert_allclose(gram, exact[k, t] @ exact[l, t].T, **NEAR)
            if k == l:
                assert abs(np.trace(gram) - np.sum(exact[k, t] ** 2)) < 1e-11 * np.trace(gram)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_leading_triplets_of_an_injection(shape, part):
    made, exact = case(shape), injections(shape, part)
    for f, g in zip(made.factors, exact, strict=True):
        found = injection_triplets(f, part)
        u, sigma, vt = np.linalg.svd(g, full_matrices=False)
        assert found.converged.all()
        np.testing.assert_allclose(jnp.sqrt(found.value[:, :2]), sigma[:, :2], rtol=1e-11)
        overlap = np.abs(np.einsum("td,td->t", found.vector[:, 0], u[:, :, 0]))
        np.testing.assert_allclose(overlap, 1, atol=1e-10)
        right = np.asarray(pull_context(f, found.vector[:, :1], part)).reshape(len(PLACES), -1) / sigma[:, :1]
        np.testing.assert_allclose(np.abs(np.einsum("tc,tc->t", right, vt[:, 0])), 1, atol=1e-10)


@jax.jit
def widened_injection(layer, h, c):
    """Return G (D, F D) in float64, of float32 numbers."""
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == np.float32 else leaf, tree)
    return jax.jacfwd(wide(layer), 1)(wide(h), wide(c)).reshape(h.size, -1)


_apply = jax.jit(lambda layer, h, c: layer(h, c))


def widened_injections(made, place, part):
    """Return G (L, D, F D) of the layers that have one."""
    tokens = made.layers(place, "block" if part == "block" else "sub-block")
    h, found = tokens.state, []
    for l, layer in enumerate(tokens.layers):
        if part == "block" or l % 3 == 1:
            found.append(np.asarray(widened_injection(layer, h, tokens.context)))
        h = _apply(layer, h, tokens.context)
    return np.stack(found)


@pytest.mark.parametrize("part", PARTS)
def test_float32(part):
    made = case("small", "float32")
    exact = np.stack([widened_injections(made, place, part) for place in PLACES], axis=1)
    y = rows(3, 2, 12, dtype="float32")
    basis = context_basis(made.factors)
    for l, (f, g) in enumerate(zip(made.factors, exact, strict=True)):
        scale = np.linalg.norm(g, axis=(1, 2)).max()
        full = np.einsum("tdc,tbd->tbc", g, y)
        found = pull_row(f, y, part)
        short = coordinates(basis, l, found)
        assert short.dtype == found.vectors.dtype == np.float32
        pulled = np.asarray(pull_context(f, y, part)).reshape(full.shape)
        assert np.abs(pulled - full).max() < 1e-5 * scale
        gap = np.linalg.norm(short, axis=2) - np.linalg.norm(full, axis=2)
        assert np.abs(gap).max() < 1e-5 * scale
        gram = np.einsum("tdc,tec,tbe->tbd", g, g, y)
        assert np.abs(injection_gramian(f, y, part) - gram).max() < 1e-5 * scale**2


# seeded errors ---------------------------------------------------------------------------------------------------

FIRST = '_sum("thi,tbhd->tbid", basis.along[:, layer], row.vectors) + _sum("tbhi,thd->tbid", inside, key)'
VALUES = '_sum("tbhf,fhi->tbhi", weighted, f.values)'
WHOLE = "return jnp.concatenate([flat(first), flat(second)], axis=-1)"
CROSSED = '_sum("tbgh,thf->tbgf", crossed, other.weights)'
KEYS = "core += product(left.key[0], right.key[0].T)"
TERM = "core += jnp.moveaxis(met(q, y), 0, -1)"
MUTANTS = {
    "coordinates without the keys' share": (FIRST, FIRST.partition(" + ")[0]),
    "coordinates without what no weight sees": (WHOLE, "return flat(first)"),
    "coordinates of the first layer": ("basis.along[:, layer]", "basis.along[:, 0]"),
    "keys of the first layer": ("theta = basis.keys_along[:, layer]", "theta = basis.keys_along[:, 0]"),
    "rows without centring": (' - _sum("tbhi,thi->tbh", z, f.output)[..., None]', ""),
    "products without centring": ("out = out - weighted.sum(-1)[..., None] * f.output[:, None]", "pass"),
    "products without the spread": (VALUES, f"0 * {VALUES}"),
    "rows without the MLP": ('pull(f, y, "MLP") if part == "block" else y', "y"),
    "products without the MLP": ('push(f, y, "MLP") if part == "block" else y', "y"),
    "no inner products of keys": (CROSSED, "0 * row.numbers"),
    "weights for other weights": (CROSSED, CROSSED.replace("other", "f")),
    "Gram without the keys' share": (KEYS, KEYS.replace("+= ", "+= 0 * ")),
    "Gram with one cross term": (TERM, TERM.replace("+= ", "+= 0 * ")),
    "Gram with keys swapped": ("right.key[0])[..., None]", "left.key[0])[..., None]"),
}


def errors(load):
    """Return the largest error of coordinates, products and Gram matrices against forward mode."""
    made, module = case("small"), load("whisper.rows")
    basis = module.context_basis(made.factors)
    y, found = rows(3, 2, 12), []
    split = [shared_and_own(f) for f in made.factors]
    one = [at_token(shared, jax.tree.map(lambda leaf: leaf[1], own)) for shared, own in split]
    for part in PARTS:
        exact = injections("small", part)
        full = [np.einsum("tdc,tbd->tbc", g, y) for g in exact]
        pulled = [module.pull_row(f, y, part) for f in made.factors]
        short = [module.coordinates(basis, l, row) for l, row in enumerate(pulled)]
        for k, l in itertools.product(range(3), repeat=2):
            gram = np.einsum("tbs,tcs->tbc", full[k], full[l])
            found.append(np.abs(np.einsum("tbs,tcs->tbc", short[k], short[l]) - gram).max())
            pushed = module.push_row(made.factors[k], made.factors[l], pulled[l], part)
            found.append(np.abs(pushed - np.einsum("tdc,tbc->tbd", exact[k], full[l])).max())
            if part == "cross-attention":
                after = [one[i].parameters["encoder_attn"]["out_proj"]["kernel"] for i in (k, l)]
                core = module.injection_core(one[k], one[l], module.value_gram(one[k], one[l]))
                found.append(np.abs(after[0].T @ core @ after[1] - exact[k, 1] @ exact[l, 1].T).max())
    return max(found)


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name):
    with mutant("whisper.rows", *MUTANTS[name]) as load, jax.disable_jit():
        assert errors(load) > 1e-6


def test_nothing_is_said_against_the_package_itself():
    with mutant("whisper.rows", "import jax\n", "import jax\n") as load, jax.disable_jit():
        assert errors(load) < 1e-10
