"""Drawing, falling back, long recordings, languages, devices: on random models, against plain loops."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_theorem import whisper
from spectral_theorem.types import InputError
from spectral_theorem.whisper import DecodingOptions, Dims, Generation
from spectral_theorem.whisper.decode import decode
from spectral_theorem.whisper.transcript import Transcription
from spectral_theorem.whisper.windows import needs_fallback

DIMS = Dims(
    width=16,
    mels=8,
    frames=20,
    vocabulary=32,
    positions=32,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=20,
    decoder_layers=2,
    decoder_heads=4,
    decoder_hidden=24,
)
# Text 0-7, end 8, start 9, languages 10-12, tasks 13-14, previous 15, no-speech 16, no-timestamps 17, times from 18 on.
KNOWN = Generation(
    prompt=(9, 10, 14, 17),
    end=8,
    suppress=(9, 10, 11, 12, 13, 14, 15, 16, 17),
    suppress_first=(8,),
    longest=24,
    no_speech=16,
    languages=(("en", 10), ("de", 11), ("fr", 12)),
    tasks=(("translate", 13), ("transcribe", 14)),
    no_timestamps=17,
    first_timestamp=18,
    previous=15,
)
WINDOW = DIMS.window_samples


@pytest.fixture(scope="module")
def model():
    return whisper.random_model(jax.random.key(4), DIMS, dtype="float64", generation=KNOWN)


@pytest.fixture(scope="module")
def contexts():
    return 2.0 * jax.random.normal(jax.random.key(5), (4, 20, 16), "float64")


@pytest.fixture(scope="module")
def sounds():
    draw = np.random.default_rng(0)
    return [0.3 * draw.standard_normal(n) for n in (WINDOW, 3 * WINDOW + 100, WINDOW // 2, 2 * WINDOW)]


def followed(model, context, sequence, padded):
    """Return the logits after a sequence, by the whole-sequence decoder without cache."""
    tokens = jnp.asarray([*sequence, *[0] * (padded - len(sequence))])
    return np.asarray(model.logits(tokens, context))[: len(sequence)]


def log_softmax(row):
    row = row - row[np.isfinite(row)].max()
    return row - np.log(np.exp(row).sum())


def test_prompts_of_different_lengths_decode_as_alone(model, contexts):
    prompts = [(9, 10, 14, 17), (15, 1, 2, 3, 9, 11, 13, 17), (15, 7, 9, 10, 14, 17), (9, 12, 14, 17)]
    together = decode(model, contexts, prompts, tail=4, new=12)
    for context, prompt, result in zip(
        contexts, prompts, whisper.transcriptions(model, together, [0.0] * 4), strict=True
    ):
        assert result.sequence[: result.prompt_length] == prompt
        logits = followed(model, context, result.sequence, 24)
        opening = np.exp(log_softmax(logits[prompt.index(9)]))
        assert abs(result.no_speech_prob - opening[16]) < 1e-12
        for step, token in enumerate(result.sequence[len(prompt) :]):
            row = logits[len(prompt) - 1 + step].copy()
            row[list(KNOWN.suppress)] = -np.inf
            row[8] = -np.inf if step == 0 else row[8]
            row = log_softmax(row)
            assert token == row.argmax()
            assert abs(result.token_logprobs[step] - row[token]) < 1e-12


def test_timestamps_come_in_pairs_and_never_go_back(model, contexts):
    keys = jax.random.split(jax.random.key(0), 64)
    rows = jnp.tile(contexts, (16, 1, 1))
    drawn = decode(model, rows, [(9, 10, 14)] * 64, new=20, timestamps=True, temperature=2.0, keys=keys)
    seen = set()
    for result in whisper.transcriptions(model, drawn, [0.0] * 64):
        times = [id for id in result.tokens if id >= 18]
        assert result.tokens[0] >= 18 and times == sorted(times)
        runs = "".join("t" if id >= 18 else "." for id in result.tokens)
        assert "ttt" not in runs and not runs.startswith("tt")
        assert all(0 <= id < 8 or id >= 18 for id in result.tokens)
        seen.add(runs)
    assert len(seen) > 20


def test_tokens_are_drawn_as_often_as_the_model_says(model, contexts):
    n, temperature = 4096, 1.5
    rows = jnp.broadcast_to(contexts[:1], (n, 20, 16))
    keys = jax.random.split(jax.random.key(1), n)
    drawn = decode(model, rows, [KNOWN.prompt] * n, new=1, temperature=temperature, keys=keys)
    counts = np.bincount(np.asarray(drawn.tokens)[:, 4], minlength=32)
    row = followed(model, contexts[0], KNOWN.prompt, 24)[-1].copy()
    row[[*KNOWN.suppress, 8]] = -np.inf
    wanted = np.exp(log_softmax(row / temperature))
    spread = np.sqrt(n * wanted * (1 - wanted))
    assert (np.abs(counts - n * wanted) <= 5 * spread + 1e-9).all()
    assert (counts[wanted > 5 / n] > 0).all() and counts[wanted == 0].sum() == 0
    # Log-probabilities are those of the model, not those of the temperature.
    plain = log_softmax(row)
    np.testing.assert_allclose(np.asarray(drawn.logprobs)[:, 4], plain[np.asarray(drawn.tokens)[:, 4]], atol=1e-12)


def test_a_clip_is_drawn_alone_as_in_a_batch(model, contexts):
    keys = jax.random.split(jax.random.key(2), 4)
    options = {"new": 12, "temperature": 1.0}
    together = decode(model, contexts, [KNOWN.prompt] * 4, keys=keys, **options)
    for i in range(4):
        alone = decode(model, contexts[i : i + 1], [KNOWN.prompt], keys=keys[i : i + 1], **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
    assert len({tuple(row) for row in np.asarray(together.tokens)}) == 4


def test_drawing_without_keys_and_prompts_without_room_are_refused(model, contexts):
    with pytest.raises(InputError, match="without keys"):
        decode(model, contexts, [(9,)] * 4, temperature=1.0)
    with pytest.raises(InputError, match="30 tokens and 5 new"):
        decode(model, contexts, [(9,) * 30] * 4, new=5)
    with pytest.raises(InputError, match="without a key"):
        whisper.transcribe(model, np.zeros(10), DecodingOptions(temperatures=(1.0,)))


# Falling back.


def result(**changes):
    found = Transcription("a", (1,), (-0.5, -0.5), (9, 1, 8), 1, True, -0.5, 0.1, 1.0, 1.0)
    return dataclasses.replace(found, **changes)


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({}, False),
        ({"compression_ratio": 2.5}, True),
        ({"compression_ratio": 2.4}, False),
        ({"avg_logprob": -1.1}, True),
        ({"avg_logprob": -1.1, "no_speech_prob": 0.7}, False),
        ({"compression_ratio": 2.5, "avg_logprob": -0.9, "no_speech_prob": 0.7}, True),
        ({"avg_logprob": -1.1, "no_speech_prob": None}, True),
    ],
)
def test_what_is_decoded_again(changes, again):
    assert needs_fallback(result(**changes), DecodingOptions(no_speech_threshold=0.6)) == again


def test_without_limits_everything_is_accepted():
    free = DecodingOptions(max_compression_ratio=None, min_avg_logprob=None)
    assert not needs_fallback(result(compression_ratio=99.0, avg_logprob=-99.0), free)


def test_falling_back_goes_on_until_a_result_is_accepted(model, sounds):
    options = DecodingOptions(language="en", temperatures=(0.0, 0.3, 0.9), max_compression_ratio=None, longest=10)
    options = dataclasses.replace(options, timestamps=False)
    rows = lambda limit: [
        window.temperature
        for clip in whisper.transcribe_many(
            model, sounds, dataclasses.replace(options, min_avg_logprob=limit), keys=list(keys), batch=4
        )
        for window in clip.windows
    ]
    keys = jax.random.split(jax.random.key(3), 4)
    assert set(rows(-1e9)) == {0.0}
    assert set(rows(1.0)) == {0.9}


def test_silent_windows_are_dropped_only_when_asked(model, sounds):
    options = DecodingOptions(language="en", timestamps=True, min_avg_logprob=0.0, longest=10)
    kept, dropped = (
        whisper.transcribe_many(model, sounds, dataclasses.replace(options, no_speech_threshold=limit), batch=4)
        for limit in (None, 0.0)
    )
    assert all(clip.text for clip in kept)
    assert all(not clip.text and clip.segments == () and clip.windows for clip in dropped)
    assert dropped[0].windows[0] == kept[0].windows[0]


# Long recordings.


def window_by_window(model, sound, *, timestamps, chained, longest=10):
    """Transcribe by the plain rule, one window and one greedy loop at a time."""
    from spectral_theorem.audio import log_mel

    at, earlier, found = 0, [], []
    while at < len(sound):
        part = sound[at : at + WINDOW]
        context = model.encode(log_mel(part, DIMS.mels, length=WINDOW))
        head = [15, *earlier[-15:]] if chained and earlier else []
        prompt = [*head, 9, 10, 14] + ([] if timestamps else [17])
        decoded = decode(
            model, context[None], [prompt], tail=3 if timestamps else 4, new=longest, timestamps=timestamps
        )
        tokens = list(whisper.transcriptions(model, decoded, [0.0])[0].tokens)
        pairs = [i for i in range(1, len(tokens)) if tokens[i - 1] >= 18 and tokens[i] >= 18]
        single = bool(tokens) and tokens[-1] >= 18 and not (len(tokens) > 1 and tokens[-2] >= 18)
        kept = tokens
        advance = WINDOW
        if timestamps and pairs and not single:
            kept = tokens[: pairs[-1]]
            advance = (tokens[pairs[-1] - 1] - 18) * 320 or WINDOW
        earlier += kept
        found.append((at, tuple(tokens)))
        at += advance
    return found


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("timestamps", [False, True])
def test_long_recordings_are_stitched_as_one_window_after_another(model, sounds, timestamps, chained):
    options = DecodingOptions(
        language="en", timestamps=timestamps, condition_on_previous=chained, max_initial_timestamp=1.0, longest=10
    )
    found = whisper.transcribe_many(model, sounds, options, batch=4)
    for clip, sound in zip(found, sounds, strict=True):
        expected = window_by_window(model, sound, timestamps=timestamps, chained=chained)
        assert [(round(w.start * 16_000), w.tokens) for w in clip.windows] == expected
        assert clip.duration == len(sound) / 16_000
        assert all(0 <= s.start <= s.end <= clip.duration for s in clip.segments)
        assert clip.text == " ".join(s.text for s in clip.segments)
        assert all(clip.windows[s.window].start <= s.start + 1e-9 for s in clip.segments)
    assert max(len(clip.windows) for clip in found) >= 4


def test_earlier_text_changes_what_follows(model, sounds):
    options = DecodingOptions(language="en", timestamps=True, longest=10)
    plain, chained = (
        whisper.transcribe_many(model, sounds, dataclasses.replace(options, condition_on_previous=chained), batch=4)[1]
        for chained in (False, True)
    )
    assert plain.windows[0].tokens == chained.windows[0].tokens
    assert plain.tokens != chained.tokens
    assert chained.windows[1].sequence[0] == 15


# Languages.


def test_the_language_is_detected_where_nobody_says_it(model, sounds):
    found = whisper.transcribe_many(model, sounds[:1] * 3, batch=2)
    (best,) = {clip.language for clip in found}
    context, _ = whisper.encode_audio(model, sounds[0])
    shares = np.exp(log_softmax(followed(model, context, [9], 1)[0][[10, 11, 12]]))
    assert best == ("en", "de", "fr")[shares.argmax()]
    assert abs(found[0].language_prob - shares.max()) < 1e-12
    assert found[0].windows[0].sequence[1] == 10 + shares.argmax()
    given = whisper.transcribe(model, sounds[0], DecodingOptions(language="fr", task="translate"))
    assert given.windows[0].sequence[:4] == (9, 12, 13, 17) and given.language_prob is None


def test_languages_that_the_model_has_not_are_refused(model):
    with pytest.raises(InputError, match="language='xx'"):
        whisper.transcribe(model, np.zeros(10), DecodingOptions(language="xx"))
    english = whisper.random_model(jax.random.key(0), DIMS, dtype="float64")
    with pytest.raises(InputError, match="English-only"):
        whisper.language_probabilities(english, jnp.zeros((1, 20, 16)))


# Devices.

ON_FOUR = """
import sys, jax, numpy as np
sys.path.insert(0, sys.argv[1])
import test_whisper_windows as here
from spectral_theorem import whisper
model = whisper.random_model(jax.random.key(4), here.DIMS, generation=here.KNOWN)
draw = np.random.default_rng(0)
sounds = [0.3 * draw.standard_normal(n).astype(np.float32) for n in (6400, 100, 9000, 6400, 3000)]
options = whisper.DecodingOptions(language="en", temperatures=(0.5,), longest=8)
keys = list(jax.random.split(jax.random.key(0), 5))
mesh = whisper.clip_mesh()
assert mesh.size == 4
one = whisper.transcribe_many(model, sounds, options, keys=keys)
four = whisper.transcribe_many(model, sounds, options, keys=keys, mesh=mesh)
assert [clip.tokens for clip in one] == [clip.tokens for clip in four]
print("same", len({clip.tokens for clip in one}))
"""


def test_four_devices_give_the_same_tokens(repository):
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = environment.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-c", ON_FOUR, str(repository / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repository, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] == "same" and int(done.stdout.split()[1]) >= 4
