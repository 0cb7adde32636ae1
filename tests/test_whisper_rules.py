"""Which tokens may follow, how prompts are built, where windows are cut: rules against their plain wording."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from spectral_theorem import whisper
from spectral_theorem.types import InputError
from spectral_theorem.whisper import FALLBACK, DecodingOptions, Dims, Generation
from spectral_theorem.whisper.generation import read_generation
from spectral_theorem.whisper.prompts import prompt_head, prompt_tail
from spectral_theorem.whisper.rules import forbidden, keep_timestamps
from spectral_theorem.whisper.stitch import Piece, pieces

FIRST, END, SIZE = 8, 5, 16  # text 0-4, end 5, control 6-7, timestamps 8-15


def plainly(logits, generated, limit):
    """Apply the rules of timestamps one after the other, as they are told."""
    logits = logits.copy()
    last = generated[-1] if generated else None
    before = generated[-2] if len(generated) > 1 else None
    times = [id for id in generated if id >= FIRST]
    if last is None:
        logits[:FIRST] = -np.inf
        if limit is not None:
            logits[FIRST + limit + 1 :] = -np.inf
    elif last >= FIRST and (before is None or before >= FIRST):
        logits[FIRST:] = -np.inf
    elif last >= FIRST:
        logits[:END] = -np.inf
    if times:
        partner = last >= FIRST and before is not None and before < FIRST
        logits[FIRST : times[-1] if partner else times[-1] + 1] = -np.inf
    if np.logaddexp.reduce(logits[FIRST:]) > logits[:FIRST].max():
        logits[:FIRST] = -np.inf
    return logits


rule = jax.jit(
    lambda logits, last, before, latest, limit: keep_timestamps(
        logits, last, before, latest, first=FIRST, end=END, initial_limit=limit
    ),
    static_argnums=4,
)


@settings(max_examples=200)
@given(
    some.lists(some.integers(0, SIZE - 1), max_size=6),
    some.integers(0, 2**31 - 1),
    some.sampled_from([None, 0, 3]),
    some.sampled_from([0.1, 1.0, 10.0]),
)
def test_timestamps_keep_the_rules(generated, seed, limit, scale):
    logits = scale * np.random.default_rng(seed).standard_normal(SIZE)
    at = lambda back: generated[-back] if len(generated) >= back else -1
    latest = next((id for id in reversed(generated) if id >= FIRST), -1)
    found = rule(jnp.asarray(logits), *map(jnp.asarray, (at(1), at(2), latest)), limit)
    expected = plainly(logits, generated, limit)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_the_sum_of_timestamps_outweighs_one_word():
    logits = np.full(SIZE, -5.0)
    logits[0], logits[FIRST + 2 :] = 1.0, 0.0  # six timestamps at 0 are together likelier than one word at 1
    found = np.asarray(rule(jnp.asarray(logits), *map(jnp.asarray, (1, 9, 9)), None))
    assert (found[:FIRST] == -np.inf).all() and found[FIRST + 2] == 0.0
    logits[0] = 2.0
    assert np.asarray(rule(jnp.asarray(logits), *map(jnp.asarray, (1, 9, 9)), None))[0] == 2.0


def test_forbidden_ids():
    assert np.asarray(forbidden(4, (1, 3), "float64")).tolist() == [0.0, -np.inf, 0.0, -np.inf]


# Where windows are cut. Timestamps are ids from 50 on, 0.02 s apart.


@pytest.mark.parametrize(
    ("tokens", "cut", "advance"),
    [
        ([50, 1, 2, 60, 60, 3, 70, 70], [(0.0, 0.2, (50, 1, 2, 60)), (0.2, 0.4, (60, 3, 70))], 0.4),
        ([50, 1, 60, 60, 3], [(0.0, 0.2, (50, 1, 60))], 0.2),
        ([50, 1, 60, 65, 3, 70], [(0.0, 0.2, (50, 1, 60)), (0.3, 0.4, (65, 3, 70))], 30.0),
        ([50, 1, 60], [(0.0, 0.2, (50, 1, 60))], 30.0),
        ([55, 1, 60], [(0.1, 0.2, (55, 1, 60))], 30.0),
        ([50, 1, 2], [(0.0, 7.0, (50, 1, 2))], 30.0),
        ([1, 2], [(0.0, 7.0, (1, 2))], 30.0),
        ([], [(0.0, 7.0, ())], 30.0),
        ([50, 50], [(0.0, 0.0, (50,))], 30.0),
    ],
)
def test_windows_are_cut_at_pairs(tokens, cut, advance):
    assert pieces(tokens, 50, 7.0, 30.0) == ([Piece(*piece) for piece in cut], advance)


def test_without_timestamps_a_window_is_one_piece():
    assert pieces([50, 50, 1], None, 7.0, 30.0) == ([Piece(0.0, 7.0, (50, 50, 1))], 30.0)


@given(some.lists(some.integers(45, 60), max_size=12))
def test_every_window_advances_and_repeats_nothing(tokens):
    cut, advance = pieces(tokens, 50, 7.0, 30.0)
    assert advance > 0
    joined = [id for piece in cut for id in piece.tokens]
    assert joined == tokens[: len(joined)]


# Prompts and options.

KNOWN = Generation(
    prompt=(20, 21, 31, 40),
    end=10,
    languages=(("en", 21), ("de", 22)),
    tasks=(("transcribe", 31), ("translate", 30)),
    no_timestamps=40,
    first_timestamp=50,
    previous=41,
)


def test_prompts_of_a_multilingual_model():
    assert prompt_tail(KNOWN) == (20, 21, 31, 40)
    assert prompt_tail(KNOWN, language="de", task="translate", timestamps=True) == (20, 22, 30)
    assert prompt_tail(Generation((20,), 10, languages=KNOWN.languages), language="de") == (20, 22)
    with pytest.raises(InputError, match="language='xx'; expected one of en, de"):
        prompt_tail(KNOWN, language="xx")


def test_prompts_of_an_english_model():
    english = Generation((11, 12), 10, no_timestamps=12)
    assert prompt_tail(english, language="en", task="transcribe") == (11, 12)
    for wrong in ({"language": "de"}, {"task": "translate"}, {"timestamps": True}):
        with pytest.raises(InputError):
            prompt_tail(english, **wrong)


def test_earlier_text_is_cut_at_the_left():
    assert prompt_head(KNOWN, range(100), room=4) == (41, 97, 98, 99)
    assert prompt_head(KNOWN, [], room=4) == prompt_head(Generation((1,), 0), [1], room=4) == ()
    assert prompt_head(KNOWN, [1], room=0) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "sing"},
        {"temperatures": ()},
        {"temperatures": (-0.1,)},
        {"temperatures": (float("nan"),)},
        {"max_initial_timestamp": -1.0},
        {"longest": 0},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InputError) as error:
        DecodingOptions(**wrong)
    assert "\n" not in str(error.value)


def test_the_customary_temperatures():
    assert FALLBACK == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def test_control_tokens_of_the_published_vocabulary(shared):
    tokenizer = whisper.Tokenizer(shared / "models" / "whisper-tokenizer" / "tokenizer.json")
    assert len(tokenizer.languages) == 99
    assert list(tokenizer.languages)[:2] == ["en", "zh"] and "haw" in tokenizer.languages
    assert tokenizer.tasks == {"transcribe": 50358, "translate": 50357}
    assert tokenizer.first_timestamp == 50363 == tokenizer.special["<|notimestamps|>"] + 1
    assert tokenizer.special["<|30.00|>"] == tokenizer.first_timestamp + 1500
    inner = tokenizer.encode(" hello")
    assert tokenizer.decode([50257, 50258, 50358, 50363, *inner, 50413, 50413, 99_999]) == "hello"


def multilingual_tokenizer(folder, languages):
    """Write a vocabulary in the published layout: the files of older models leave timestamps without names."""
    codes = ["en", *(f"{chr(97 + i // 26)}{chr(97 + i % 26)}x" for i in range(languages - 1))]
    after = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    names = [f"<|{name}|>" for name in ("endoftext", "startoftranscript", *codes, *after)]
    words = [f"w{i}" for i in range(50_257)] + names
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": 50_257 + i, "content": name, "special": True, **flags} for i, name in enumerate(names)]
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    vocabulary = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": names[0]}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", **nothing, "added_tokens": added, "model": vocabulary}))
    return whisper.Tokenizer(path)


@pytest.mark.parametrize(("languages", "vocabulary"), [(99, 51_865), (100, 51_866)])
def test_both_multilingual_layouts(tmp_path, languages, vocabulary):
    dims = Dims(
        width=2,
        mels=2,
        frames=2,
        vocabulary=vocabulary,
        positions=448,
        encoder_layers=1,
        encoder_heads=1,
        encoder_hidden=2,
        decoder_layers=1,
        decoder_heads=1,
        decoder_hidden=2,
    )
    described = {
        "decoder_start_token_id": 50_258,
        "eos_token_id": 50_257,
        "forced_decoder_ids": [[1, None], [2, 50_259 + languages + 1]],
        "is_multilingual": True,
        "max_length": 448,
    }
    found = read_generation(described, dims, multilingual_tokenizer(tmp_path, languages))
    assert found.first_timestamp == vocabulary - 1501
    assert found.no_timestamps == found.first_timestamp - 1
    assert found.no_speech == found.first_timestamp - 2 and found.previous == found.first_timestamp - 3
    assert found.language is None and found.multilingual and len(found.languages) == languages
    assert prompt_tail(found, timestamps=True) == (50_258, 50_259, 50_259 + languages + 1)
