"""Cut one decoded window into segments, and say where the next window starts."""

import dataclasses
from collections.abc import Sequence

from .options import TIMESTAMP_SECONDS


@dataclasses.dataclass(frozen=True)
class Piece:
    """Hold one segment of a window: start and end in seconds from the window's start, and its ids."""

    start: float
    end: float
    tokens: tuple[int, ...]


def pieces(tokens: Sequence[int], first: int | None, seconds: float, whole: float) -> tuple[list[Piece], float]:
    """Cut a window at its timestamps.

    Parameters
    ----------
    tokens : generated ids of one window, without prompt and end.
    first : id of 0.00 s, or None when no timestamps were asked for.
    seconds : length of the audio in this window.
    whole : length of a full window.

    Returns
    -------
    pieces : in order; they hold all ids that are kept.
    advance : seconds from this window's start to the next one's, above 0.

    Notes
    -----
    Two timestamps in a row end one segment and start the next. Speech behind the last such pair is
    cut off by the window's end: it is left for the next window, which starts at that pair. A single
    timestamp at the end says that nothing follows, and the next window starts behind this one. The
    same holds where there is no pair at all.

    References
    ----------
    A. Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, section 3.8.

    Examples
    --------
    >>> pieces([50, 1, 60, 60, 2], 50, 30.0, 30.0)
    ([Piece(start=0.0, end=0.2, tokens=(50, 1, 60))], 0.2)
    >>> pieces([50, 1, 60], 50, 30.0, 30.0)[1], pieces([1, 2], None, 5.0, 30.0)[1]
    (30.0, 30.0)
    """
    tokens = [int(id) for id in tokens]
    is_time = [first is not None and id >= first for id in tokens]
    at = lambda id: round((id - (first or 0)) * TIMESTAMP_SECONDS, 2)
    cuts = [place for place in range(1, len(tokens)) if is_time[place - 1] and is_time[place]]
    closed = bool(is_time) and is_time[-1] and not (len(is_time) > 1 and is_time[-2])
    if not cuts:
        last = next((at(id) for id, time in zip(reversed(tokens), reversed(is_time), strict=True) if time), 0.0)
        begin = at(tokens[0]) if is_time and is_time[0] and last > at(tokens[0]) else 0.0
        return [Piece(begin, last if last > 0 else seconds, tuple(tokens))], whole
    ends = [*cuts, len(tokens)] if closed else cuts
    found, begin = [], 0
    for end in ends:
        found.append(Piece(at(tokens[begin]), at(tokens[end - 1]), tuple(tokens[begin:end])))
        begin = end
    # A pair at 0.00 s would have the next window start where this one does, for ever.
    return found, whole if closed else (at(tokens[ends[-1] - 1]) or whole)
