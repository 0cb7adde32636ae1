"""Which generated tokens are meant: "all", a list with ranges, numbers, or so many evenly spaced."""

import operator
import re
from collections.abc import Sequence

from .types import refuse


def chosen_steps(steps: str | Sequence[int], available: int) -> tuple[int, ...]:
    """Return the steps that are meant, in rising order.

    Parameters
    ----------
    steps : "all", a list such as "0,2,5-7", or numbers.
    available : steps of the transcript.

    Raises
    ------
    InputError
        If nothing is meant, a step is no whole number, a range runs backwards, or the transcript has not as many.

    Examples
    --------
    >>> chosen_steps("0,2-3", 5), chosen_steps("all", 2)
    ((0, 2, 3), (0, 1))
    """
    hint, whole = '--steps all, or a list such as "0,2,5-7"', "whole numbers from 0, with commas and ranges"
    if isinstance(steps, str):
        if steps.strip() == "all":
            return tuple(range(available))
        numbers: list[int] = []
        for part in filter(None, (part.strip() for part in steps.split(","))):
            low, dash, high = part.partition("-")
            ends = (low, high) if dash else (low, low)
            if not all(end.isdecimal() for end in ends):
                refuse(f"steps {steps!r}", whole, hint)
            # a range is checked before it is written out, and a number by its length before it is read
            beyond = [end for end in ends if len(end.lstrip("0")) > 9 or int(end) >= available]
            if beyond:
                refuse(f"step {beyond[-1][:20]}", f"0 to {available - 1}, the steps of this transcript", hint)
            if int(ends[1]) < int(ends[0]):
                refuse(f"steps {part!r}, which run backwards", "ranges from the lower to the higher step", hint)
            numbers.extend(range(int(ends[0]), int(ends[1]) + 1))
    else:
        try:
            numbers = [operator.index(step) for step in steps]
        except TypeError:
            refuse(f"steps {steps!r}", whole, hint)
    if not numbers:
        refuse(f"steps {steps!r}, which name no token", f"some of 0 to {available - 1}", hint)
    beyond = [step for step in numbers if not 0 <= step < available]
    if beyond:
        refuse(f"step {beyond[0]}", f"0 to {available - 1}, the steps of this transcript", hint)
    return tuple(sorted(set(numbers)))


def spaced_steps(steps: str, available: int) -> tuple[int, ...]:
    """Return the steps that are meant, where transcripts of many lengths are measured alike.

    Parameters
    ----------
    steps : "all"; a number such as "16", so many evenly spaced steps, the first and the last among them; or a list
        with a comma or a range, such as "0,2,5-7", of which those are taken that the transcript has.
    available : steps of the transcript.

    Returns
    -------
    tuple of int
        In rising order; empty when a list names none of this transcript.

    Raises
    ------
    InputError
        If that is none of the three.

    Examples
    --------
    >>> spaced_steps("3", 9), spaced_steps("16", 2), spaced_steps("0,4-9", 6)
    ((0, 4, 8), (0, 1), (0, 4, 5))
    """
    text = steps.strip()
    if text == "all":
        return tuple(range(available))
    if text.isdecimal() and 0 < len(text.lstrip("0")) <= 9:
        count = min(int(text), available)
        # by whole numbers, so that no rounding of halves depends on the machine
        gaps = max(count - 1, 1)
        return tuple((2 * i * (available - 1) + gaps) // (2 * gaps) for i in range(count))
    if text.isdecimal():
        refuse(f"--steps {steps}", "at least one step", "--steps 16")
    most = 1 + max((int(part) for part in re.findall(r"\d{1,9}", text)), default=0)
    return tuple(step for step in chosen_steps(text, most) if step < available)
