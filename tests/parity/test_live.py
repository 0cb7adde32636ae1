"""Run the reference implementation beside ours: the random cases, and real blocks on real digits.

Needs the parity extra. Where it is not installed these tests skip with a reason, or fail when
SPECTRAL_THEOREM_REQUIRE_PARITY=1 is set; the recorded outputs are compared in either case.
"""

import csv
import importlib.util
import os

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from parity_cases import CASES, waveform

from spectral_theorem import whisper
from spectral_theorem.audio import concatenate, load_audio, log_mel

pytestmark = pytest.mark.parity

DIGIT_STRINGS = (
    "0_george_0",
    "7_jackson_0",
    "3_jackson_1 4_jackson_2",
    "1_lucas_0 9_lucas_1 5_lucas_2",
    "2_nicolas_0 8_nicolas_4 8_nicolas_3 2_nicolas_3",
    "5_yweweler_0 9_yweweler_0 6_yweweler_3 3_yweweler_2 6_yweweler_3",
    "6_george_3 6_george_4 0_george_1",
    "4_nicolas_1",
    "9_nicolas_1 8_nicolas_3 4_nicolas_0 5_nicolas_2",
    "1_jackson_3 2_jackson_4 3_jackson_0 4_jackson_1 5_jackson_2 6_jackson_3 7_jackson_4",
    "8_lucas_2",
    "0_yweweler_1 7_yweweler_4",
)


@pytest.fixture(scope="session", autouse=True)
def parity_extra():
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"the parity extra is not installed: no {' and no '.join(missing)}"
        if os.environ.get("SPECTRAL_THEOREM_REQUIRE_PARITY") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.filterwarnings("default")  # the reference's own warnings are not ours to raise
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_random_models_equal_the_reference(case, tmp_path):
    expected = reference.run_case(case, tmp_path)
    model = whisper.load(tmp_path, "float64")
    mel, tokens = case.inputs()
    context = model.encode(jnp.asarray(mel))
    assert np.abs(np.asarray(context) - expected["encoder"]).max() < 1e-11
    assert np.abs(np.asarray(model.logits(jnp.asarray(tokens), context)) - expected["logits"]).max() < 1e-11


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_of_speech_equals_the_reference(n_mels, shared):
    for samples in (waveform(), load_audio(shared / "data" / "speech" / "jfk.flac")[0]):
        by_numpy, by_torch = reference.log_mel(n_mels, samples)
        double, single = (np.asarray(log_mel(samples.astype(dtype), n_mels)) for dtype in (np.float64, np.float32))
        assert max(np.abs(double - by_numpy).max(), np.abs(single - by_numpy).max()) < 1e-6
        # By its torch route the reference rounds in float32, and is that far from its own NumPy route.
        assert np.abs(single - by_torch).max() < np.abs(by_numpy - by_torch).max() + 1e-6 < 5e-5


@pytest.fixture(scope="module")
def paths(shared):
    with (shared / "data" / "manifest.csv").open() as file:
        return {row["utterance_id"]: shared / "data" / row["path"] for row in csv.DictReader(file)}


def both(folder, dtype):
    """Load the same folder on both sides."""
    import torch
    from transformers import WhisperForConditionalGeneration

    theirs = WhisperForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    theirs.generation_config.no_timestamps_token_id = 12
    return whisper.load(folder, dtype), theirs


def heard(string, paths, dtype):
    """Return the samples of a string of recordings, their log-mel, and that as a torch batch."""
    import torch

    samples = concatenate([load_audio(paths[name])[0] for name in string.split()], gap_seconds=0.1)
    mel = log_mel(samples.astype(dtype))
    return samples, mel, torch.tensor(np.asarray(mel))[None]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_real_encoder_blocks_equal_the_reference_in_float64(shared, paths):
    import torch

    ours, theirs = both(shared / "models" / "whisper-tiny.en-digits", "float64")
    for string in DIGIT_STRINGS[1:3]:
        _, mel, features = heard(string, paths, "float64")
        with torch.no_grad():
            states = theirs.model.encoder(features).last_hidden_state[0].numpy()
        assert np.abs(np.asarray(ours.encode(mel)) - states).max() < 1e-10


def more_strings():
    """Make 44 strings of one to four digits of all five speakers, takes 0 to 4: with those above, 56 clips."""
    draw, speakers = np.random.default_rng(11), ("george", "jackson", "lucas", "nicolas", "yweweler")
    strings = []
    for i in range(44):
        digits = draw.integers(0, 10, 1 + i % 4)
        strings.append(" ".join(f"{digit}_{speakers[i % 5]}_{draw.integers(5)}" for digit in digits))
    return strings


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "strings",
    [DIGIT_STRINGS, pytest.param((*DIGIT_STRINGS, *more_strings()), marks=pytest.mark.exhaustive)],
    ids=lambda strings: f"{len(strings)} clips",
)
def test_real_digits_give_the_same_tokens_in_float32(shared, paths, strings):
    """Encoder states and tokens, in batches, each side through its own encoder and cache."""
    import torch

    ours, theirs = both(shared / "models" / "whisper-tiny.en-digits", "float32")
    compared = 0
    for start in range(0, len(strings), 14):
        some = [heard(string, paths, "float32") for string in strings[start : start + 14]]
        context = ours.encode(jnp.stack([mel for _, mel, _ in some]))
        features = torch.cat([each for _, _, each in some])
        with torch.no_grad():
            states = theirs.model.encoder(features).last_hidden_state
        # Single states of silent frames are ill-conditioned: the reference's own float32 is 1e-4 from its float64.
        assert np.abs(np.asarray(context) - states.numpy()).max() < 1e-4 * np.abs(states.numpy()).max()
        expected = reference.greedy_batch(theirs, states, end=10)
        found = whisper.transcriptions(ours, whisper.greedy(ours, context), [1.0] * len(some))
        for result, row in zip(found, expected, strict=True):
            assert list(result.sequence) == row[: len(result.sequence)].tolist()
            assert set(row[len(result.sequence) :]) <= {10}
            compared += 1
    assert compared == len(strings)
