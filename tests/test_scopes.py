"""Token scope beside sequence scope: the comparison against dense Jacobians, and where they must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import carried, scopes, whisper
from spectral_theorem.audio import concatenate, load_audio
from spectral_theorem.scopes import _ratio
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Dims

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


@pytest.fixture(scope="module")
def model():
    return whisper.random_model(jax.random.key(1), DIMS, dtype="float64")


@pytest.fixture(scope="module")
def context(model):
    return model.encode(jax.random.normal(jax.random.key(2), (8, 14), "float64"))


def compare(model, context, position, **options):
    asked = {"tokens": TOKENS, "position": position} | options
    return st.compare_scopes(jax.random.key(0), model=model, encoder_output=context, **asked)


def distance(x, y):
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())


@pytest.fixture(scope="module", params=["block", pytest.param("sub-block", marks=pytest.mark.exhaustive)])
def dense(model, context, request):
    """Return both chains as arrays, by forward differentiation."""
    position, granularity = 3, request.param
    whole = whisper.sequence_layers(model, context, TOKENS[: position + 1], granularity)
    token = whisper.token_layers(model, context, TOKENS, position, granularity)
    chains = [st.linearize(x.layers, x.state, x.context) for x in (whole, token)]
    return (*chains, compare(model, context, position, granularity=granularity, probes=16))


def test_every_number_against_dense_jacobians(dense):
    whole, token, found = dense
    w, at = np.asarray(whole.propagators), slice(48, 64)
    assert distance(found.token.sigma, np.linalg.svd(token.propagators, compute_uv=False)[:, :2]) < 1e-12
    assert distance(found.sequence.sigma, np.linalg.svd(w, compute_uv=False)[:, :2]) < 1e-10
    rows, mine = w[:, at], w[:, at, at]
    square = lambda x: np.sum(x**2, axis=(1, 2))
    assert distance(found.own_share, square(mine) / square(rows)) < 1e-12
    added = square(mine - np.eye(16))
    assert distance(found.branch_share, added / (added + square(rows) - square(mine))) < 1e-12
    norm = np.sqrt(square(w))
    assert ((found.whole_norm.lower <= norm) & (norm <= found.whole_norm.upper)).all()
    assert distance(found.whole_share, square(mine) / np.asarray(found.whole_norm.norm) ** 2) < 1e-12
    assert float(found.block_check.max()) < 1e-13


def test_the_cost_of_freezing_is_exact_with_all_directions(dense):
    whole, token, found = dense
    total = np.asarray(st.context_jacobian(whole))[48:64]
    frozen = np.asarray(st.context_jacobian(token))
    assert abs(found.frozen_error - np.linalg.norm(total - frozen) / np.linalg.norm(total)) < 1e-12
    assert found.frozen_error_se == 0 and found.probes == 16
    assert found.frozen_error > 1e-2


def test_the_cost_does_not_depend_on_granularity(model, context):
    a, b = (compare(model, context, 3, granularity=g, probes=16).frozen_error for g in ("block", "sub-block"))
    assert abs(a - b) < 1e-12


def test_without_a_past_both_scopes_are_one(model, context):
    found = compare(model, context, 0)
    assert found.frozen_error < 1e-14
    assert distance(found.own_share, 1) == distance(found.branch_share, 1) == 0
    assert distance(found.token.sigma, found.sequence.sigma) < 1e-12
    assert distance(abs(found.token.kappa), abs(found.sequence.kappa)) < 1e-9


def test_directions_are_taken_in_parts(model, context, monkeypatch):
    whole = compare(model, context, 3)
    monkeypatch.setattr(scopes, "_DIRECTIONS_AT_ONCE", 5)
    assert abs(compare(model, context, 3).frozen_error - whole.frozen_error) < 1e-13


def test_fewer_directions_come_with_an_honest_error(model, context):
    exact = compare(model, context, 3, probes=16).frozen_error
    ask = lambda key: st.compare_scopes(
        jax.random.key(key), model=model, encoder_output=context, tokens=TOKENS, position=3, probes=6
    )
    found = [ask(key) for key in range(8)]
    misses = [abs(one.frozen_error - exact) / one.frozen_error_se for one in found]
    assert all(one.probes == 6 and one.frozen_error_se > 0 for one in found)
    assert sum(miss < 3 for miss in misses) >= 7 and max(misses) > 1e-3


def test_jackknife_of_a_mean_is_the_standard_error():
    above = np.random.default_rng(0).uniform(1, 2, 40)
    value, spread = _ratio(above, np.full(40, 1e6))  # the root of a mean, whose error is half the relative one
    assert abs(value**2 - above.mean() / 1e6) < 1e-18
    assert abs(spread / value - 0.5 * above.std(ddof=1) / np.sqrt(40) / above.mean()) < 1e-4


def test_table_has_a_line_per_layer(dense):
    found = dense[2]
    lines = found.table().splitlines()
    assert len(lines) == len(found.names) + 2
    assert f"{float(found.sequence.sigma[0, 0]):.4f}" in lines[1] and f"{found.frozen_error:.4f}" in lines[-1]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"probes": 1}, "probes=1"), ({"position": 9}, "position 9"), ({"granularity": "head"}, "granularity")],
)
def test_nonsense_is_refused(model, context, change, word):
    with pytest.raises(InputError, match=word):
        compare(model, context, **({"position": 1} | change))


@pytest.mark.parametrize("name", ["carried", pytest.param("whisper-tiny.en-digits", marks=pytest.mark.exhaustive)])
def test_trained_layers(request, name):
    """On a trained decoder the token's own block is token scope to rounding, and the frozen past is felt."""
    if name == "carried":
        model, (sound, _) = whisper.load(carried.MODEL, jnp.float64), load_audio(carried.CLIPS / "two-seven.flac")
    else:
        shared = request.getfixturevalue("shared")
        model = whisper.load(shared / "models" / name, jnp.float64)
        recordings = shared / "data" / "fsdd" / "recordings"
        sound = concatenate([load_audio(recordings / f"{n}.wav")[0] for n in ("7_jackson_0", "1_george_0")], 0.1)
    context, seconds = whisper.encode_audio(model, sound)
    transcript = whisper.transcriptions(model, whisper.greedy(model, context[None]), [seconds])[0]
    found = st.compare_scopes(
        jax.random.key(0),
        model=model,
        encoder_output=context,
        tokens=transcript.sequence,
        position=transcript.position(1),
        probes=8,
    )
    assert float(found.block_check.max()) < 1e-12
    assert bool(found.sequence.resolved.all())
    assert 0.01 < found.frozen_error < 2
    assert (found.sequence.sigma[:, 0] >= found.token.sigma[:, 0] * (1 - 1e-12)).all()  # a block of W is no larger
