"""Sound files to samples to log-mel."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as some

from spectral_theorem.audio import (
    HOP,
    SAMPLE_RATE,
    concatenate,
    load_audio,
    log_mel,
    mel_filters,
    pad_or_trim,
)
from spectral_theorem.types import InputError


def tone(frequency, rate, seconds=0.5):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_tone_survives_any_rate_and_channels(tmp_path, rate, channels):
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.tile(tone(1000.0, rate)[:, None], channels), rate, subtype="FLOAT")
    samples, out_rate = load_audio(path)
    assert (out_rate, samples.dtype, samples.ndim) == (SAMPLE_RATE, np.float32, 1)
    assert abs(samples.size - 8_000) <= 1
    middle = samples[2_000:6_000]
    assert np.abs(middle - tone(1000.0, SAMPLE_RATE)[2_000:6_000]).max() < 1e-4


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([np.full(10, 0.5), np.full(10, -0.25)], axis=1), SAMPLE_RATE, subtype="FLOAT")
    assert np.array_equal(load_audio(path)[0], np.full(10, 0.125, np.float32))


@pytest.mark.parametrize(
    ("suffix", "subtype", "allowed"), [("wav", "PCM_U8", 1e-2), ("flac", "PCM_16", 1e-4), ("ogg", "VORBIS", 0.2)]
)
def test_common_formats(tmp_path, suffix, subtype, allowed):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(440.0, SAMPLE_RATE), SAMPLE_RATE, subtype=subtype)
    samples, _ = load_audio(path)
    assert np.abs(samples - tone(440.0, SAMPLE_RATE)[: samples.size]).max() < allowed


def written(folder, samples, rate=SAMPLE_RATE):
    path = folder / "clip.wav"
    soundfile.write(path, np.asarray(samples), rate, subtype="FLOAT")
    return path


def test_a_single_sample_is_sound(tmp_path):
    assert load_audio(written(tmp_path, [0.25]))[0].tolist() == [0.25]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda f: f / "absent.wav", "does not exist"),
        (lambda f: f, "folder"),
        (lambda f: (f / "note.wav", (f / "note.wav").write_text("not sound"))[0], "cannot be read as sound"),
        (lambda f: (f / "none.wav", (f / "none.wav").write_bytes(b""))[0], "cannot be read as sound"),
        (lambda f: written(f, np.zeros(0)), "without samples"),
        (lambda f: written(f, [0.0, np.nan]), "NaN"),
        (lambda f: written(f, [0.0, np.inf]), "infinite"),
        (lambda f: written(f, np.zeros(8), rate=1), "8 s"),
    ],
    ids=["absent", "folder", "text", "zero bytes", "no samples", "nan", "inf", "long"],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, make, word):
    with pytest.raises(InputError) as error:
        load_audio(make(tmp_path), longest_seconds=5)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


@functools.cache
def small_wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(440.0, 8_000, 0.02), 8_000, format="WAV")
    return buffer.getvalue()


@settings(max_examples=60)
@given(some.integers(0, 400), some.lists(some.tuples(some.integers(0, 80), some.integers(0, 255)), max_size=4))
def test_damaged_files_are_read_or_refused(tmp_path_factory, keep, changes):
    raw = bytearray(small_wav()[:keep])
    for place, byte in changes:
        if place < len(raw):
            raw[place] = byte
    path = tmp_path_factory.mktemp("damaged") / "clip.wav"
    path.write_bytes(raw)
    try:
        samples, _ = load_audio(path, longest_seconds=60)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert samples.size and np.isfinite(samples).all()


def test_clips_are_joined_with_silence_between():
    joined = concatenate([np.ones(3, np.float32), np.ones(2, np.float32)], gap_seconds=4 / SAMPLE_RATE)
    assert joined.tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert joined.dtype == np.float32


@pytest.mark.parametrize("arguments", [([],), ([np.ones(1)], -1.0), ([np.ones(1)], np.nan)])
def test_joining_refuses_nonsense(arguments):
    with pytest.raises(InputError):
        concatenate(*arguments)


def test_pad_or_trim_changes_only_the_end():
    x = np.arange(5.0)
    assert pad_or_trim(x, 3).tolist() == [0, 1, 2]
    assert pad_or_trim(x, 7).tolist() == [0, 1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_triangles_share_every_frequency_between_two(n_mels):
    filters = mel_filters(n_mels)
    top = 15.0 + 27.0 * np.log(8.0) / np.log(6.4)
    mel = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(mel < 15.0, mel / 0.015, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))
    heights = filters * (edges[2:] - edges[:-2])[:, None] / 2.0
    frequencies = np.linspace(0.0, 8000.0, 201)
    inside = (frequencies >= edges[1]) & (frequencies <= edges[-2])
    assert np.abs(heights.sum(0)[inside] - 1.0).max() < 1e-12
    assert filters.min() == 0.0


def test_a_tone_lands_in_its_band():
    features = np.asarray(log_mel(tone(1000.0, SAMPLE_RATE, 1.0).astype(np.float32), length=SAMPLE_RATE))
    band = int(features[:, 50].argmax())
    assert mel_filters(80)[band, 25] > 0  # bin 25 is 1000 Hz


def test_silence_sits_on_the_floor():
    assert np.all(np.asarray(log_mel(np.zeros(1, np.float32), length=1600)) == -1.5)


def test_louder_by_ten_is_higher_by_a_half():
    x = 0.05 * np.random.default_rng(0).standard_normal(1600)
    quiet, loud = log_mel(x, length=1600), log_mel(10 * x, length=1600)
    assert np.abs(np.asarray(loud - quiet) - 0.5).max() < 1e-12


def test_dtypes_agree_and_others_are_refused():
    x = 0.1 * np.random.default_rng(1).standard_normal(3200)
    single, double = log_mel(x.astype(np.float32), length=3200), log_mel(x, length=3200)
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert np.abs(np.asarray(single) - np.asarray(double)).max() < 1e-4
    for dtype in (np.float16, np.int16):
        with pytest.raises(InputError, match="dtype"):
            log_mel(np.zeros(10, dtype))
    with pytest.raises(InputError, match="window"):
        log_mel(x, length=HOP + 1)


def test_gradient_reaches_the_waveform():
    draw = np.random.default_rng(2)
    x, direction, weights = draw.standard_normal(1600), draw.standard_normal(1600), draw.standard_normal((80, 10))
    loss = lambda x: jnp.sum(weights * log_mel(x, length=1600))
    _, slope = jax.jvp(loss, (jnp.asarray(x),), (jnp.asarray(direction),))
    step = 1e-6
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert abs(slope - difference) < 1e-6 * abs(slope)
    assert abs(jnp.vdot(jax.grad(loss)(jnp.asarray(x)), direction) - slope) < 1e-10 * abs(slope)


def test_batches_by_vmap():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((3, 800)))
    batched = jax.vmap(lambda x: log_mel(x, length=800))(x)
    assert np.abs(np.asarray(batched[1] - log_mel(x[1], length=800))).max() < 1e-12
