"""Greedy decoding against a plain loop, and transcripts of real digits."""

import csv
import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_theorem import whisper
from spectral_theorem.audio import concatenate, load_audio
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Dims, Generation

DIMS = Dims(
    width=16,
    mels=8,
    frames=7,
    vocabulary=11,
    positions=16,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=20,
    decoder_layers=2,
    decoder_heads=4,
    decoder_hidden=24,
)
GENERATION = Generation(prompt=(9, 3), end=10, suppress=(9, 0), suppress_first=(10, 5), longest=14, no_speech=1)


@pytest.fixture(scope="module")
def model():
    return whisper.random_model(jax.random.key(4), DIMS, dtype="float64", generation=GENERATION)


@pytest.fixture(scope="module")
def contexts(model):
    return 2.0 * jax.random.normal(jax.random.key(5), (6, 7, 16), "float64")


@pytest.fixture(scope="module")
def decoded(model, contexts):
    return whisper.greedy(model, contexts)


def plain_greedy(model, context):
    """Decode without cache, by the whole-sequence logits, in NumPy."""
    settings = model.generation
    run = jax.jit(model.logits)
    sequence, scores = list(settings.prompt), []
    while len(sequence) < settings.longest:
        padded = jnp.asarray(sequence + [0] * (settings.longest - len(sequence)))
        logits = np.asarray(run(padded, context))
        row = logits[len(sequence) - 1].copy()
        row[list(settings.suppress)] = -np.inf
        if not scores:
            row[list(settings.suppress_first)] = -np.inf
        row -= np.log(np.exp(row).sum())
        sequence.append(int(row.argmax()))
        scores.append(row.max())
        if sequence[-1] == settings.end:
            break
    first = np.exp(logits[0] - logits[0].max())
    return sequence, scores, first[settings.no_speech] / first.sum()


def test_cached_decoding_equals_a_plain_loop(model, contexts, decoded):
    results = whisper.transcriptions(model, decoded, [0.0] * 6)
    for context, result in zip(contexts, results, strict=True):
        sequence, scores, no_speech = plain_greedy(model, context)
        assert list(result.sequence) == sequence
        assert np.abs(np.asarray(result.token_logprobs) - scores).max() < 1e-12
        assert abs(result.no_speech_prob - no_speech) < 1e-12
        assert result.finished == (sequence[-1] == 10)
        assert result.tokens == tuple(t for t in sequence[2:] if t != 10)
        assert abs(result.avg_logprob - sum(scores) / (len(result.tokens) + 1)) < 1e-12
    assert {result.finished for result in results} == {True, False}
    assert len({result.sequence for result in results}) > 2


def test_suppressed_tokens_never_appear(decoded):
    generated = np.asarray(decoded.tokens)[:, 2:]
    assert not np.isin(generated, [9, 0]).any()
    assert not np.isin(generated[:, 0], [10, 5]).any()


def test_steps_and_positions(model, decoded):
    result = whisper.transcriptions(model, decoded, [0.0] * 6)[0]
    assert result.steps == len(result.sequence) - 2 == len(result.token_logprobs)
    assert [result.position(step) for step in (0, result.steps - 1)] == [1, result.steps]
    for step in (-1, result.steps):
        with pytest.raises(InputError, match=f"step {step}"):
            result.position(step)


def test_text_statistics_without_tokenizer(model, decoded):
    result = whisper.transcriptions(model, decoded, [1.5] * 6)[0]
    assert result.text == " ".join(f"<{id}>" for id in result.tokens)
    assert result.compression_ratio == len(result.text) / len(zlib.compress(result.text.encode()))
    assert result.duration == 1.5


def test_vocabulary_without_no_speech_token_says_none(model, decoded):
    silent = dataclasses.replace(decoded, no_speech=jnp.full(6, jnp.nan))
    assert whisper.transcriptions(model, silent, [0.0] * 6)[0].no_speech_prob is None


@pytest.mark.parametrize(
    ("audio", "word"),
    [
        (np.zeros(0), "empty"),
        (np.asarray([0.0, np.nan]), "not finite"),
        (np.zeros((2, 3)), "shape"),
        (np.zeros(3, np.int16), "int16"),
        ("/nowhere.wav", "does not exist"),
    ],
)
def test_unusable_audio_is_refused(model, audio, word):
    with pytest.raises(InputError, match=word):
        whisper.transcribe(model, audio)


def test_one_window_is_encoded_and_no_more(model):
    with pytest.raises(InputError, match=r"at most one window, 0\.14 s"):
        whisper.encode_audio(model, np.zeros(7 * 2 * 160 + 1))


def test_a_window_of_sound_is_transcribed(model):
    sound = 0.1 * np.random.default_rng(0).standard_normal(7 * 2 * 160)
    result = whisper.transcribe(model, sound)
    assert result.duration == 0.14
    (window,) = result.windows
    alone = whisper.transcriptions(model, whisper.greedy(model, whisper.encode_audio(model, sound)[0][None]), [0.14])
    assert window == alone[0]
    assert result.tokens == window.tokens and result.avg_logprob == window.avg_logprob
    assert result.no_speech_prob == window.no_speech_prob and result.text == window.text


# Real digits. The model knows thirteen words, so its transcripts mean something on digits only.


@pytest.fixture(scope="module")
def digits(shared):
    return whisper.load(shared / "models" / "whisper-tiny.en-digits")


@pytest.fixture(scope="module")
def recordings(shared):
    with (shared / "data" / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("fsdd/")]
    return {row["utterance_id"]: (shared / "data" / row["path"], row["transcript"]) for row in rows}


STRINGS = (
    "7_jackson_0 3_jackson_1",
    "0_george_2 1_george_0 2_george_4",
    "3_lucas_0 9_lucas_1 5_lucas_2 4_lucas_0",
)


@pytest.mark.parametrize("string", STRINGS)
def test_digit_strings_are_heard(digits, recordings, string):
    clips = [recordings[name] for name in string.split()]
    result = whisper.transcribe(digits, concatenate([load_audio(path)[0] for path, _ in clips], gap_seconds=0.1))
    assert result.text == " ".join(word for _, word in clips)
    assert result.finished
    assert result.windows[0].sequence[:2] == (11, 12)
    assert result.windows[0].sequence[-1] == 10
    assert result.no_speech_prob is None


def test_single_digit_file_is_heard(digits, recordings):
    path, word = recordings["7_jackson_0"]
    assert whisper.transcribe(digits, path).text == word


@pytest.mark.slow
def test_long_recordings_are_read_in_windows(digits, recordings):
    """A vocabulary without timestamps: digits in the second window are heard there."""
    first, second = (load_audio(recordings[name][0])[0] for name in ("7_jackson_0", "3_lucas_0"))
    sound = np.zeros(40 * 16_000, np.float32)
    sound[: first.size], sound[30 * 16_000 : 30 * 16_000 + second.size] = first, second
    result = whisper.transcribe(digits, sound)
    assert [(s.text, s.start, s.end) for s in result.segments] == [("seven", 0.0, 30.0), ("three", 30.0, 40.0)]
    assert result.text == "seven three" and result.duration == 40.0


def test_tokenizer_of_words_puts_spaces(digits):
    assert digits.tokenizer.decode([11, 12, 1, 2, 3, 10]) == "one two three"
    assert digits.tokenizer.encode("one two three") == [1, 2, 3]
    assert digits.tokenizer.special == {"<|endoftext|>": 10, "<|startoftranscript|>": 11, "<|notimestamps|>": 12}


def test_tokenizer_of_the_multilingual_vocabulary(shared):
    tokenizer = whisper.Tokenizer(shared / "models" / "whisper-tokenizer" / "tokenizer.json")
    text = "And so, my fellow Americans — größer, 日本語, 12.5%"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    special = tokenizer.special
    assert special["<|startoftranscript|>"] == special["<|endoftext|>"] + 1
    assert tokenizer.size == 51_864
    inner = tokenizer.encode(" hello")
    marked = [
        special["<|startoftranscript|>"],
        special["<|en|>"],
        special["<|0.00|>"],
        *inner,
        special["<|endoftext|>"],
    ]
    assert tokenizer.decode(marked) == "hello"
    assert tokenizer.token(special["<|0.00|>"]) == "<|0.00|>"


@pytest.mark.parametrize("content", [None, "", "{}", "[1, 2]", '{"version": "1.0", "model": {"type": "Nonsense"}}'])
def test_files_that_are_no_tokenizer_are_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        whisper.Tokenizer(path)
    assert "\n" not in str(error.value)
