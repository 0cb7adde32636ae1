"""Say on standard error how long the rest of a long job will take."""

import sys
import time


class Remaining:
    """Say how many items are done and how long the others will take, now and then.

    Parameters
    ----------
    what : the items, in the plural.
    every : seconds between two lines; None says nothing. What is over sooner says nothing either.

    Examples
    --------
    >>> Remaining("cells", every=None)(1, 3)
    """

    def __init__(self, what: str, *, every: float | None = 30.0) -> None:
        self.what, self.every = what, every
        self.started = self.said = time.monotonic()
        self.first: float | None = None

    def __call__(self, done: int, count: int) -> None:
        """Take note that so many of all are done."""
        now = time.monotonic()
        if done == 1:
            self.first = now  # what came before was compiling, too
        if self.every is None or self.first is None or done < 2 or now - self.said < self.every:
            return
        self.said = now
        left = (now - self.first) / (done - 1) * (count - done)
        words = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        print(f"{done} of {count} {self.what}, about {words} left", file=sys.stderr, flush=True)
