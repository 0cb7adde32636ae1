"""The registry of claims against more than ten thousand chains: no claim may be VIOLATED, ever."""

import functools
import json

import batches
import makers
import numpy as np
import pytest

from spectral_theorem.types import Verdict
from spectral_theorem.verification import CLAIMS

# (L, D, C, with initial): number of chains
DOUBLE = {
    (1, 3, 2, False): 64,
    (1, 3, 2, True): 512,
    (2, 2, 2, False): 1024,
    (4, 1, 2, False): 512,
    (7, 2, 2, False): 1536,
    (8, 4, 3, False): 4096,
    (5, 6, 4, True): 1024,
    (12, 16, 30, False): 256,
    (32, 3, 1, False): 1024,
    (64, 64, 48, False): 32,
    (6, 3, 0, False): 512,
}
SINGLE = {(8, 4, 3, False): 2048, (32, 3, 1, False): 1024}
CASES = [(shape, np.float64) for shape in DOUBLE] + [(shape, np.float32) for shape in SINGLE]
EDGES = {make.__name__ for make in makers.EDGES}
ALWAYS = [name for name, spec in CLAIMS.items() if not spec.needs and spec.applies is None]


@functools.cache
def outcome(shape, dtype):
    """Return (codes of every claim (n, N), family of every chain); fail with the worst chains if one is violated."""
    count = (DOUBLE if dtype is np.float64 else SINGLE)[shape]
    chains, families = batches.block(20, count, shape, dtype)
    found = batches.verified(chains)
    with np.errstate(all="ignore"):  # inf over inf, float32 overflow: only for the message
        return found.claims.code, found.claims.slack / found.claims.tolerance, families


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=lambda x: str(getattr(x, "__name__", x)))
def test_no_claim_is_violated(shape, dtype):
    codes, slack, families = outcome(shape, dtype)
    chain, claim = np.nonzero(codes == Verdict.VIOLATED)
    names = tuple(CLAIMS)
    seen = [
        f"{names[c]} on chain {i} ({families[i]}): {slack[i, c]:.3g} tolerances"
        for i, c in zip(chain, claim, strict=True)
    ]
    assert not seen, seen[:5]


def test_there_are_enough_chains_and_every_claim_is_put_to_the_test(record_property):
    counts = {name: np.zeros(4, int) for name in CLAIMS}
    families = []
    for case in CASES:
        codes, _, drawn = outcome(*case)
        families += list(drawn)
        for i, name in enumerate(CLAIMS):
            counts[name] += np.bincount(codes[:, i], minlength=4)
    lines = [f"{len(families)} chains, {len(DOUBLE)} shapes, {len(CASES)} compilations"]
    for name, row in counts.items():
        lines.append(f"{name:22}" + "".join(f"{v.name} {row[v]:6}  " for v in Verdict))
    print("\n".join(lines))
    record_property("claims", json.dumps({name: row.tolist() for name, row in counts.items()}))
    at_edge = sum(name in EDGES for name in families)
    assert sum(DOUBLE.values()) >= 10_000 and len(DOUBLE) <= 16
    assert at_edge >= len(families) / 4
    assert {make.__name__ for make in (*makers.GENERIC, *makers.EDGES)} == set(families)
    for name in ALWAYS:
        assert counts[name][Verdict.HOLDS] > 3000, (name, counts[name])
    assert counts["psi_lower"][Verdict.HOLDS] > 1000
    assert min(counts[name][Verdict.HOLDS] for name in ("c1", "c2", "cone_growth", "cone_angle")) > 200
    assert counts["dispersion"][Verdict.HOLDS] > 3000
    assert all(row[Verdict.VIOLATED] == 0 for row in counts.values())
