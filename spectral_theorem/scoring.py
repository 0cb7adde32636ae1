"""Count word errors of a transcript, after the normalisation that the Whisper papers score with."""

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence

from .types import refuse

NORMALISERS = ("english", "basic", "digits", "none")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class WordErrors:
    """Count what turns a reference into a hypothesis, in words; counts of clips add up.

    Parameters
    ----------
    hits, substitutions, deletions, insertions : words, of the alignment with fewest errors.

    Examples
    --------
    >>> total = WordErrors(3, 1, 0, 0) + WordErrors(0, 0, 0, 2)
    >>> total.reference_words, total.errors, total.rate
    (4, 3, 0.75)
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def reference_words(self) -> int:
        """Words of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per word of the reference; without one, 0 if nothing was inserted, else infinity."""
        if self.reference_words:
            return self.errors / self.reference_words
        return math.inf if self.insertions else 0.0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def normalise(text: str, how: str = "english") -> str:
    """Bring a transcript to the form in which words are compared.

    Parameters
    ----------
    text : a transcript.
    how : "english" is Whisper's normaliser for English: lower case, no punctuation or fillers, American
        spelling, contractions expanded, numbers as digits. "basic" is the one for every language:
        lower case, no punctuation. "digits" is "basic", then every digit a word of its own, spelled
        out. "none" only collapses spaces.

    Returns
    -------
    str
        Words separated by single spaces.

    Raises
    ------
    InputError
        On another name, or when whisper-normalizer is not installed.

    Notes
    -----
    Score strings of digits with "digits". "english" joins "zero one two" to the single word "012",
    yet makes "0 one 2" of "0 1 2": one wrong digit would cost the whole string, and how a model
    spells would count as an error. Under "digits", "2" and "two" are one word, and "012" is three.

    References
    ----------
    A. Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, appendix C.

    Examples
    --------
    >>> normalise("Zero one TWO."), normalise("0, 1, 2.", "digits")
    ('012', 'zero one two')
    """
    if how not in NORMALISERS:
        refuse(f"the normaliser {how!r}", f"one of {', '.join(NORMALISERS)}", "english")
    if how != "none":
        text = _whisper_normaliser("basic" if how == "digits" else how)(text)
    if how == "digits":
        text = re.sub(r"[0-9]", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
    return " ".join(text.split())


@functools.cache
def _whisper_normaliser(how: str) -> Callable[[str], str]:
    try:
        with warnings.catch_warnings():
            # its source has an escape that Python does not know, and says so whenever it is compiled
            for category in (DeprecationWarning, SyntaxWarning):
                warnings.simplefilter("ignore", category)
            from whisper_normalizer.basic import BasicTextNormalizer
            from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        refuse(
            "no whisper-normalizer", "the extra that reads and scores speech", "pip install spectral-theorem[whisper]"
        )
    return EnglishTextNormalizer() if how == "english" else BasicTextNormalizer()


def word_errors(reference: str, hypothesis: str, *, how: str = "english") -> WordErrors:
    """Count the word errors of one clip.

    Parameters
    ----------
    reference : what was said; empty for a clip without speech, where every word is an insertion.
    hypothesis : what a model made of it.
    how : normaliser of both, as `normalise` takes it.

    Returns
    -------
    WordErrors

    Raises
    ------
    InputError
        As `normalise` does, or when jiwer is not installed.

    Examples
    --------
    >>> word_errors("The cat sat.", "the cat sat down")
    WordErrors(hits=3, substitutions=0, deletions=0, insertions=1)
    >>> word_errors("", "thanks for watching").rate
    inf
    """
    said, heard = normalise(reference, how), normalise(hypothesis, how)
    if not said or not heard:
        return WordErrors(deletions=len(said.split()), insertions=len(heard.split()))
    try:
        import jiwer
    except ImportError:
        refuse("no jiwer", "the extra for speech", "pip install spectral-theorem[whisper]")
    found = jiwer.process_words(said, heard)
    return WordErrors(found.hits, found.substitutions, found.deletions, found.insertions)


def corpus_errors(pairs: Iterable[tuple[str, str]], *, how: str = "english") -> WordErrors:
    """Add up the word errors of many clips.

    Parameters
    ----------
    pairs : (reference, hypothesis) of every clip.
    how : normaliser, as `normalise` takes it.

    Returns
    -------
    WordErrors
        Its rate weighs clips by their words; insertions on clips without speech count.

    Examples
    --------
    >>> corpus_errors([("one two", "one"), ("", "you")], how="basic").rate
    1.0
    """
    return sum((word_errors(reference, hypothesis, how=how) for reference, hypothesis in pairs), WordErrors())


def longest_loop(text: str, *, longest_phrase: int = 12) -> tuple[str, int]:
    """Find the phrase that a transcript repeats most often without a break.

    Parameters
    ----------
    text : a transcript, normalised if case and punctuation are not to count.
    longest_phrase : words of the longest phrase to look for.

    Returns
    -------
    phrase : str
        Of the most repetitions; the shortest, then the first, of equals. Empty for an empty text.
    times : int
        1 when nothing repeats, 0 for an empty text.

    Notes
    -----
    Looping is how a decoder that no longer listens often sounds; a loop needs no reference to see.

    Examples
    --------
    >>> longest_loop("so we go and we go and we go home")
    ('we go and', 2)
    """
    words = text.split()
    if not words:
        return "", 0
    best, times = words[0], 1
    for size in range(1, min(longest_phrase, len(words) // 2) + 1):
        for start, run in _runs(words, size):
            if run // size + 1 > times:
                best, times = " ".join(words[start : start + size]), run // size + 1
    return best, times


def _runs(words: Sequence[str], size: int) -> Iterable[tuple[int, int]]:
    """List every stretch of words that equal the words `size` before them, as (start, length)."""
    start, run = 0, 0
    for index in range(size, len(words)):
        if words[index] == words[index - size]:
            run += 1
            continue
        yield start, run
        start, run = index - size + 1, 0
    yield start, run
