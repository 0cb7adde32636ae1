"""Compare with recorded outputs of the reference implementation (scripts/make_parity_outputs.py)."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES, KEPT_FRAMES, OUTPUTS, waveform

from spectral_theorem import whisper
from spectral_theorem.audio import log_mel

BY_NAME = {case.name: case for case in CASES}


def recorded(name):
    with np.load(OUTPUTS / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def errors(name, folder, dtype):
    """Return the largest error of encoder states and of logits."""
    case, expected = BY_NAME[name], recorded(name)
    model = whisper.load(case.write(folder), dtype)
    mel, tokens = case.inputs()
    context = model.encode(jnp.asarray(mel, dtype))
    states = np.abs(np.asarray(context) - expected["encoder"]).max()
    return states, np.abs(np.asarray(model.logits(jnp.asarray(tokens), context)) - expected["logits"]).max()


@pytest.mark.parametrize("name", BY_NAME)
def test_states_and_logits_equal_the_reference(name, tmp_path):
    assert max(errors(name, tmp_path, "float32")) < 1e-4


@pytest.mark.parametrize("name", ["mels128", "different_heads"])
def test_states_and_logits_equal_the_reference_to_rounding(name, tmp_path):
    assert max(errors(name, tmp_path, "float64")) < 1e-11


@pytest.mark.parametrize("name", ["plain", "shallow_decoder"])
def test_greedy_tokens_equal_the_reference(name, tmp_path):
    case = BY_NAME[name]
    model = whisper.load(case.write(tmp_path), "float64")
    decoded = whisper.greedy(model, model.encode(jnp.asarray(case.inputs()[0])))
    np.testing.assert_array_equal(decoded.tokens, recorded(name)["greedy"])


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_equals_the_reference(n_mels):
    expected = recorded("log_mel")
    by_numpy, by_torch = expected[f"numpy_{n_mels}"], expected[f"torch_{n_mels}"]
    single = np.asarray(log_mel(waveform(), n_mels))[:, KEPT_FRAMES]
    double = np.asarray(log_mel(waveform().astype(np.float64), n_mels))[:, KEPT_FRAMES]
    assert max(np.abs(double - by_numpy).max(), np.abs(single - by_numpy).max()) < 1e-6
    # By its torch route the reference rounds in float32, in quiet bins of loud frames by up to 4.3e-5.
    assert np.quantile(np.abs(single - by_torch), 0.99) < 1e-5
    assert np.abs(single - by_torch).max() < np.abs(by_numpy - by_torch).max() + 1e-6 < 5e-5


def test_a_changed_weight_is_noticed(tmp_path):
    case = BY_NAME["mels128"]
    model = whisper.load(case.write(tmp_path), "float64")
    bias = model.decoder.layers[1].fc2.bias
    bias[...] = bias[...].at[0].add(1e-3)
    mel, tokens = case.inputs()
    logits = model(jnp.asarray(mel), jnp.asarray(tokens))
    assert np.abs(np.asarray(logits) - recorded("mels128")["logits"]).max() > 1e-4
