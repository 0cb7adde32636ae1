"""Count, on simulated data whose truth is known, what intervals cover, what tests find by chance and what they see.

python scripts/simulate_statistics.py [--sets 2000] [--workers 2] [--out docs/benchmarks]
python scripts/simulate_statistics.py --page            # draws the page and the picture from the record

Writes statistics.json, statistics.md and statistics.svg. About six minutes on two idle cores.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from statistics_page import CHANCE, COVERED, PERMUTATIONS, SHARES, draw, page

import spectral_theorem as st
from spectral_theorem import statistics
from spectral_theorem.association import auroc, calibration, r_squared, variance_components
from spectral_theorem.benchrecord import surroundings
from spectral_theorem.resampling import Interval, interval
from spectral_theorem.statistics import (
    change_of,
    corrected,
    group_difference,
    paired_change,
    sign_flip_p,
    smallest_detectable,
)
from spectral_theorem.storage import json_ready, write_atomically

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
FILE = "statistics.json"
SETS = 2000
SIZES = np.arange(1.0, 25.0) ** -0.6  # standard deviations of 24 channels
__all__ = ["count", "judged", "main", "page", "simulate"]
Rng = np.random.Generator
# kind, what, whether it hit, by which method, whether it is meant at its level
Found = Iterator[tuple[str, str, bool, str, bool]]


def normal(rng: Rng, n: int) -> np.ndarray:
    """Draw with mean 0."""
    return rng.normal(size=n)


def exponential(rng: Rng, n: int) -> np.ndarray:
    """Draw with mean 0 and skewness 2."""
    return rng.exponential(size=n) - 1


def lognormal(rng: Rng, n: int) -> np.ndarray:
    """Draw with mean 0 and skewness 6."""
    return rng.lognormal(size=n) - np.exp(0.5)


def student(rng: Rng, n: int) -> np.ndarray:
    """Draw with mean 0 and heavy tails: three degrees of freedom."""
    return rng.standard_t(3, size=n)


def clusters_of(rng: Rng, count: int, draw: Callable[[Rng, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Draw clusters of one to six clips, half of whose variance is shared."""
    labels = np.repeat(np.arange(count), rng.integers(1, 7, count))
    return (draw(rng, count)[labels] + draw(rng, labels.size)) / np.sqrt(2), labels


def hit(what: str, bars: Interval, truth: float, *, meant: bool = True) -> tuple[str, str, bool, str, bool]:
    """Say whether an interval holds the truth."""
    return "coverage", what, bars.contains(truth), bars.method, meant and bars.nominal


def refused(what: str, p: float, *, meant: bool = True) -> tuple[str, str, bool, str, bool]:
    """Say whether a test refuses at 0.05 though nothing is there."""
    return "false positives", what, p <= 0.05, "permutation", meant


def seen(what: str, p: float) -> tuple[str, str, bool, str, bool]:
    """Say whether a test refuses at 0.05 when something is there."""
    return "power", what, p <= 0.05, "permutation", True


def mean_of(rng: Rng, seed: int, *, draw: Callable[[Rng, int], np.ndarray], n: int, method: Any = "auto") -> Found:
    """Cover the mean of independent clips, and show what the method that is not chosen there would do."""
    what, meant = ("mean", True) if method == "auto" else (f"mean by {method}", False)
    yield hit(what, interval(draw(rng, n), seed=seed, method=method), 0.0, meant=meant)


def median_of(rng: Rng, seed: int, *, n: int) -> Found:
    """Cover another statistic than the mean."""
    yield hit("median", interval(normal(rng, n), statistic=np.median, seed=seed), 0.0)


def clustered_mean(rng: Rng, seed: int, *, draw: Callable[[Rng, int], np.ndarray], n: int) -> Found:
    """Cover the mean of clips in clusters, and what ignoring the clusters would do."""
    x, labels = clusters_of(rng, n, draw)
    yield hit("mean", interval(x, clusters=labels, seed=seed), 0.0)
    yield hit("mean, clusters ignored", interval(x, seed=seed), 0.0, meant=False)


def groups(rng: Rng, seed: int, *, draw: Callable[[Rng, int], np.ndarray], sizes: tuple[int, int]) -> Found:
    """Two groups of one mean, with like and with unlike spreads."""
    a, b = draw(rng, sizes[0]), draw(rng, sizes[1])
    for what, spread in (("difference", 1.0), ("difference, spreads 3 to 1", 3.0)):
        change = group_difference(spread * a, b, seed=seed)
        yield hit(what, change.interval, 0.0)
        yield refused(what, change.p)


def clustered_groups(rng: Rng, seed: int, *, n: int) -> Found:
    """Take groups inside clusters, then groups of whole clusters."""
    x, labels = clusters_of(rng, n, normal)
    for what, second in (("inside clusters", rng.random(x.size) < 0.4), ("of whole clusters", labels % 2 == 0)):
        change = group_difference(x[~second], x[second], clusters=(labels[~second], labels[second]), seed=seed)
        yield hit(f"difference {what}", change.interval, 0.0)
        yield refused(f"difference {what}", change.p)


def area(rng: Rng, seed: int, *, shift: float, sizes: tuple[int, int]) -> Found:
    """Cover an AUROC whose truth is known for normal scores."""
    from scipy import stats

    labels = np.repeat([0, 1], sizes)
    truth = float(stats.norm.cdf(shift / np.sqrt(2)))
    yield hit(f"AUROC {truth:.2f}", auroc(normal(rng, sum(sizes)) + shift * labels, labels, seed=seed).interval, truth)


def clustered_area(rng: Rng, seed: int, *, n: int) -> Found:
    """Cover an AUROC when speakers share scores and have clips of both kinds."""
    from scipy import stats

    x, speakers = clusters_of(rng, n, normal)
    labels = rng.random(x.size) < 0.4
    x = x + labels
    yield hit("AUROC 0.76", auroc(x, labels, clusters=speakers, seed=seed).interval, float(stats.norm.cdf(1 / 2**0.5)))


def predicted(rng: Rng, seed: int, *, n: int) -> Found:
    """Cover R² and the line of calibration of a prediction that is right but for noise."""
    guess = normal(rng, n)
    actual = guess + 0.5 * normal(rng, n)
    yield hit("R²", r_squared(actual, guess, seed=seed).interval, 1 - 0.25 / 1.25)
    intercept, slope = calibration(actual, guess, seed=seed)
    yield hit("intercept", intercept.interval, 0.0)
    yield hit("slope", slope.interval, 1.0)


def shares(rng: Rng, seed: int, *, n: int) -> Found:
    """Cover the shares of layer, step and clip in a variance."""
    layer, step, clip = (grid.ravel() for grid in np.meshgrid(range(4), range(4), range(n)))
    effect = rng.normal(size=n)[clip]
    x = np.asarray([-1.0, 0.0, 0.0, 1.0])[layer] + effect + normal(rng, clip.size)
    factors = {"layer": layer, "step": step, "clip": clip}
    for name, truth in {"layer": 0.2, "step": 0.0, "clip": 0.4, "rest": 0.4}.items():
        bars = variance_components(x, factors, clusters="clip")[name].interval
        assert bars is not None
        yield hit(f"share of {name}", bars, truth)


def clips_of(rng: Rng, count: int, sizes: np.ndarray, shared: float = 0.3) -> list[np.ndarray]:
    """Draw clips of six to eleven positions, which share a part of their state."""
    rows = rng.integers(6, 12, count)
    return [(np.sqrt(shared) * normal(rng, sizes.size) + rng.normal(size=(int(n), sizes.size))) * sizes for n in rows]


def pooled_observables(rng: Rng, seed: int, *, n: int, modes: int, clusters: int | None = None) -> Found:
    """Cover pooled observables and their change to a steeper spectrum of the same clips."""
    from spectral_theorem.modefunctions import QUANTITIES

    stressed = SIZES**1.5
    clips = [clips_of(rng, n, sizes) for sizes in (SIZES, stressed)]
    labels = np.arange(n) % clusters if clusters else None
    found = st.pooled_change(*clips, modes=(modes,), clusters=labels, seed=seed)
    for q in QUANTITIES:
        one, other = (float(q.value((sizes**2)[:modes])) for sizes in (SIZES, stressed))
        # positions share a part of their clip, which only scales the covariance
        scaled = np.log10(1.3) if q.observed == "kirchhoff" else 0.0
        yield hit(f"pooled {q.observed}", found.clean.intervals[modes][q.observed], float(q.told(one - scaled)))
        yield hit(
            f"change of pooled {q.observed}", found.changes[modes][q.changed].interval, q.change_told(other - one)
        )


def paired_null(rng: Rng, seed: int, *, draw: Callable[[Rng, int], np.ndarray], n: int) -> Found:
    """Exchangeable conditions."""
    yield refused("paired change", paired_change(draw(rng, n), draw(rng, n), seed=seed).p)


def clustered_null(rng: Rng, seed: int, *, n: int) -> Found:
    """Exchangeable conditions in clusters, and what ignoring the clusters would do."""
    x, labels = clusters_of(rng, n, normal)
    p = change_of(x, clusters=labels, seed=seed).p
    yield refused("paired change", p)
    yield refused("paired change, clusters ignored", sign_flip_p(x, seed=seed), meant=False)


def pooled_null(rng: Rng, seed: int, *, n: int, modes: int) -> Found:
    """Pooled observables of two exchangeable conditions."""
    change = st.pooled_change(clips_of(rng, n, SIZES), clips_of(rng, n, SIZES), modes=(modes,), seed=seed)
    for name, each in change.changes[modes].items():
        yield refused(f"change of pooled {name}", each.p)
    yield refused("Jensen-Shannon divergence", change.divergences[modes].p)


def family_null(rng: Rng, seed: int, *, n: int) -> Found:
    """36 tests at once, of numbers that go together: one refusal is one too many."""
    shared = normal(rng, n)[:, None]
    p = np.asarray(sign_flip_p((shared + rng.normal(size=(n, 36))) / np.sqrt(2), seed=seed))
    for method in ("bh", "by", "holm"):
        yield refused(f"any of 36, {method}", float(corrected(p, method).min()))
    yield refused("any of 36, not corrected", float(p.min()), meant=False)


def paired_power(rng: Rng, seed: int, *, n: int) -> Found:
    """Find the smallest detectable change when it is there."""
    shift = smallest_detectable(np.sqrt(2 / n), n)
    yield seen("paired change", paired_change(normal(rng, n), normal(rng, n) + shift, seed=seed).p)


def group_power(rng: Rng, seed: int, *, sizes: tuple[int, int]) -> Found:
    """Find the smallest detectable difference when it is there."""
    shift = smallest_detectable(np.sqrt(1 / sizes[0] + 1 / sizes[1]), sum(sizes), parameters=2)
    yield seen("difference", group_difference(normal(rng, sizes[0]), normal(rng, sizes[1]) + shift, seed=seed).p)


def pooled_power(rng: Rng, seed: int, *, n: int, modes: int, steeper: float) -> Found:
    """Find a planted change of slope, and say how often it is above what the sample claims to see."""
    stressed = SIZES * np.arange(1.0, SIZES.size + 1) ** (-steeper / 2)
    change = st.pooled_change(clips_of(rng, n, SIZES), clips_of(rng, n, stressed), modes=(modes,), seed=seed)
    alpha = change.changes[modes]["alpha"]
    yield seen(f"slope steeper by {steeper}", alpha.p)
    yield (
        "power",
        f"{steeper} is detectable, as reported",
        alpha.smallest_detectable <= steeper,
        "noncentral t",
        False,
    )


# words about the data, n, function
PLAN: list[tuple[str, int, Callable[[Rng, int], Found]]] = [
    *(
        (f"{draw.__name__} data", n, functools.partial(mean_of, draw=draw, n=n))
        for draw in (normal, exponential, lognormal, student)
        for n in (10, 30, 50, 200)
    ),
    *(
        (f"{draw.__name__} data", 50, functools.partial(mean_of, draw=draw, n=50, method="BCa"))
        for draw in (normal, exponential, lognormal)
    ),
    *(("normal data", n, functools.partial(median_of, n=n)) for n in (50, 200)),
    *(
        (f"{draw.__name__} data in clusters", n, functools.partial(clustered_mean, draw=draw, n=n))
        for draw, n in ((normal, 5), (normal, 50), (exponential, 50), (normal, 200))
    ),
    *(
        (f"{draw.__name__} data, {a} and {b} clips", a, functools.partial(groups, draw=draw, sizes=(a, b)))
        for draw, a, b in ((normal, 20, 60), (normal, 50, 90), (exponential, 50, 90))
    ),
    ("normal data in clusters", 50, functools.partial(clustered_groups, n=50)),
    *(
        (f"{a} negative and {b} positive clips", min(a, b), functools.partial(area, shift=shift, sizes=(a, b)))
        for shift, a, b in ((1.0, 10, 10), (0.0, 50, 50), (1.0, 50, 50), (2.5, 50, 50), (1.0, 200, 50))
    ),
    ("scores in clusters", 50, functools.partial(clustered_area, n=50)),
    *(("prediction and noise", n, functools.partial(predicted, n=n)) for n in (50, 200)),
    ("4 layers, 4 steps, clips", 50, functools.partial(shares, n=50)),
    *(
        (f"24 channels, window {modes}", n, functools.partial(pooled_observables, n=n, modes=modes))
        for n, modes in ((50, 10), (200, 10), (50, 20), (200, 20))
    ),
    (
        "24 channels, window 10, 150 clips in clusters", 50,
        functools.partial(pooled_observables, n=150, modes=10, clusters=50),
    ),
    *(
        (f"{draw.__name__} data", n, functools.partial(paired_null, draw=draw, n=n))
        for draw in (normal, lognormal, student)
        for n in (10, 50)
    ),
    ("normal data in clusters", 50, functools.partial(clustered_null, n=50)),
    ("24 channels, window 10", 50, functools.partial(pooled_null, n=50, modes=10)),
    ("24 channels, window 20", 200, functools.partial(pooled_null, n=200, modes=20)),
    ("36 numbers that go together", 50, functools.partial(family_null, n=50)),
    *(("the smallest detectable change", n, functools.partial(paired_power, n=n)) for n in (10, 50, 200)),
    ("the smallest detectable difference", 50, functools.partial(group_power, sizes=(50, 90))),
    ("24 channels, window 10", 100, functools.partial(pooled_power, n=100, modes=10, steeper=0.1)),
]  # fmt: skip
SLOW = {shares: SHARES}


Key = tuple[str, str]
Answers = list[tuple[bool, str, bool]]


@contextlib.contextmanager
def fewer_permutations() -> Iterator[None]:
    """Let tests make as many permutations as this benchmark needs, and leave the library as it was."""
    usual = statistics.PERMUTATIONS
    statistics.PERMUTATIONS = PERMUTATIONS
    statistics.sign_flips.cache_clear()
    try:
        yield
    finally:
        statistics.PERMUTATIONS = usual
        statistics.sign_flips.cache_clear()


def count(number: int, first: int, last: int) -> dict[Key, Answers]:
    """Run some data sets of one entry of the plan."""
    answers: dict[Key, Answers] = {}
    with fewer_permutations():
        for index in range(first, last):
            for kind, what, *answer in PLAN[number][2](np.random.default_rng([number, index]), index):
                answers.setdefault((kind, what), []).append((answer[0], answer[1], answer[2]))
    return answers


def judged(kind: str, what: str, data: str, n: int, answers: Answers) -> dict[str, Any]:
    """Turn answers into a row: how often it was right, and whether that is what it is held to."""
    methods = sorted({method for _, method, _ in answers})
    meant = [answer for answer, _, nominal in answers if nominal]
    share, sets = float(np.mean([answer for answer, *_ in answers])), len(answers)
    row = {"kind": kind, "data": data, "n": n, "what": what, "method": ", ".join(methods), "sets": sets, "rate": share}
    # with two hits and two misses added, so that a line without misses has an error too
    near = (share * sets + 2) / (sets + 4)
    row |= {"error": 1.96 * float(np.sqrt(near * (1 - near) / (sets + 4))), "flagged": 1 - len(meant) / sets}
    row |= {"rate_meant": float(np.mean(meant)) if meant else None, "sets_meant": len(meant)}
    limits = {"coverage": COVERED, "false positives": CHANCE}.get(kind)
    # an interval that says that n is too small is held to nothing; few that do not say so, neither
    held = limits is not None and len(meant) > sets / 2 and (kind != "coverage" or n >= 50)
    # where fewer sets were drawn than are asked for, a line is missed when its own error does not explain it
    loose = row["error"] if sets < SETS else 0.0
    met = limits[0] - loose <= row["rate_meant"] <= limits[1] + loose if held and limits else None
    return row | {"limits": list(limits) if held and limits else None, "met": met}


def simulate(sets: int, workers: int) -> list[dict[str, Any]]:
    """Run the plan, in as many processes as asked for."""
    jobs, chunk = [], max(1, min(100, sets // 4))
    for number, (*_, function) in enumerate(PLAN):
        total = max(1, sets // SLOW.get(function.func if isinstance(function, functools.partial) else function, 1))
        jobs += [(number, first, min(first + chunk, total)) for first in range(0, total, chunk)]
    if workers == 1:
        done = [count(*job) for job in jobs]
    else:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            done = list(pool.map(count, *zip(*jobs, strict=True)))
    merged: dict[tuple[int, Key], Answers] = {}
    for (number, *_), answers in zip(jobs, done, strict=True):
        for key, some in answers.items():
            merged.setdefault((number, key), []).extend(some)
    return [judged(*key, *PLAN[number][:2], answers) for (number, key), answers in merged.items()]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Simulate, write, and return the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--page", action="store_true", help="draw only, from the record")
    asked = parser.parse_args(arguments)
    if asked.page:
        record = json.loads((asked.out / FILE).read_text(encoding="utf-8"))
    else:
        where, began = surroundings(), time.perf_counter()
        rows = simulate(asked.sets, asked.workers)
        record = {"schema": 1, "sets": asked.sets, "workers": asked.workers, "seconds": time.perf_counter() - began}
        record, _ = json_ready(record | {"environment": where, "rows": rows})
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        write_atomically(asked.out / FILE, lambda file: file.write(text.encode()))
    draw(asked.out, record)
    return record


if __name__ == "__main__":
    main()
