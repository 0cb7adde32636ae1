"""From sound to verdict: the measured chain is the model's own, and its short context loses nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem.measure import chance_alignment, measure_token
from spectral_theorem.measured import run as measure
from spectral_theorem.runs import read_run
from spectral_theorem.whisper import Dims, random_model
from spectral_theorem.whisper.chain import token_layers
from spectral_theorem.whisper.windows import encode_audio

DIMS = Dims(
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
)


@pytest.fixture(scope="module")
def model():
    return random_model(jax.random.key(3), DIMS, dtype=jnp.float64)


@pytest.fixture(scope="module")
def sound():
    return np.sin(np.arange(DIMS.window_samples) * 0.3)


@pytest.mark.parametrize("granularity", ["block", "sub-block"])
def test_measured_chain_is_the_dense_chain_in_another_basis(model, sound, granularity):
    found = measure_token(model, sound, step=1, granularity=granularity)
    context, _ = encode_audio(model, sound)
    layers = token_layers(model, context, found.transcription.sequence, found.position, granularity)
    dense = st.linearize(layers.layers, layers.state, layers.context)
    short = found.chain
    np.testing.assert_allclose(short.propagators, dense.propagators, atol=1e-12)
    gram = lambda g: np.einsum("kac,lbc->klab", g, g)
    np.testing.assert_allclose(gram(short.injections), gram(dense.injections), atol=1e-12)
    triplets = st.decompose(dense)
    path, bounds = st.dominant_path(dense, triplets), st.residual_bounds(dense, triplets)
    ours = found.verification
    assert abs(ours.path.log_residual_norm - path.log_residual_norm) < 1e-8
    assert abs(ours.path.log_psi_norm - path.log_psi_norm) < 1e-8
    assert abs(ours.bounds.log_row_exact - bounds.log_row_exact) < 1e-8
    value = st.check_conditions(dense, triplets).coherence.value
    assert abs(ours.conditions.coherence.value - value) < 1e-8
    assert found.row_check < 1e-9 and found.gram_error < 1e-9
    assert ours.violated == ()


def test_a_step_beyond_the_transcript_is_refused(model, sound):
    with pytest.raises(st.InputError, match="step 99"):
        measure_token(model, sound, step=99)


def test_chance_alignment_is_what_random_directions_show():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mean, error = np.abs(x[:, 0]).mean(), np.abs(x[:, 0]).std() / np.sqrt(len(x))
    assert abs(mean - chance_alignment(16)) < 4 * error


@pytest.mark.slow
def test_real_whisper_on_a_digit_and_on_an_unusable_file(shared, tmp_path):
    """The transcript is right, every claim stands, the unusable clip is listed, and the record is whole."""
    digit = shared / "data" / "fsdd" / "recordings" / "7_jackson_0.wav"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"not a sound")
    model = str(shared / "models" / "whisper-tiny.en-digits")
    outcome = measure(model=model, audio=[digit, broken], out=tmp_path / "run", dtype="float64")
    assert outcome.exit_code == 3
    chain = outcome.record["chains"]["7_jackson_0"]
    assert chain["transcript"] == "seven"
    assert list(outcome.record["failed"]) == ["broken"]
    assert not [name for name, claim in chain["claims"].items() if claim["verdict"] == "VIOLATED"]
    assert chain["row_check"] < 1e-9 and chain["context_size"] == 1500 * 384
    assert [layer["resolved"] for layer in chain["layers"]] == [True] * 4
    run = read_run(tmp_path / "run")
    assert run.summary["chains"]["7_jackson_0"]["transcript"] == "seven"
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "run" / "7_jackson_0.npz").exists()
