"""Word errors: counts by hand, properties, normalisers, loops."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from spectral_theorem.scoring import DIGITS, WordErrors, corpus_errors, longest_loop, normalise, word_errors
from spectral_theorem.types import InputError

WORDS = some.lists(some.sampled_from(["go", "no", "cat", "dog", "rain"]), max_size=8)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", WordErrors(6, 0, 0, 0)),
        ("the cat sat on the mat", "the cat sit on mat", WordErrors(4, 1, 1, 0)),
        ("cat", "the cat sat", WordErrors(1, 0, 0, 2)),
        ("cat", "dog", WordErrors(0, 1, 0, 0)),
        ("one word here", "", WordErrors(0, 0, 3, 0)),
        ("", "thank you", WordErrors(0, 0, 0, 2)),
        ("", "", WordErrors()),
        ("...", "thank you", WordErrors(0, 0, 0, 2)),
    ],
)
def test_counts_by_hand(reference, hypothesis, expected):
    assert word_errors(reference, hypothesis, how="basic") == expected


def test_rates():
    assert word_errors("a b c d", "a x c d e", how="basic").rate == 0.5
    assert word_errors("cat", "the cat sat", how="basic").rate == 2.0
    assert word_errors("", "you", how="basic").rate == math.inf
    assert word_errors("", "", how="basic").rate == 0.0


def test_a_corpus_weighs_clips_by_words_and_counts_insertions_on_silence():
    pairs = [("a b c d e f g h", "a b c d e f g h"), ("x", "y"), ("", "thank you")]
    total = corpus_errors(pairs, how="basic")
    assert (total.reference_words, total.substitutions, total.insertions, total.rate) == (9, 1, 2, 3 / 9)
    assert corpus_errors([]) == WordErrors()


@given(WORDS)
def test_a_transcript_has_no_error_against_itself(words):
    found = word_errors(" ".join(words), " ".join(words), how="none")
    assert found == WordErrors(hits=len(words))


@given(WORDS, WORDS)
def test_counts_fit_both_sides_and_are_few(said, heard):
    found = word_errors(" ".join(said), " ".join(heard), how="none")
    assert found.reference_words == len(said)
    assert found.hits + found.substitutions + found.insertions == len(heard)
    assert abs(len(said) - len(heard)) <= found.errors <= max(len(said), len(heard))
    back = word_errors(" ".join(heard), " ".join(said), how="none")
    assert back.errors == found.errors


@given(WORDS, some.lists(some.just("extra"), max_size=4), some.integers(0, 8))
def test_inserted_words_are_counted_as_insertions(words, extra, where):
    heard = words[:where] + extra + words[where:]
    assert word_errors(" ".join(words), " ".join(heard), how="none") == WordErrors(len(words), 0, 0, len(extra))


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("Mr. Brown's colour, um, isn't $2!", "english", "mister brown is color is not $2"),
        ("Two cats", "english", "2 cats"),
        ("2 cats", "english", "2 cats"),
        ("Größe, bitte!", "basic", "größe bitte"),
        ("  As   is. ", "none", "As is."),
        ("zero one two", "english", "012"),
        ("0 1 2", "english", "0 one 2"),
        ("zero one two", "digits", "zero one two"),
        ("0, 1, 2.", "digits", "zero one two"),
        ("012", "digits", "zero one two"),
        ("Zero-ONE 2", "digits", "zero one two"),
        ("２", "digits", "two"),
    ],
)
def test_normalisers(text, how, expected):
    assert normalise(text, how) == expected


@given(some.lists(some.integers(0, 9), min_size=1, max_size=12), some.data())
def test_a_string_of_digits_reads_alike_however_it_is_written(digits, data):
    spelled = [DIGITS[digit] for digit in digits]
    written = [data.draw(some.sampled_from([DIGITS[d], DIGITS[d].title(), str(d), f"{d},"])) for d in digits]
    assert word_errors(" ".join(spelled), " ".join(written), how="digits") == WordErrors(hits=len(digits))
    assert normalise("".join(map(str, digits)), "digits") == " ".join(spelled)


def test_one_wrong_digit_is_one_error_only_with_digits():
    assert word_errors("one two three", "one two four", how="digits").rate == 1 / 3
    assert word_errors("one two three", "one two four", how="english").rate == 1.0


def test_an_unknown_normaliser_is_refused():
    with pytest.raises(InputError, match="english, basic, digits, none"):
        normalise("x", "french")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", 0)),
        ("one", ("one", 1)),
        ("so so so", ("so", 3)),
        ("and we go and we go and we go", ("and we go", 3)),
        ("a a b b b", ("b", 3)),
        ("x y x y z z", ("z", 2)),
        ("one two three", ("one", 1)),
    ],
)
def test_loops(text, expected):
    assert longest_loop(text) == expected


@given(WORDS.filter(bool), some.integers(2, 5))
def test_a_planted_loop_is_found(phrase, times):
    found, count = longest_loop(" ".join(["start", *phrase * times, "end"]))
    assert count >= times
    assert " ".join([found] * count) in " ".join(["start", *phrase * times, "end"])
