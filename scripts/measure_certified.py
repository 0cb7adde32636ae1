"""Compare ball arithmetic with mpmath, and keep what was found as JSON.

    python scripts/measure_certified.py docs/benchmarks/certified.json [--cases 1000]

Chains of every kind that the package can draw, small, with and without an initial Jacobian. Every slack that the
oracle of the tests gives at 50 digits must lie in its ball (at 256 bits), and signs must agree wherever the ball is
sure. mpmath works with 150 digits, so that 50 are right where rows nearly cancel. Times per chain stand beside it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import jax
import numpy as np
from mpmath import mp, mpf
from mporacle import Exactly

from spectral_theorem import balls, provenance
from spectral_theorem.ballchain import BallChain, NotApplicable, Unresolved
from spectral_theorem.ballclaims import CLAIM_SLACKS, CONDITION_SLACKS
from spectral_theorem.recipes import KINDS, make_chain
from spectral_theorem.storage import write_atomically
from spectral_theorem.types import Thresholds

SHAPES = ((3, 3, 2), (4, 2, 3), (3, 4, 2))
BITS, DIGITS, WORK = 256, 50, 150
LIMITS = Thresholds()


def exactly(ball) -> mpf:
    """Return the midpoint of a ball as an mpmath number."""
    mantissa, exponent = ball.mid().man_exp()
    return mp.ldexp(mpf(int(mantissa)), int(exponent))


def compared(chain) -> tuple[dict[str, int], list[str], float, float]:
    """Return counts, complaints, and seconds in balls and in mpmath, for one chain."""
    arrays = [None if x is None else np.asarray(x) for x in (chain.propagators, chain.injections, chain.initial)]
    counts, complaints = {"entries": 0, "sure": 0, "unresolved": 0}, []
    start = time.perf_counter()
    with balls.precision(BITS):
        own, found = BallChain(*arrays), {}
        for name, statement in {**CONDITION_SLACKS, **CLAIM_SLACKS}.items():
            try:
                found[name] = statement(own, LIMITS)
            except (Unresolved, ZeroDivisionError):
                counts["unresolved"] += 1
            except NotApplicable:
                continue
        scale = exactly(own.scale) if own.length else mpf(1)
    middle = time.perf_counter()
    with mp.workdps(WORK):
        theirs = Exactly(*arrays).slacks(LIMITS)
        for name in found.keys() & theirs.keys():
            # products have a size of their own, which may be above or below that of the injections
            unit = max(scale, mpf(1), *(abs(x) for x in theirs[name])) if theirs[name] else mpf(1)
            for slack, value in zip(found[name], theirs[name], strict=True):
                radius = exactly(slack.ball.rad())
                counts["entries"] += 1
                if abs(exactly(slack.ball) - value) > radius + unit * mpf(10) ** -DIGITS:
                    complaints.append(f"{name}: {mp.nstr(value, 20)} is not in {slack.ball}")
                if slack.ball > 0 or slack.ball < 0:
                    counts["sure"] += 1
                    if (slack.ball > 0) != (value > 0):
                        complaints.append(f"{name}: the sign of {mp.nstr(value, 20)}")
    return counts, complaints, middle - start, time.perf_counter() - middle


def main() -> None:
    """Compare, count, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=Path)
    parser.add_argument("--cases", type=int, default=1000)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    total, complaints, seconds = {"entries": 0, "sure": 0, "unresolved": 0}, [], [0.0, 0.0]
    before = os.getloadavg()[0]
    for case in range(options.cases):
        kind, shape = KINDS[case % len(KINDS)], SHAPES[case // len(KINDS) % len(SHAPES)]
        chain = make_chain(kind, shape=shape, seed=case, initial=case % 4 == 0)
        counts, said, own, other = compared(chain)
        total = {name: total[name] + counts[name] for name in total}
        complaints += [f"case {case}, {kind}: {x}" for x in said]
        seconds = [seconds[0] + own, seconds[1] + other]
        if sys.stderr.isatty():
            print(f"\r{case + 1} of {options.cases}, {len(complaints)} disagreements", end="", file=sys.stderr)
    result = {
        "schema": 1,
        "environment": provenance.environment() | {"load_1min": [before, os.getloadavg()[0]], "cpus": os.cpu_count()},
        "cases": options.cases,
        "shapes": SHAPES,
        "bits": BITS,
        "digits": DIGITS,
        **total,
        "disagreements": complaints,
        "seconds_per_chain": {"balls": seconds[0] / options.cases, "mpmath": seconds[1] / options.cases},
    }
    write_atomically(options.target, lambda file: file.write((json.dumps(result, indent=1) + "\n").encode()))
    print(
        json.dumps({name: result[name] for name in ("cases", "entries", "sure", "unresolved")}),
        *complaints[:20],
        sep="\n",
    )
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
