"""Compare with recorded outputs of the reference implementation (scripts/make_parity_outputs.py)."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES, KEPT_FRAMES, OUTPUTS, Case, waveform

from spectral_theorem import whisper
from spectral_theorem.audio import log_mel


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def recorded(case):
    with np.load(OUTPUTS / f"{case.name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    return case.write(tmp_path_factory.mktemp(case.name))


@pytest.mark.parametrize(("dtype", "allowed"), [("float64", 1e-11), ("float32", 1e-4)])
def test_states_and_logits_equal_the_reference(case, recorded, folder, dtype, allowed):
    model = whisper.load(folder, dtype)
    mel, tokens = case.inputs()
    context = model.encode(jnp.asarray(mel, dtype))
    assert np.abs(np.asarray(context) - recorded["encoder"]).max() < allowed
    assert np.abs(np.asarray(model.logits(jnp.asarray(tokens), context)) - recorded["logits"]).max() < allowed


def test_greedy_tokens_equal_the_reference(case, recorded, folder):
    model = whisper.load(folder, "float64")
    decoded = whisper.greedy(model, model.encode(jnp.asarray(case.inputs()[0])))
    np.testing.assert_array_equal(decoded.tokens, recorded["greedy"])


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_equals_the_reference(n_mels):
    with np.load(OUTPUTS / "log_mel.npz", allow_pickle=False) as file:
        by_numpy, by_torch = file[f"numpy_{n_mels}"], file[f"torch_{n_mels}"]
    single = np.asarray(log_mel(waveform(), n_mels))[:, KEPT_FRAMES]
    double = np.asarray(log_mel(waveform().astype(np.float64), n_mels))[:, KEPT_FRAMES]
    assert np.abs(double - by_numpy).max() < 1e-6
    # float32 is good to 1e-5 except in quiet bins of loud frames, where the reference's own two
    # routes differ by as much.
    for reference in (by_numpy, by_torch):
        assert np.quantile(np.abs(single - reference), 0.99) < 1e-5
        assert np.abs(single - reference).max() < 5e-5


def test_a_changed_weight_is_noticed(tmp_path):
    case = CASES[0]
    with np.load(OUTPUTS / f"{case.name}.npz", allow_pickle=False) as file:
        logits = file["logits"]
    model = whisper.load(case.write(tmp_path), "float64")
    bias = model.decoder.layers[1].fc2.bias
    bias[...] = bias[...].at[0].add(1e-3)
    mel, tokens = case.inputs()
    assert np.abs(np.asarray(model(jnp.asarray(mel), jnp.asarray(tokens))) - logits).max() > 1e-4
