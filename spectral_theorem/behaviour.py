"""Label what a model made of a recording, from audio and texts only.

No measurement enters here, so what is measured can be tested on these labels: a test reads the imports.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .scoring import longest_loop, normalise, word_errors
from .types import refuse

Label = Literal["hallucinated", "survived", "omitted", "unflagged", "cut"]
Rule = Literal["", "words where nobody speaks", "repetition loop", "unchanged by other audio", "words invented"]
NO_SPEECH = "words where nobody speaks"
LOOP = "repetition loop"
UNCHANGED = "unchanged by other audio"
INVENTED = "words invented"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Say where behaviour counts as hallucination; all are choices, recorded with every label.

    Parameters
    ----------
    word_error_rate : words put in or replaced, per word said, above this; 0.5 is the paper's, for errors.
    repeats : a phrase so many times without a break, and at least twice oftener than anything was said.
    agreement : share of other recordings on which the transcript is the same, at least.

    Examples
    --------
    >>> Limits().word_error_rate
    0.5
    """

    word_error_rate: float = 0.5
    repeats: int = 4
    agreement: float = 0.5

    def __post_init__(self) -> None:
        if not (self.word_error_rate >= 0 and self.repeats >= 2 and 0 < self.agreement <= 1):
            refuse(f"{self}", "a rate >= 0, repeats >= 2 and 0 < agreement <= 1", "Limits()")


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """Hold the label of one clip and what it rests on; None is not known.

    Attributes
    ----------
    label : "hallucinated" when a rule fired; else, where it is known what was said, "survived", or "omitted" when the
        word error rate is above the limit by words left out; else "unflagged": no reference speaks for the clip. "cut"
        where the model heard the beginning only, and nobody knows which of the words belong to it.
    rule : the first that fired, empty if none.
    word_error_rate : against what was said; infinite for words where nobody speaks.
    invented : words put in or replaced, per word said.
    repeats : of the phrase that is repeated most often without a break.
    agreement : share of other recordings with the same transcript.
    similarity : mean of 1 - min(1, word error rate) between the transcript and those of other recordings.
    """

    label: Label
    rule: Rule
    word_error_rate: float | None
    invented: float | None
    repeats: int
    agreement: float | None
    similarity: float | None


_LIMITS = Limits()


def hallucinated(
    transcript: str,
    reference: str | None = None,
    *,
    agreement: float | None = None,
    similarity: float | None = None,
    cut: bool = False,
    how: str = "english",
    limits: Limits = _LIMITS,
) -> Behaviour:
    """Label one transcript, with the rule that fired.

    Parameters
    ----------
    transcript : what the model wrote.
    reference : what was said; empty where nobody speaks, None if unknown.
    agreement, similarity : with transcripts of other recordings, from `swapped`; None if there are no others.
    cut : whether the model heard less than the recording; a rule that needs a reference then says nothing.
    how : normaliser, as `scoring.normalise` takes it.
    limits : where behaviour counts as hallucination.

    Returns
    -------
    Behaviour

    Examples
    --------
    >>> hallucinated("thanks for watching", "").rule
    'words where nobody speaks'
    >>> hallucinated("no no no no no", how="basic").rule, hallucinated("one two", "one two six", how="digits").label
    ('repetition loop', 'survived')
    """
    heard = normalise(transcript, how)
    repeats = longest_loop(heard)[1]
    rate = invented = None
    said_repeats = 0
    if cut and reference:
        return Behaviour("cut", "", None, None, repeats, agreement, similarity)
    if reference is not None:
        found = word_errors(reference, transcript, how=how)
        rate, said_repeats = found.rate, longest_loop(normalise(reference, how))[1]
        new = found.substitutions + found.insertions
        invented = new / found.reference_words if found.reference_words else found.rate
    rule: Rule = ""
    if reference is not None and not normalise(reference, how) and heard:
        rule = NO_SPEECH
    elif repeats >= limits.repeats and repeats > said_repeats + 1:  # one word heard twice is no loop
        rule = LOOP
    elif heard and agreement is not None and agreement >= limits.agreement:
        rule = UNCHANGED
    elif invented is not None and invented > limits.word_error_rate:
        rule = INVENTED
    label: Label = "hallucinated" if rule else "unflagged"
    if not rule and rate is not None:
        label = "omitted" if rate > limits.word_error_rate else "survived"
    return Behaviour(label, rule, rate, invented, repeats, agreement, similarity)


def swapped(
    transcripts: Sequence[str],
    *,
    clusters: Sequence[str],
    references: Sequence[str | None] | None = None,
    how: str = "english",
    swaps: int = 8,
    seed: int = 0,
) -> list[tuple[float | None, float | None]]:
    """Say of each transcript how far it stays when the audio is exchanged for that of other clips.

    Parameters
    ----------
    transcripts : of clips under one condition, made by a decoder that draws nothing: the transcript after the
        exchange is then that of the other clip, and nothing needs to be decoded again.
    clusters : clips of one cluster share recordings and are never exchanged for each other.
    references : what was said; clips of which the same was said are not exchanged for each other.
    how : normaliser.
    swaps : other clips drawn for each.
    seed : of the draws.

    Returns
    -------
    list of (agreement, similarity)
        Share of exchanges that left the transcript as it was; mean of 1 - min(1, word error rate). Both None where
        there is no other clip.

    Examples
    --------
    >>> swapped(["you", "you", "one two"], clusters="abc", how="basic")
    [(0.5, 0.5), (0.5, 0.5), (0.0, 0.0)]
    """
    count = len(transcripts)
    if len(clusters) != count or (references is not None and len(references) != count):
        refuse(f"{count} transcripts and {len(clusters)} clusters", "one each", "clusters=names")
    heard = [normalise(text, how) for text in transcripts]
    said = [None] * count if references is None else [None if r is None else normalise(r, how) for r in references]
    results: list[tuple[float | None, float | None]] = []
    for i in range(count):
        draws = np.random.default_rng([seed, i])
        others = [
            int(j)
            for j in draws.permutation(count)
            if clusters[j] != clusters[i] and (said[i] is None or not said[i] or said[j] != said[i])
        ][:swaps]
        if not others:
            results.append((None, None))
            continue
        same = float(np.mean([heard[j] == heard[i] for j in others]))
        alike = float(np.mean([_alike(heard[i], heard[j]) for j in others]))
        results.append((same, alike))
    return results


def _alike(one: str, other: str) -> float:
    return 1.0 - min(1.0, word_errors(one, other, how="none").rate)
