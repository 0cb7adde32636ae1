"""A clip in sequence scope: the verification against the dense route, the run folder, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_wide import assert_same

import spectral_theorem as st
from spectral_theorem import cli, sequencewise, whisper
from spectral_theorem.audio import concatenate, load_audio
from spectral_theorem.carried import CLIPS, MODEL
from spectral_theorem.runs import read_run
from spectral_theorem.scopes import sequence_chain, sequence_triplets
from spectral_theorem.sequencewise import measure_sequence, sequence_bytes, sequence_products, sequence_text
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Dims
from spectral_theorem.wide import verify_wide

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


def drawn(layers=3, dtype="float64"):
    dims = Dims(**{**DIMS.__dict__, "decoder_layers": layers})
    return whisper.random_model(jax.random.key(1), dims, dtype=dtype)


@pytest.fixture(scope="module")
def context():
    return drawn().encode(jax.random.normal(jax.random.key(2), (8, 14), "float64"))


def both(model, context, tokens, granularity, *, dense_triplets=False, **options):
    """Return `verify` on the chain by `jax.jacfwd`, and ours on its maps."""
    layers = whisper.sequence_layers(model, context, tokens, granularity)
    dense = st.linearize(layers.layers, layers.state, layers.context)
    maps = whisper.sequence_maps(model, context, tokens, granularity, norms=True)
    triplets = st.decompose(dense) if dense_triplets else sequence_triplets(sequence_chain(maps))
    return st.verify(dense), verify_wide(sequence_products(maps), triplets, maps.norms, **options)


def assert_close(exact, found, atol=1e-9):
    """Compare what does not depend on error bars, which estimates have others of than a dense decomposition."""
    v = found.verification
    for field in exact.bounds.__dataclass_fields__:
        np.testing.assert_allclose(getattr(v.bounds, field), getattr(exact.bounds, field), atol=atol)
    for name, claim in exact.claims.items():
        allowed = {claim.verdict} | ({st.Verdict.UNDECIDED} if abs(v.claims[name].slack) < 0.1 else set())
        assert v.claims[name].verdict in allowed, name
    for name, condition in exact.conditions.items():
        assert v.conditions[name].verdict == condition.verdict
        np.testing.assert_allclose(v.conditions[name].value, condition.value, rtol=1e-9)
    assert abs(float(v.path.log_psi_norm - exact.path.log_psi_norm)) < atol
    assert found.residual.log_lower <= exact.path.log_residual_norm <= found.residual.log_upper


@pytest.mark.parametrize(
    ("layers", "tokens", "granularity"),
    [
        (3, 5, "block"),
        pytest.param(3, 5, "sub-block", marks=pytest.mark.slow),
        pytest.param(1, 2, "sub-block", marks=pytest.mark.exhaustive),
    ],
)
def test_every_number_is_that_of_the_dense_route(context, layers, tokens, granularity):
    model = drawn(layers)
    exact, found = both(model, context, TOKENS[:tokens], granularity, dense_triplets=True)
    assert_same(exact, found)
    exact, found = both(model, context, TOKENS[:tokens], granularity)
    assert found.verification.violated == ()
    if layers > 1:
        assert_close(exact, found)
        assert not found.verification.triplets.certified.any()


def test_one_position_is_token_scope(context):
    model = drawn()
    token = whisper.token_layers(model, context, TOKENS[:1], 0)
    exact = st.verify(st.linearize(token.layers, token.state, token.context))
    maps = whisper.sequence_maps(model, context, TOKENS[:1], norms=True)
    found = verify_wide(sequence_products(maps), sequence_triplets(sequence_chain(maps)), maps.norms)
    assert found.residual.rows == 16
    assert_close(exact, found)
    assert abs(float(found.residual.log_norm - exact.path.log_residual_norm)) < 1e-9


def test_columns_of_a_few_frames_are_those_of_the_whole(context):
    maps = whisper.sequence_maps(drawn(), context, TOKENS, "sub-block", norms=True)
    p, y = sequence_products(maps), jax.random.normal(jax.random.key(5), (6, 80))
    assert p.injects == (False, True, False) * 3
    whole = np.asarray(p.read(1, y)).reshape(6, 7, 16)
    for start, stop in ((0, 3), (3, 7), (6, 7)):
        np.testing.assert_allclose(p.read(1, y, start, stop), whole[:, start:stop].reshape(6, -1), atol=1e-13)
    x = jax.random.normal(jax.random.key(6), (6, 112))
    np.testing.assert_allclose(np.sum(np.asarray(p.enter(1, x)) * y), np.sum(np.asarray(p.read(1, y)) * x), rtol=1e-12)
    with pytest.raises(ValueError, match="norms=True"):
        sequence_products(whisper.sequence_maps(drawn(), context, TOKENS))


TALKING = Dims(
    width=8,
    mels=4,
    frames=10,
    vocabulary=12,
    positions=16,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=8,
    decoder_layers=3,
    decoder_heads=2,
    decoder_hidden=16,
)  # with the key below it generates several tokens


def talking(dtype="float64"):
    return whisper.random_model(jax.random.key(3), TALKING, dtype=dtype)


@pytest.fixture(scope="module")
def sound():
    return np.sin(np.arange(TALKING.window_samples) * 0.3)


@pytest.fixture(scope="module")
def measured(sound):
    return measure_sequence(talking(), sound, steps="0-1")


def test_the_chain_ends_with_the_last_step_asked_for(measured):
    t = measured.transcription
    assert measured.steps == (0, 1) and measured.position == t.position(1)
    plain = measured.to_dict()
    assert plain["state_size"] == plain["positions"] * 8 == (t.position(1) + 1) * 8
    assert plain["scope"] == "sequence" and plain["step"] == 1 and plain["steps"] == [0, 1]
    assert plain["scopes"]["position"] == measured.position
    assert plain["jacobian_check"] < 1e-12
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    first = plain["scopes"]["layers"][0]
    assert first["sequence"]["sigma1"] == plain["layers"][0]["sigma1"] and first["block_check"] < 1e-12
    path = plain["path"]
    assert path["log_residual_lower"] <= path["log_residual_norm"] <= path["log_residual_upper"]
    text = sequence_text("clip", plain | {"chance_kappa": 0.1})
    assert repr(t.text) in text and "in sequence" in text and "H1 stability" in text


@pytest.mark.exhaustive
def test_float32_holds_to_its_own_rounding():
    """On the model of the docstring, whose programs the suite compiles anyway."""
    dims = dataclasses.replace(TALKING, vocabulary=6, positions=9, decoder_layers=2, decoder_hidden=8)
    model = whisper.random_model(jax.random.key(0), dims, dtype="float32")
    found = measure_sequence(model, np.zeros(3200, np.float32), steps="0,1")
    assert found.found.verification.bounds.log_paper.dtype == jnp.float32
    assert found.found.verification.violated == () and found.jacobian_check < 1e-4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": "99"}, "step 99"),
        ({"steps": "x"}, "steps 'x'"),
        ({"memory": 1.0}, "positions at once"),
        ({"model": "float16"}, "a model in float16"),
    ],
)
def test_nonsense_is_refused(sound, change, word):
    asked = {"model": talking(), "audio": sound, "steps": "0"} | change
    if asked["model"] == "float16":
        asked["model"] = talking("float16")
    with pytest.raises(InputError, match=word):
        measure_sequence(**asked)


def test_memory_is_refused_with_what_would_fit(sound):
    limit = float(sequence_bytes(TALKING, 8, "block", 2))
    assert sequence_bytes(TALKING, 8, "block", 3) > limit
    with pytest.raises(InputError, match="positions at once, which take about"):
        measure_sequence(talking(), sound, steps="all", memory=limit)
    with pytest.raises(InputError, match="try --steps 1"):
        sequencewise._affordable(TALKING, 8, "block", 0, 5, limit)
    with pytest.raises(InputError, match="try --dtype float32"):
        sequencewise._affordable(TALKING, 8, "block", 2, 5, limit)
    with pytest.raises(InputError, match="try --scope token"):
        sequencewise._affordable(TALKING, 4, "block", 1, 5, 0.0)


def test_estimates_grow_as_the_arrays_do():
    large = Dims(
        width=1280,
        mels=128,
        frames=1500,
        vocabulary=51866,
        positions=448,
        encoder_layers=32,
        encoder_heads=20,
        encoder_hidden=5120,
        decoder_layers=32,
        decoder_heads=20,
        decoder_hidden=5120,
    )
    sizes = [sequence_bytes(large, 4, "block", t) for t in (1, 16, 64)]
    assert sizes == sorted(sizes) and sizes[0] > 32 * (8 * 1280**2 + 2 * 1280 * 5120) * 4
    assert sequence_bytes(large, 8, "block", 64) > 1.8 * sizes[-1]
    assert sequence_bytes(large, 4, "sub-block", 64) > 2 * sizes[-1]


def refused(capsys, *arguments):
    clip = str(CLIPS / "two-seven.flac")
    assert cli.main(["measure", "carried", clip, *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_the_command_line_refuses_what_does_not_go_together(capsys, tmp_path):
    assert "--scope sequence without --steps" in refused(capsys, "--scope", "sequence")
    assert "--scope token" in refused(capsys, "--scope", "sequence", "--steps", "all", "--context", "mel")
    assert "--scope token" in refused(capsys, "--scope", "sequence", "--steps", "all", "--directions", "4")
    assert "step 99" in refused(capsys, "--scope", "sequence", "--steps", "99", "--out", str(tmp_path / "run"))
    assert "--scope 'frame'" in refused(capsys, "--scope", "frame")


@pytest.mark.slow
def test_the_carried_model_through_the_command_line(capsys, tmp_path):
    """One chain per clip, kept with its scope; the same command again finds it finished."""
    clip, out = str(CLIPS / "two-seven.flac"), str(tmp_path / "run")
    command = ["measure", "carried", clip, "--steps", "all", "--scope", "sequence", "--out", out]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "'two seven'" in said and "frozen against total derivative" in said
    run = read_run(tmp_path / "run")
    (chain,) = run.summary["chains"].values()
    held = [name for name, claim in chain["claims"].items() if claim["verdict"] == "HOLDS"]
    assert len(held) >= 11 and f"All {len(held)} applicable" in said
    assert chain["transcript"] == "two seven" and chain["positions"] == 4 and chain["residual_rows"] == 64
    assert run.summary["config"]["scope"] == "sequence" and run.summary["seeds"] == [0]
    assert set(run.table["scope"].to_pylist()) == {"sequence"}
    assert set(run.table["step"].to_pylist()) == {2}
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert cli.main(command) == 0 and capsys.readouterr().out == said
    assert cli.main([*command[:-2], "--require", "conditions"]) == 1


@pytest.mark.parametrize("name", ["carried", pytest.param("whisper-tiny.en-digits", marks=pytest.mark.exhaustive)])
def test_trained_layers(request, name):
    """On a trained decoder no claim is violated, and two ways to the derivative agree."""
    if name == "carried":  # in the shapes of the command line above, which are compiled
        model, (sound, _) = whisper.load(MODEL, jnp.float64), load_audio(CLIPS / "two-seven.flac")
    else:
        shared = request.getfixturevalue("shared")
        model = whisper.load(shared / "models" / name, jnp.float64)
        recordings = shared / "data" / "fsdd" / "recordings"
        sound = concatenate([load_audio(recordings / f"{n}.wav")[0] for n in ("7_jackson_0", "1_george_0")], 0.1)
    found = measure_sequence(model, sound, steps="all" if name == "carried" else "0")
    v = found.found.verification
    assert v.violated == () and v.triplets.resolved.all()
    assert found.jacobian_check < 1e-12
    lower, upper = v.bounds.log_row_exact_lower, v.bounds.log_row_exact
    assert lower <= found.found.residual.log_norm <= upper
    token, sequence = found.comparison.token, v.triplets
    assert (sequence.sigma[:, 0] >= token.sigma[:, 0] * (1 - 1e-12)).all()
