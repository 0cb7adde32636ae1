"""Distortions and recipes: exact levels, durations, repeatability."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from spectral_theorem import distortions
from spectral_theorem.audio import SAMPLE_RATE
from spectral_theorem.stress import (
    HELL,
    Babble,
    Noise,
    NonSpeech,
    Recipe,
    Silence,
    Stretch,
    babble,
    kept,
    non_speech,
    parse,
    pick_talkers,
    silence,
    speech_level,
    stress,
    time_stretch,
    white_noise,
)
from spectral_theorem.types import InputError


def tone(frequency, seconds=1.0, size=0.3):
    return size * np.sin(2 * np.pi * frequency * np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE)


def words(seed, seconds=1.5):
    """Bursts of noise with pauses between them, as different voices of one loudness curve."""
    n = round(SAMPLE_RATE * seconds)
    bursts = np.maximum(np.sin(2 * np.pi * 3 * np.arange(n) / SAMPLE_RATE + seed), 0.0) ** 2
    return bursts * np.random.default_rng(seed).standard_normal(n) * 0.1


def rms(x):
    return math.sqrt(np.mean(np.square(x, dtype=np.float64)))


@dataclasses.dataclass(frozen=True)
class Voice:
    name: str
    speaker: str
    samples: np.ndarray = dataclasses.field(compare=False)
    licence: str = ""

    def load(self):
        return self.samples


PEOPLE = [
    Voice(f"{who}{take}", who, words(10 * index + take)) for index, who in enumerate("abcdefgh") for take in (0, 1)
]
SOUNDS = [Voice(f"s{index}", "", tone(300.0 * index + 200.0)) for index in range(3)]


# ---- levels


def test_the_speech_level_leaves_out_pauses():
    speech = tone(500.0, 0.4)  # whole frames of whole periods
    assert speech_level(speech) == pytest.approx(rms(speech), rel=1e-6)
    with_pauses = np.concatenate([np.zeros(6400), speech, np.zeros(12_800), speech, np.zeros(100)])
    assert speech_level(with_pauses) == pytest.approx(speech_level(speech), rel=1e-12)
    assert rms(with_pauses) < 0.7 * rms(speech)


@pytest.mark.parametrize(("quiet_db", "counts"), [(-29.9, True), (-30.1, False)])
def test_a_frame_is_active_within_30_db_of_the_loudest(quiet_db, counts):
    loud, quiet = np.full(320, 0.5), np.full(320, 0.5 * 10 ** (quiet_db / 20))
    expected = rms(np.concatenate([loud, quiet])) if counts else 0.5
    assert speech_level(np.concatenate([loud, quiet])) == pytest.approx(expected, rel=1e-6)


@given(some.floats(1e-6, 1e6))
def test_the_speech_level_scales(size):
    assert speech_level(size * words(0, 0.2)) == pytest.approx(size * speech_level(words(0, 0.2)), rel=1e-5)


@settings(max_examples=30)
@given(some.floats(-40, 60), some.integers(0, 2**32 - 1))
def test_the_snr_is_met_exactly(snr, seed):
    clip = words(1)
    noise = white_noise(seed, clip, snr=snr) - clip
    # float32 results: what is added to them is known to 6e-8 of the larger of the two
    assert 20 * math.log10(speech_level(clip) / rms(noise)) == pytest.approx(snr, abs=1e-3)


def test_the_noise_is_white_and_gaussian():
    noise = white_noise(3, tone(440.0, 4.0), snr=0) - tone(440.0, 4.0)
    spectrum = np.abs(np.fft.rfft(noise.reshape(-1, 400))) ** 2
    flat = spectrum[:, 1:-1].mean(0)
    assert flat.std() / flat.mean() < 0.15
    assert abs(np.mean((noise / rms(noise)) ** 4) - 3.0) < 0.1


@settings(max_examples=30)
@given(some.floats(-30, 30), some.integers(1, 6), some.integers(0, 1000))
def test_the_babble_has_its_level(level, count, seed):
    clip = words(2)
    added = babble(seed, clip, talkers=[words(20 + index, 0.7) for index in range(count)], level=level) - clip
    assert 20 * math.log10(speech_level(added) / speech_level(clip)) == pytest.approx(level, abs=1e-3)


def test_talkers_are_equally_loud_whatever_their_recordings():
    # tones of different size and length: each must come out with the same power
    talkers = [tone(300.0, 0.5, 0.9), tone(1100.0, 3.0, 0.001), tone(2500.0, 1.0, 0.05)]
    clip = tone(5000.0)
    added = babble(0, clip, talkers=talkers, level=0) - clip
    spectrum = np.abs(np.fft.rfft(added)) / added.size
    peaks = [spectrum[f - 5 : f + 6].max() for f in (300, 1100, 2500)]
    assert max(peaks) / min(peaks) < 1.05


def test_a_reference_replaces_the_clips_own_level():
    noise = white_noise(0, np.zeros(1000), snr=6, reference=0.1)
    assert rms(noise) == pytest.approx(0.1 * 10 ** (-6 / 20), rel=1e-6)


@pytest.mark.parametrize(
    "distort",
    [
        lambda x: white_noise(0, x),
        lambda x: babble(0, x, talkers=[words(0)]),
        lambda x: non_speech(0, x, recording=tone(200.0)),
    ],
)
def test_nothing_has_a_level_relative_to_silence(distort):
    with pytest.raises(InputError, match="a silent clip, to which"):
        distort(np.zeros(800))


def test_silent_talkers_and_sounds_are_refused():
    with pytest.raises(InputError, match="silent"):
        babble(0, words(0), talkers=[words(1), np.zeros(900)])
    with pytest.raises(InputError, match="silent"):
        non_speech(0, words(0), recording=np.zeros(900))
    with pytest.raises(InputError, match="no talkers"):
        babble(0, words(0), talkers=[])


def test_a_silent_stretch_of_a_sound_is_not_what_is_taken():
    bell = np.concatenate([tone(900.0, 0.2), np.zeros(400_000)])
    assert all(non_speech(seed, words(0, 0.5), recording=bell).any() for seed in range(5))


def test_replacements():
    clip = words(4)
    assert silence(clip).tolist() == [0.0] * clip.size
    other = non_speech(0, clip, recording=tone(700.0, 0.3), level=-10)
    assert other.size == clip.size
    assert 20 * math.log10(speech_level(other) / speech_level(clip)) == pytest.approx(-10, abs=1e-4)


def test_nothing_is_clipped():
    loud = tone(440.0, size=0.95)
    assert np.abs(white_noise(0, loud, snr=0)).max() > 1.5
    assert white_noise(0, loud).dtype == np.float32


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(0),
        np.zeros((2, 3)),
        np.array([0.1, np.nan]),
        np.array([np.inf, 0.1]),
        np.array([1, 2]),
        np.array([1e300]),
    ],
    ids=["empty", "matrix", "nan", "inf", "integers", "too large"],
)
def test_what_is_no_sound_is_refused(bad):
    for distort in (speech_level, silence, time_stretch, lambda x: white_noise(0, x)):
        with pytest.raises(InputError) as error:
            distort(bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 121.0, -1e9])
def test_absurd_decibels_are_refused(value):
    for distort in (
        lambda: white_noise(0, words(0), snr=value),
        lambda: babble(0, words(0), talkers=[words(1)], level=value),
        lambda: non_speech(0, words(0), recording=words(1), level=value),
        lambda: Noise(value),
        lambda: Babble(2, value),
        lambda: NonSpeech(value),
    ):
        with pytest.raises(InputError, match="decibels from -120 to 120"):
            distort()


# ---- stretch


@pytest.mark.parametrize("direction", ["slower", "faster"])
@pytest.mark.parametrize("factor", [1.0, 1.01, 1.9, 2.0, 3.5, 7.3])
@pytest.mark.parametrize("frequency", [150.0, 1000.0, 5000.0])
def test_a_stretched_sine_keeps_pitch_and_level(frequency, factor, direction):
    stretched = time_stretch(tone(frequency, 3.0), factor=factor, direction=direction)
    ratio = factor if direction == "slower" else 1 / factor
    assert stretched.size == round(48_000 * ratio)
    middle = stretched[stretched.size // 4 : 3 * stretched.size // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.size), 1 << 19))
    assert spectrum.argmax() * SAMPLE_RATE / (1 << 19) == pytest.approx(frequency, rel=0.01)
    assert rms(middle) == pytest.approx(0.3 / math.sqrt(2), rel=0.01)


@settings(max_examples=40)
@given(some.integers(1, 3000), some.floats(0.05, 20.0), some.sampled_from(["slower", "faster"]))
def test_the_duration_changes_by_the_factor_exactly(n, factor, direction):
    stretched = time_stretch(words(0, 0.2)[:n], factor=factor, direction=direction)
    assert stretched.size == max(1, round(min(n, 3200) * (factor if direction == "slower" else 1 / factor)))
    assert np.isfinite(stretched).all()


def test_events_keep_their_place():
    clip = np.zeros(32_000)
    clip[4_000:8_000] = tone(440.0, 0.25)
    for factor, direction, ratio in ((3.5, "slower", 3.5), (3.5, "faster", 1 / 3.5)):
        power = np.square(time_stretch(clip, factor=factor, direction=direction))
        centre = (np.arange(power.size) * power).sum() / power.sum()
        assert centre == pytest.approx(6_000 * ratio, abs=800)


@pytest.mark.parametrize("factor", [2.0, 3.5, 8.0])
def test_a_stretch_repeats_to_the_last_bit(factor):
    # The stretcher itself does not, beyond 2: it draws phases.
    clip = words(5)
    assert np.array_equal(time_stretch(clip, factor=factor), time_stretch(clip, factor=factor))


def test_steps_of_the_stretch_are_what_makes_it_repeat(monkeypatch):
    monkeypatch.setattr(distortions, "_LARGEST_STEP", 4.0)
    clip = words(5)
    assert not np.array_equal(time_stretch(clip, factor=3.5), time_stretch(clip, factor=3.5))


@pytest.mark.parametrize(
    ("arguments", "words_"),
    [
        ({"factor": 0}, "factor from 0.05 to 20"),
        ({"factor": -2}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"factor": 21}, "factor"),
        ({"factor": 2, "direction": "up"}, "slower or faster"),
    ],
)
def test_absurd_stretches_are_refused(arguments, words_):
    with pytest.raises(InputError, match=words_):
        time_stretch(words(0), **arguments)


def test_a_stretch_past_two_hours_is_refused():
    with pytest.raises(InputError, match="7200 s"):
        time_stretch(np.zeros(SAMPLE_RATE * 400, np.float32), factor=20)


# ---- repeatability


def test_a_seed_is_the_key_of_that_seed():
    clip = words(6)
    assert np.array_equal(white_noise(7, clip), white_noise(jax.random.key(7), clip))
    assert np.array_equal(white_noise(7, clip), white_noise(jax.random.PRNGKey(7), clip))
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match="seed"):
            white_noise(seed, clip)


def correlation(a, b):
    return abs(np.corrcoef(a, b)[0, 1])


def test_keys_give_independent_noise():
    clip = tone(440.0, 2.0)
    noises = [white_noise(key, clip) - clip for key in [*range(4), *jax.random.split(jax.random.key(0), 3)]]
    pairs = [correlation(a, b) for index, a in enumerate(noises) for b in noises[:index]]
    assert max(pairs) < 5 / math.sqrt(clip.size)


def test_a_stage_is_the_same_whatever_stands_beside_it():
    clip = words(7)
    run = lambda text: stress(0, clip, recipe=parse(text), name="c", talkers=PEOPLE, non_speech=SOUNDS)[0].astype(float)
    noise = run("noise=0") - clip
    talk = run("babble=3@0") - clip
    assert np.allclose(run("babble=3@0+noise=0"), clip + talk + noise, atol=1e-6)
    assert np.allclose(run("noise=0+babble=3@0"), clip + talk + noise, atol=1e-6)
    twice = run("noise=0+noise=0") - clip - noise
    assert correlation(twice, noise) < 0.05


def test_clips_of_other_names_get_other_noise():
    clip = words(7)
    run = lambda name: stress(0, clip, recipe=parse("noise=0"), name=name)[0] - clip
    assert np.array_equal(run("a"), run("a"))
    assert correlation(run("a"), run("b")) < 0.05


# ---- talkers


def test_talkers_are_other_people():
    for seed in range(20):
        chosen = pick_talkers(seed, PEOPLE, count=6, speaker="c")
        assert len({clip.speaker for clip in chosen}) == 6
        assert "c" not in {clip.speaker for clip in chosen}
    assert {clip.name for clip in pick_talkers(0, PEOPLE, count=8, but="a0")} >= {"a1"}
    assert len({tuple(clip.name for clip in pick_talkers(seed, PEOPLE, count=6)) for seed in range(20)}) > 15


def test_the_order_of_recordings_does_not_matter():
    assert pick_talkers(3, PEOPLE, count=5) == pick_talkers(3, PEOPLE[::-1], count=5)


def test_too_few_talkers_are_refused():
    with pytest.raises(InputError, match="7 speakers other than a; expected at least 8"):
        pick_talkers(0, PEOPLE, count=8, speaker="a")
    with pytest.raises(InputError, match="0 speakers other than the unknown one"):
        pick_talkers(0, SOUNDS, count=1)
    with pytest.raises(InputError, match="no recordings of other sounds"):
        stress(0, words(0), recipe=parse("nonspeech"))


# ---- recipes

STAGES = some.one_of(
    some.builds(Stretch, some.floats(0.05, 20.0), some.sampled_from(["slower", "faster"])),
    some.builds(Babble, some.integers(1, 100), some.floats(-120, 120)),
    some.builds(Noise, some.floats(-120, 120)),
    some.builds(NonSpeech, some.floats(-120, 120)),
    some.just(Silence()),
)


@given(some.lists(STAGES, max_size=4))
def test_a_recipe_reads_back_from_its_text(stages):
    recipe = Recipe(tuple(stages))
    assert parse(str(recipe)) == recipe
    assert str(parse(str(recipe))) == str(recipe)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("hell", "stretch=3.5+babble=6@0+noise=0"),
        ("clean", "clean"),
        (" stretch=2 + noise=-5", "stretch=2+noise=-5"),
        ("stretch=1.5@slower", "stretch=1.5"),
        ("stretch=1.5@faster+silence", "stretch=1.5@faster+silence"),
        ("babble=4+nonspeech", "babble=4@0+nonspeech=0"),
        ("babble=4@+3+noise=+1e+1", "babble=4@3+noise=10"),
        ("noise=-0", "noise=0"),
        ("hell+silence", "stretch=3.5+babble=6@0+noise=0+silence"),
    ],
)
def test_canonical_texts(text, canonical):
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "words_"),
    [
        ("", "''"),
        ("noise=", None),
        ("echo=3", "'echo=3' in the recipe"),
        ("noise=loud", "'noise=loud'"),
        ("noise=0@3", "'noise=0@3'"),
        ("babble=2.5", "'babble=2.5'"),
        ("babble=6@", "'babble=6@'"),
        ("babble=0", "0 talkers"),
        ("stretch=0", "a stretch by 0"),
        ("stretch=2@sideways", "'stretch=2@sideways'"),
        ("silence=3", "'silence=3'"),
        ("noise=nan", "decibels"),
        ("noise=0++noise=0", "noise=0\\+"),
        ("clean+noise=0", "'clean'"),
        ("hell=3", "'hell=3'"),
    ],
)
def test_recipes_that_are_none(text, words_):
    if words_ is None:
        assert str(parse(text)) == "noise=0"
        return
    with pytest.raises(InputError, match=words_) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_hell_is_stretch_then_babble_then_noise_relative_to_the_stretched_speech():
    clip = words(8)
    out, used = stress(5, clip, name="x", speaker="a", talkers=PEOPLE)
    slow = time_stretch(clip, factor=3.5)
    assert HELL == parse("hell") and out.size == slow.size
    assert len({voice.speaker for voice in used} - {"a"}) == 6
    run = lambda text: stress(5, clip, recipe=parse(text), name="x", speaker="a", talkers=PEOPLE)[0].astype(float)
    talk, noise = run("stretch=3.5+babble=6@0") - slow, run("stretch=3.5+noise=0") - slow
    assert np.allclose(out, slow + talk + noise, atol=1e-6)
    assert speech_level(talk) == pytest.approx(speech_level(slow), rel=1e-5)
    assert rms(noise) == pytest.approx(speech_level(slow), rel=1e-5)


def test_noise_alone_has_the_level_of_the_speech_it_replaced():
    clip = words(9)
    assert rms(stress(0, clip, recipe=parse("silence+noise=0"))[0]) == pytest.approx(speech_level(clip), rel=1e-5)


def test_what_a_recipe_says_of_itself():
    assert (HELL.talkers, HELL.replaces, HELL.needs_non_speech) == (6, False, False)
    other = parse("babble=2+babble=9+nonspeech")
    assert (other.talkers, other.replaces, other.needs_non_speech) == (9, True, True)
    assert parse("silence").replaces


def test_a_clean_recipe_changes_nothing():
    clip = words(0).astype(np.float32)
    assert np.array_equal(stress(0, clip, recipe=Recipe())[0], clip)


def test_clips_are_kept_when_more_than_half_of_the_words_are_wrong():
    assert not kept("one two", "one too", how="basic")
    assert kept("one two three", "one too tree", how="basic")
    assert kept("one two", "one too", threshold=0.4, how="basic")
    assert not kept("", "") and kept("", "thank you")
