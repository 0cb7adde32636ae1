"""Which generated tokens are meant: "all", a list with ranges, or numbers."""

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
        If nothing is meant, a step is no whole number, or the transcript has not as many.

    Examples
    --------
    >>> chosen_steps("0,2-3", 5), chosen_steps("all", 2)
    ((0, 2, 3), (0, 1))
    """
    hint = '--steps all, or a list such as "0,2,5-7"'
    if isinstance(steps, str):
        if steps.strip() == "all":
            return tuple(range(available))
        numbers: list[int] = []
        for part in filter(None, (part.strip() for part in steps.split(","))):
            low, dash, high = part.partition("-")
            if not (low.isdecimal() and (high.isdecimal() or not dash)):
                refuse(f"steps {steps!r}", "whole numbers from 0, with commas and ranges", hint)
            if int(high or low) >= available + 1_000_000:  # a range is not written out before it is checked
                refuse(f"step {high or low}", f"0 to {available - 1}, the steps of this transcript", hint)
            numbers.extend(range(int(low), int(high or low) + 1))
    else:
        numbers = [int(step) for step in steps]
    if not numbers:
        refuse(f"steps {steps!r}, which name no token", f"some of 0 to {available - 1}", hint)
    beyond = [step for step in numbers if not 0 <= step < available]
    if beyond:
        refuse(f"step {beyond[0]}", f"0 to {available - 1}, the steps of this transcript", hint)
    return tuple(sorted(set(numbers)))
