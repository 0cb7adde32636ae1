"""The phase diagram: growth is measured rightly, what theory says of it is checked, and a wrong number is seen."""

import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from spectral_theorem.batched import Program
from spectral_theorem.experiment import load

PHASE, RANDOM = (
    load(Path(__file__).resolve().parents[1] / "experiments/synthetic" / f"{name}.py")
    for name in ("phase_diagram", "random_ensembles")
)
MODULE = sys.modules[PHASE.run.__module__]
SCALARS = [(s, k, x) for s in (0.7, 1.5, 3.0) for k in (0.05, 0.6, 0.97) for x in (0.02, 0.5, 0.9)]


@pytest.fixture(scope="module")
def records():
    """27 chains of each of three tails."""
    found = []
    for tail in (MODULE.ATTAINS, MODULE.TURNS, "flat"):
        configs = [PHASE.config(s, k, x, layers=40, width=4, tail=tail) for s, k, x in SCALARS]
        rows = Program(PHASE.cell, configs[0], width=len(configs))([configs])[0]
        found += [{**vars(config), **row} for config, row in zip(configs, rows, strict=True)]
    return found


def exact(record):
    """Measure growth again, in twice the digits where the platform has them."""
    config = PHASE.config(**{name: record[name] for name in vars(PHASE.config())})
    matrices, _, _ = MODULE._unit_chain(config, jax.random.key(config.seed))
    product, log = np.eye(matrices.shape[-1], dtype=np.longdouble), np.longdouble(0)
    for matrix in np.asarray(matrices, np.longdouble):
        product = matrix @ product
        size = np.sqrt(np.sum(product**2))
        product, log = product / size, log + np.log(size)
    top = np.linalg.svd(product.astype(float), compute_uv=False)[0]
    return math.log(config.sigma) + (float(log) + math.log(top)) / (config.layers - 1)


def test_growth_lies_within_its_error_bar(records):
    for record in records:
        # the platform's own last digit, and the sum of logarithms
        assert abs(record["growth"] - exact(record)) <= record["growth_error"] + 4e-15 * (1 + abs(record["growth"]))
    assert max(record["growth_error"] for record in records) < 1e-6


def test_theory_holds_and_the_rate_is_attained(records):
    verdict, sentence = PHASE.verdict(records)
    assert verdict == "HOLDS" and "81 chains" in sentence
    plane = [r for r in records if r["tail"] == MODULE.ATTAINS]
    # the plane chain has r* as an eigenvalue, so growth per layer tends to it with depth
    assert all(-0.1 < r["growth"] - r["upper"] <= r["growth_error"] for r in plane)
    assert any(r["naive"] < 0 < r["growth"] for r in plane), "rho < 1 and growth"
    assert any(r["attracts"] for r in records) and any(r["disperses"] for r in records)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda r: {"growth": r["upper"] + 1e-6}, "VIOLATED"),
        (lambda r: {"growth": r["lower"] - 1e-6}, "VIOLATED"),
        (lambda r: {"angle": r["widest"] + 1e-6}, "VIOLATED"),
        (lambda r: {"gap": 1.0}, "VIOLATED"),
        (lambda r: {"growth": -0.1, "lower": -1.0}, "VIOLATED"),
        (lambda r: {"growth": math.nan}, "UNDECIDED"),
        (lambda r: {"growth_error": math.inf}, "UNDECIDED"),
    ],
)
def test_a_wrong_number_is_seen(records, change, verdict):
    certified = next(r for r in records if r["attracts"])
    others = [r for r in records if r is not certified]
    assert PHASE.verdict([*others, {**certified, **change(certified)}])[0] == verdict


def test_readings():
    base = {"growth": -1.0, "growth_error": 0.1, "gap": 9.0, "naive": -1.0, "disperses": False, "attracts": False}
    assert MODULE.reading(base) == ("right", "silent")
    assert MODULE.reading({**base, "growth": 1.0, "disperses": True}) == ("wrong", "wrong")
    assert MODULE.reading({**base, "growth": 1.0, "naive": 1.0, "attracts": True}) == ("right", "right")
    assert MODULE.reading({**base, "growth": 1.0, "naive": 1.0, "gap": 0.0}) == ("wrong", "silent")
    assert MODULE.reading({**base, "growth": 0.05}) == ("undecided", "undecided")


def test_the_figure_marks_every_wrong_reading(records):
    figure = PHASE.figure(records)
    panels = [ax for ax in figure.axes if ax.get_yscale() == "log"]
    assert len(panels) == 6 and all(ax.get_ylim()[0] < 0.7 for ax in panels)
    crosses = sum(len(line.get_xdata()) for ax in panels for line in ax.lines if line.get_marker() == "x")
    shown = [r for r in records if r["tail"] != "flat"]  # the first two tails have panels
    assert crosses == sum(MODULE.reading(r)[0] == "wrong" for r in shown) > 0
    assert any("nats per layer" in ax.get_ylabel() for ax in figure.axes)


def test_random_chains_that_are_certified_wrongly_are_seen():
    (record,) = RANDOM.run(RANDOM.config())
    assert RANDOM.verdict([record])[0] == "HOLDS" and record["exact"] == 1
    assert RANDOM.verdict([{**record, "growth": 0.5, "bound": 1.0}])[0] == "VIOLATED"
    assert RANDOM.verdict([{**record, "bound": record["growth"] - 1}])[0] == "VIOLATED"
    assert RANDOM.verdict([{**record, "growth": math.nan}])[0] == "UNDECIDED"
    # a residual chain, close to the identity: rho says decay, the chain grows, and the certificates say nothing
    (grows,) = RANDOM.run(RANDOM.config(ensemble="residual", scale=0.1))
    assert grows["growth"] > 0 and RANDOM.verdict([grows])[0] == "HOLDS"
    assert len(RANDOM.figure([record, grows]).axes) == 1
