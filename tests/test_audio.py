"""Sound files to samples to log-mel."""

import functools
import io
import itertools
import os
import tracemalloc

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
    save_audio,
    stream_windows,
    windows,
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
    ("suffix", "subtype", "allowed"),
    [
        ("wav", "PCM_U8", 1e-2),
        ("wav", "PCM_24", 1e-6),
        ("wav", "DOUBLE", 1e-7),
        ("flac", "PCM_16", 1e-4),
        ("flac", "PCM_24", 1e-6),
        ("ogg", "VORBIS", 0.2),
        ("mp3", "MPEG_LAYER_III", 0.2),
    ],
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
        (lambda f: written(f, np.zeros(8), rate=999), "999 Hz"),
        (lambda f: written(f, np.zeros(8), rate=1_000_000), "1000000 Hz"),
        (lambda f: written(f, np.zeros(1), rate=48_000 * 16), "too short"),
    ],
    ids=["absent", "folder", "text", "no bytes", "no samples", "nan", "inf", "long", "slow", "fast", "too short"],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, make, word):
    with pytest.raises(InputError) as error:
        load_audio(make(tmp_path), longest_seconds=5)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def sparse_wav(path, *, hours, rate=8_000, channels=1):
    """Write a header, and a hole where the samples are: a long silent recording that takes no room."""
    frames = round(hours * 3600 * rate)
    soundfile.write(path, np.zeros((1, channels)), rate, subtype="PCM_U8")
    with path.open("r+b") as file:
        head = bytearray(file.read(44))
        head[4:8] = (36 + frames * channels).to_bytes(4, "little")
        head[40:44] = (frames * channels).to_bytes(4, "little")
        file.seek(0)
        file.write(head)
    os.truncate(path, 44 + frames * channels)
    return path


def peak_megabytes(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_ten_hours_are_refused_before_they_are_read(tmp_path):
    path = sparse_wav(tmp_path / "long.wav", hours=10)

    def refused():
        with pytest.raises(InputError, match="36000 s; expected at most 7200 s"):
            load_audio(path)

    assert peak_megabytes(refused) < 1


def test_ten_hours_are_read_window_by_window(tmp_path):
    path = sparse_wav(tmp_path / "long.wav", hours=10)
    seen = []

    def some_windows():
        seen.extend((offset, window.shape) for offset, window in itertools.islice(stream_windows(path), 4))

    assert peak_megabytes(some_windows) < 30
    assert seen == [(480_000 * i, (480_000,)) for i in range(4)]


def test_many_channels_allocate_no_more_than_few(tmp_path):
    path = sparse_wav(tmp_path / "wide.wav", hours=1 / 3600, channels=1024)
    assert peak_megabytes(lambda: load_audio(path)) < 20


def test_a_header_that_promises_more_than_the_file_holds_allocates_nothing(tmp_path):
    path = sparse_wav(tmp_path / "cut.wav", hours=1.9)
    os.truncate(path, 44 + 100)
    seen = []
    assert peak_megabytes(lambda: seen.append(load_audio(path)[0])) < 5
    assert seen[0].size == 200


@functools.cache
def small(form: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(440.0, 8_000, 0.05), 8_000, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
)
@settings(max_examples=60)
@given(data=some.data())
def test_damaged_files_are_read_or_refused(form, subtype, data):
    raw = bytearray(small(form, subtype))
    # Headers are short and matter most, so half of the damage is there.
    places = some.one_of(some.integers(0, 80), some.integers(0, len(raw) - 1))
    for place, byte in data.draw(some.lists(some.tuples(places, some.integers(0, 255)), max_size=6)):
        raw[place] = byte
    keep = data.draw(some.one_of(some.just(len(raw)), some.integers(0, len(raw))))
    read_or_refused(bytes(raw[:keep]))


@given(some.binary(max_size=300))
def test_bytes_that_are_no_sound_are_refused(raw):
    read_or_refused(raw)


def read_or_refused(raw):
    try:
        samples, _ = load_audio(raw, longest_seconds=60)
    except InputError as error:
        assert str(error).startswith(f"got {len(raw)} bytes") and "\n" not in str(error)
    else:
        assert 0 < samples.size <= 61 * SAMPLE_RATE and np.isfinite(samples).all()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(("length", "hop"), [(480_000, None), (7_000, None), (7_000, 2_500), (100_000, 1)])
def test_a_stream_gives_the_windows_of_the_whole(tmp_path, rate, length, hop):
    # longer than one block of the reader
    sound = 0.1 * np.random.default_rng(0).standard_normal(300_000 if hop != 1 else 80_000 * rate // SAMPLE_RATE)
    path = written(tmp_path, sound, rate)
    samples, _ = load_audio(path)
    expected, offsets = windows(samples, length=length, hop=hop)
    streamed = list(stream_windows(path, length=length, hop=hop))
    assert [offset for offset, _ in streamed] == offsets.tolist()
    assert all(np.array_equal(window, row) for (_, window), row in zip(streamed, expected, strict=True))


@given(some.integers(1, 40), some.integers(1, 12), some.integers(1, 12))
def test_windows_cover_every_sample_and_none_is_needless(n, length, hop):
    hop = min(hop, length)
    samples = np.arange(1.0, n + 1)
    cut, offsets = windows(samples, length=length, hop=hop)
    padded = np.pad(samples, (0, length + hop))
    assert offsets.tolist() == list(range(0, hop * len(offsets), hop))
    assert all(np.array_equal(row, padded[start : start + length]) for row, start in zip(cut, offsets, strict=True))
    assert offsets[-1] + length >= n
    assert len(offsets) == 1 or offsets[-2] + length < n


def test_windows_of_a_jax_array_pass_gradients():
    x = jnp.arange(1.0, 8.0)
    cut, offsets = windows(x, length=4, hop=3)
    assert isinstance(cut, jax.Array) and np.array_equal(cut, windows(np.asarray(x), length=4, hop=3)[0])
    count = jax.grad(lambda x: windows(x, length=4, hop=3)[0].sum())(x)
    assert count.tolist() == [1, 1, 1, 2, 1, 1, 1] and offsets.tolist() == [0, 3]


@pytest.mark.parametrize("arguments", [{"length": 0}, {"hop": 0}, {"length": 4, "hop": 5}, {"hop": -1}])
def test_windows_refuse_nonsense(tmp_path, arguments):
    with pytest.raises(InputError, match="1 <= hop <= length"):
        windows(np.ones(3), **arguments)
    with pytest.raises(InputError, match="1 <= hop <= length"):
        next(stream_windows(written(tmp_path, [0.5]), **arguments))
    with pytest.raises(InputError, match="no samples"):
        windows(np.zeros(0))


def test_saved_samples_come_back_and_carry_no_time(tmp_path):
    samples = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 3
    first, second = (save_audio(tmp_path / name, samples) for name in ("a.wav", "b.wav"))
    assert np.array_equal(load_audio(first)[0], samples)
    assert first.read_bytes() == second.read_bytes()
    assert soundfile.info(first).subtype == "FLOAT" and sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.wav"]
    for bad in (np.zeros(0), np.array([np.nan])):
        with pytest.raises(InputError, match="finite"):
            save_audio(first, bad)
    assert np.array_equal(load_audio(first)[0], samples)


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


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_single_precision_is_double_precision_rounded(scale):
    # a loud tone beside silence, where a float32 FFT is 1e-4 off
    x = scale * (tone(440.0, SAMPLE_RATE, 0.2) + 1e-5 * np.random.default_rng(1).standard_normal(3200))
    x = x.astype(np.float32)
    single, double = log_mel(x, 128, length=3200), log_mel(x.astype(np.float64), 128, length=3200)
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert np.abs(np.asarray(single) - np.asarray(double)).max() < 1e-6


def test_other_dtypes_and_windows_are_refused():
    x = np.zeros(3200)
    for dtype in (np.float16, np.int16):
        with pytest.raises(InputError, match="dtype"):
            log_mel(np.zeros(10, dtype))
    with pytest.raises(InputError, match="window"):
        log_mel(x, length=HOP + 1)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gradient_reaches_the_waveform(n_mels, dtype):
    draw = np.random.default_rng(2)
    x, direction, weights = draw.standard_normal(1600), draw.standard_normal(1600), draw.standard_normal((n_mels, 10))
    loss = lambda x: jnp.sum(weights * log_mel(x, n_mels, length=1600))
    step = 1e-6
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    given = jnp.asarray(x, dtype), jnp.asarray(direction, dtype)
    _, slope = jax.jvp(loss, given[:1], given[1:])
    gradient = jax.grad(loss)(given[0])
    exact = dtype == np.float64
    assert gradient.dtype == dtype
    assert abs(slope - difference) < (1e-6 if exact else 1e-4) * abs(slope)
    assert abs(jnp.vdot(gradient, given[1]) - slope) < (1e-10 if exact else 1e-4) * abs(slope)


def test_batches_by_vmap():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((3, 800)))
    for dtype, allowed in ((np.float64, 1e-12), (np.float32, 1e-6)):
        batched = jax.vmap(lambda x: log_mel(x, length=800))(x.astype(dtype))
        alone = log_mel(x[1].astype(dtype), length=800)
        assert batched.dtype == dtype and np.abs(np.asarray(batched[1] - alone)).max() < allowed
