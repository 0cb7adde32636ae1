"""Time several ways to one answer, turn by turn, and fit how a cost grows with a size.

Every repeat times each way once, in random order, so that whatever else the machine does meets all of
them; ratios are taken within a repeat. First calls, which compile, are timed apart.
"""

import dataclasses
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Side:
    """Describe one way to an answer.

    Parameters
    ----------
    run : does the work and waits for the result.
    what : the work, in a few words.
    items : answers that one call gives; times are divided by it.
    """

    run: Callable[[], Any]
    what: str
    items: int = 1


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, median and maximum.

    Examples
    --------
    >>> spread([3.0, 1.0, 2.0])
    {'min': 1.0, 'median': 2.0, 'max': 3.0}
    """
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def compare(
    sides: Mapping[str, Side], *, repeats: int, patience: float = math.inf, few: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Time every side once per repeat, in random order.

    Parameters
    ----------
    sides : ways to the same answer, by name.
    repeats : how often each is timed.
    patience : a side whose second call takes longer than this many seconds is slow.
    few : how often a slow side is timed, spread over the repeats.
    seed : of the order.

    Returns
    -------
    dict
        `sides`: by name `what`, `items`, `first_call_s` (whole call), `turns` (the repeats in which it was
        timed), `seconds` and `processor_seconds` per item: `min`, `median`, `max`, `all`.
        `load_1min`: of the machine, before and after.

    Examples
    --------
    >>> found = compare({"a": Side(lambda: 1, "nothing"), "b": Side(lambda: 2, "nothing")}, repeats=3)
    >>> found["sides"]["a"]["turns"], sorted(ratio(found, "a", "b"))
    ([0, 1, 2], ['max', 'median', 'min'])
    """
    load = os.getloadavg()[0]
    found: dict[str, dict[str, Any]] = {}
    turns: dict[str, list[int]] = {}
    for name, side in sides.items():
        first, second = _timed(side.run)[0], _timed(side.run)[0]
        count = min(few, repeats) if second > patience else repeats
        turns[name] = [i for i in range(repeats) if (i + 1) * count // repeats > i * count // repeats]
        found[name] = {"what": side.what, "items": side.items, "first_call_s": first, "turns": turns[name]}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    order = random.Random(seed)
    for turn in range(repeats):
        for name in order.sample(list(sides), len(sides)):
            if turn in turns[name]:
                times[name].append(_timed(sides[name].run))
    for name, side in sides.items():
        for index, kind in enumerate(("seconds", "processor_seconds")):
            each = [one[index] / side.items for one in times[name]]
            found[name][kind] = {**spread(each), "all": each}
    return {"sides": found, "load_1min": [load, os.getloadavg()[0]]}


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    start, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - used


def ratio(row: Mapping[str, Any], over: str, under: str, kind: str = "seconds") -> dict[str, float]:
    """Return the spread of one side's time over another's, repeat by repeat.

    Parameters
    ----------
    row : from `compare`.
    over, under : names of sides.
    kind : "seconds" or "processor_seconds".

    Examples
    --------
    >>> side = lambda turns, times: {"turns": turns, "seconds": {"all": times}}
    >>> row = {"sides": {"a": side([0, 1, 2], [1.0, 2.0, 3.0]), "b": side([1], [4.0])}}
    >>> ratio(row, "b", "a")["median"]
    2.0
    """
    a, b = (row["sides"][name] for name in (over, under))
    below = dict(zip(b["turns"], b[kind]["all"], strict=True))
    above = zip(a["turns"], a[kind]["all"], strict=True)
    # a clock may not see a very short call at all
    return spread([x / max(below[turn], 1e-9) for turn, x in above if turn in below])


def fit_power(
    sizes: Sequence[float | int] | np.ndarray, seconds: Sequence[float | int] | np.ndarray
) -> dict[str, float | int | None]:
    r"""Fit a power of the size by least squares of logarithms.

    .. math:: \log t = \log a + p \log n

    Parameters
    ----------
    sizes, seconds : positive, one time per size.

    Returns
    -------
    dict
        `exponent` p, `low` and `high`: its 95 % interval by Student's t, None below three sizes, where nothing is
        left to judge by; `coefficient` a; `points`.

    Examples
    --------
    >>> found = fit_power([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0])
    >>> round(found["exponent"], 6), round(found["coefficient"], 6), round(found["high"] - found["low"], 6)
    (2.0, 3.0, 0.0)
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    centred = x - x.mean()
    p = float(centred @ y / (centred @ centred))
    a = float(y.mean() - p * x.mean())
    low = high = None
    if len(x) > 2:
        from scipy.special import stdtrit  # comes with jax

        left = y - a - p * x
        deviation = math.sqrt(float(left @ left) / (len(x) - 2) / float(centred @ centred))
        reach = float(stdtrit(len(x) - 2, 0.975)) * deviation
        low, high = p - reach, p + reach
    return {"exponent": p, "low": low, "high": high, "coefficient": math.exp(a), "points": len(x)}
