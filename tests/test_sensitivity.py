"""Factors of decoder blocks: their products are the Jacobians of the model's own layers."""

import functools

import factored
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factored import PLACES, case, rows
from mutation import mutant

from spectral_theorem import carried, whisper
from spectral_theorem.types import InputError
from spectral_theorem.whisper import token_factors
from spectral_theorem.whisper.jacobians import token_jacobians
from spectral_theorem.whisper.sensitivity import PARTS, propagators, pull, push

LIMIT = {"float64": 1e-12, "float32": 2e-6}


@jax.jit
def jacobian(layer, h, c):
    return jax.jacfwd(layer)(h, c), layer(h, c)


_apply = jax.jit(lambda layer, h, c: layer(h, c))


def references(made, place, granularity, change=lambda tree: tree):
    """Return the Jacobians (L, D, D) of the model's layers at one place."""
    tokens = made.layers(place, granularity)
    h, found = tokens.state, []
    for layer in tokens.layers:
        w, _ = jacobian(*change((layer, h, tokens.context)))
        h = _apply(layer, h, tokens.context)
        found.append(w)
    return np.stack(found), h


@functools.cache
def reference(shape, dtype, place, granularity):
    return references(case(shape, dtype), place, granularity)


def worst(a, b):
    """Return the largest error relative to the largest entry."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() / np.abs(b).max())


SHAPES = ("small", "one head", "many heads", "one layer")


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_products_are_the_derivative_of_the_layers(shape, dtype):
    made = case(shape, dtype)
    parts = [(f, part) for f in made.factors for part in PARTS]
    blocks = np.stack([propagators(f) for f in made.factors], axis=1)  # (T, L, D, D)
    pieces = np.stack([propagators(f, part) for f, part in parts], axis=1)
    assert blocks.dtype == pieces.dtype == dtype
    for t, place in enumerate(PLACES):
        exact, h = reference(shape, dtype, place, "block")
        for l in range(len(exact)):
            assert worst(blocks[t, l], exact[l]) <= LIMIT[dtype]
        exact, _ = reference(shape, dtype, place, "sub-block")
        for l in range(len(exact)):
            assert worst(pieces[t, l], exact[l]) <= LIMIT[dtype], parts[l][1]
        assert worst(made.factors[-1].state[t], h) <= 10 * LIMIT[dtype]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("part", ["block", *PARTS])
def test_push_and_pull_are_products_with_it(part, dtype):
    made = case("small", dtype)
    for f in made.factors:
        w, x, y = propagators(f, part), rows(3, 4, 12, dtype=dtype), rows(3, 4, 12, seed=6, dtype=dtype)
        pushed, pulled = push(f, x, part), pull(f, y, part)
        assert pushed.dtype == pulled.dtype == dtype
        assert worst(pushed, jnp.einsum("tij,tbj->tbi", w, x)) <= 3 * LIMIT[dtype]
        assert worst(pulled, jnp.einsum("tij,tbi->tbj", w, y)) <= 3 * LIMIT[dtype]
        # the two are transposes whatever the dense product says
        inner = jnp.einsum("tbi,tbi->tb", pushed, y) - jnp.einsum("tbi,tbi->tb", x, pulled)
        assert np.abs(inner).max() <= 100 * LIMIT[dtype]


@pytest.mark.parametrize("granularity", ["block", "sub-block"])
@pytest.mark.parametrize("dtype", LIMIT)
def test_three_ways_to_write_it_down(dtype, granularity):
    made = case("small", dtype)
    ways = [
        token_jacobians(made.model, made.context, made.tokens, PLACES, granularity, method)
        for method in ("jacfwd", "linearize", "factors")
    ]
    for t, place in enumerate(PLACES):
        exact, _ = reference("small", dtype, place, granularity)
        for way in ways:
            assert max(worst(way[l, t], exact[l]) for l in range(len(exact))) <= LIMIT[dtype]


def test_one_token_and_many_in_any_order():
    made = case("small")
    together = {place: [propagators(f)[t] for f in made.factors] for t, place in enumerate(PLACES)}
    for places in ((5,), (3, 0, 5, 3)):
        factors = token_factors(made.model, made.context, made.tokens, places)
        for l, f in enumerate(factors):
            for t, place in enumerate(places):
                assert worst(propagators(f)[t], together[place][l]) < 1e-14


def test_later_tokens_and_those_before_them_do_not_matter_to_the_first():
    made, other = case("small"), (4, 5, 5, 5, 5, 5)
    alone = token_factors(made.model, made.context, other[:1], [0])
    among = token_factors(made.model, made.context, other, [0, 5])
    for a, b, c in zip(alone, among, made.factors, strict=True):
        np.testing.assert_allclose(propagators(a)[0], propagators(b)[0], atol=1e-13)
        np.testing.assert_allclose(propagators(a)[0], propagators(c)[0], atol=1e-13)
        assert worst(propagators(b)[1], propagators(c)[2]) > 1e-3


@pytest.mark.parametrize(
    ("places", "message"),
    [([], "no positions"), ([-1], "position -1"), ([0, 6], "position 6"), ([6, 0], "position 6")],
)
def test_places_outside_the_sequence_are_refused(places, message):
    made = case("small")
    with pytest.raises(InputError, match=message):
        token_factors(made.model, made.context, made.tokens, places)
    with pytest.raises(InputError):
        token_jacobians(made.model, made.context, made.tokens, places, method="jacfwd")


# real blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", ["carried", pytest.param("whisper-tiny.en-digits", marks=pytest.mark.exhaustive)])
def test_trained_blocks(request, name, dtype):
    if name == "carried":
        folder, clip, said = carried.MODEL, carried.CLIPS / "two-seven.flac", "two seven"
    else:
        shared = request.getfixturevalue("shared")
        folder, said = shared / "models" / name, "seven"
        clip = shared / "data" / "fsdd" / "recordings" / "7_jackson_0.wav"
    model = whisper.load(folder, jnp.dtype(dtype))
    context, _ = whisper.encode_audio(model, clip)
    transcript = whisper.transcriptions(model, whisper.greedy(model, context[None]), [1.0])[0]
    assert transcript.text == said
    places = [transcript.position(step) for step in (0, transcript.steps - 1)]
    made = factored.Case(
        model, context, transcript.sequence, places, token_factors(model, context, transcript.sequence, places)
    )
    for granularity, parts in (("block", ("block",)), ("sub-block", PARTS)):
        # the derivative of the same numbers in float64: forward mode in float32 is itself off by up to 5e-6
        exact, _ = references(made, places[-1], granularity, widened)
        found = [np.asarray(propagators(f, part)[-1]) for f in made.factors for part in parts]
        errors = [worst(a, b) for a, b in zip(found, exact, strict=True)]
        assert max(errors) <= LIMIT[dtype], errors


def widened(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, tree)


# seeded errors ---------------------------------------------------------------------------------------------------

CORRECTED = "x.mean(-1, keepdims=True) - norm.unit[:, None] * along) * norm.scale"
BACK = "return y - y.mean(-1, keepdims=True) - norm.unit[:, None] * along"
DENSE = "return m - m.mean(0) - unit[:, None] * (_matmul(unit, m) / unit.shape[0])"
SEEN = "jnp.arange(own_k.shape[0]) <= until[:, None]"
PUSHED = '_sum("thij,tbhj->tbhi", attention.mixing, q)'
TURNED = '_sum("thji,tbhj->tbhi", attention.turned, q)'
PULLED = '_sum("thij,tbhi->tbhj", attention.mixing, z)'
OWN_KEY = 'out = out + _sum("thd,tbd->tbh", a.key, y)[..., None] * a.spread[:, None]'
BACK_KEY = 'back = back + _sum("tbh,thd->tbd", _sum("thi,tbhi->tbh", a.spread, z), a.key)'
SLOPE = '_after(p["fc1"], y) * f.slope'
QUERY = '_heads(_after(p["q_proj"], y), a) * _query_scale(a)'
MUTANTS = {
    "values are not centred": ("own_v - own_out[:, None], own_k", "own_v + 0 * own_out[:, None], own_k"),
    "cross values are not centred": ("(v - token[1][:, None])", "(v + 0 * token[1][:, None])"),
    "later tokens are seen": (SEEN, SEEN + " + 1"),
    "the token itself is not seen": (SEEN, f"({SEEN.replace('<=', '<')}) | (jnp.arange(own_k.shape[0]) == 0)"),
    "LayerNorm without its correction, forward": (CORRECTED, CORRECTED.replace("- norm.unit", "- 0 * norm.unit")),
    "LayerNorm without its correction, backward": (BACK, "return y - y.mean(-1, keepdims=True)"),
    "LayerNorm without its correction, dense": (DENSE, "return m - m.mean(0)"),
    "LayerNorm without its mean, dense": (DENSE, DENSE.replace("m - m.mean(0)", "m")),
    "mixing transposed, forward": (PUSHED, PUSHED.replace("thij", "thji")),
    "mixing transposed, turned": (TURNED, TURNED.replace("thji", "thij")),
    "mixing transposed, backward": (PULLED, PULLED.replace("thij", "thji")),
    "own weight forgotten, forward": ("+ v * a.weight[:, None, :, None]", "+ 0 * v"),
    "own weight forgotten, backward": ("v = z * a.weight[:, None, :, None]", "v = 0 * z"),
    "own weight forgotten, dense": ("+ v * a.weight[0][:, None]", "+ 0 * v"),
    "own key forgotten, forward": (OWN_KEY, "pass"),
    "own key forgotten, backward": (BACK_KEY, "pass"),
    "own key forgotten, dense": ("inner = inner + a.key[0].T[..., None] * a.spread[0]", "pass"),
    "nothing passes by cross-attention, dense": ("crossed = after +", "crossed = 0 * after +"),
    "query not scaled": (QUERY, QUERY.removesuffix(" * _query_scale(a)")),
    "parts in the wrong order": ("for name in reversed(PARTS) if part", "for name in PARTS if part"),
    "slope of the first token": (SLOPE + "[:, None]", SLOPE + "[:1, None]"),
}
ABOUT_FACTORS = [*MUTANTS][:4]


def errors(load):
    """Return the largest error of dense products, of push and of pull, against the model's own derivative."""
    made, module = case("small"), load("whisper.sensitivity")
    factors = module.token_factors(made.model, made.context, made.tokens, PLACES)
    x = rows(3, 2, 12)
    found = []
    for part in ("block", *PARTS):
        granularity, step = ("block", 1) if part == "block" else ("sub-block", 3)
        first = 0 if part == "block" else PARTS.index(part)
        for l, f in enumerate(factors):
            w = np.stack([reference("small", "float64", p, granularity)[0][first + step * l] for p in PLACES])
            dense = [module.transposed_propagator(module.at_token(s, o), part).T for s, o in _each(module, f)]
            found.append(worst(np.stack(dense), w))
            for ready in (f, module.with_rows_in_mind(f)):
                found.append(worst(module.push(ready, x, part), np.einsum("tij,tbj->tbi", w, x)))
            found.append(worst(module.pull(f, x, part), np.einsum("tij,tbi->tbj", w, x)))
    return max(found)


def _each(module, f):
    shared, own = module.shared_and_own(f)
    return [(shared, jax.tree.map(lambda leaf, t=t: leaf[t], own)) for t in range(len(PLACES))]


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught(name):
    home = "tokenfactors" if name in ABOUT_FACTORS else "sensitivity"
    with mutant(f"whisper.{home}", *MUTANTS[name]) as load, jax.disable_jit():
        assert errors(load) > 1e-6


def test_nothing_is_said_against_the_package_itself():
    with mutant("whisper.sensitivity", "import functools\n", "import functools\n") as load, jax.disable_jit():
        assert errors(load) < 1e-12
