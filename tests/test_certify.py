"""Ball arithmetic: enclosures that contain, proofs that agree with mpmath, and bounds that are wrong by little."""

import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import balls, certification, check, cli
from spectral_theorem.ballbounds import BallBounds
from spectral_theorem.ballclaims import CLAIM_SLACKS, CONDITION_SLACKS, JOINED, NOT_COVERED, Slack
from spectral_theorem.chainfile import save_chain
from spectral_theorem.claims import CLAIMS
from spectral_theorem.conditions import ROWS
from spectral_theorem.recipes import KINDS, make_chain
from spectral_theorem.types import InputError, Reason, Verdict

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def comparison():
    """The script that compares with mpmath, as a module."""
    spec = importlib.util.spec_from_file_location("measure_certified", ROOT / "scripts" / "measure_certified.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def diagonal_chain(depth=4):
    """The chain on which transfer, telescoping of it and row-exact are attained: all kappa 1, xi 1/2."""
    w = jnp.asarray([np.diag([1.0, 0.5])] * depth)
    g = jnp.asarray([[[0.25], [1.0]]] * depth)
    return st.LayerChain(w, g)


def test_nothing_that_verify_says_is_left_out():
    assert set(CLAIM_SLACKS) == set(CLAIMS)
    assert {*CONDITION_SLACKS, *JOINED, *NOT_COVERED} == set(ROWS)


@pytest.mark.parametrize("case", range(0, 2 * len(KINDS), 3))
def test_every_slack_lies_where_mpmath_finds_it(comparison, case):
    chain = make_chain(KINDS[case % len(KINDS)], shape=(3, 3, 2), seed=case, initial=case % 4 == 0)
    counts, complaints, _, _ = comparison.compared(chain)
    assert complaints == []
    assert counts["sure"] >= 8


def test_the_comparison_can_fail(comparison, monkeypatch):
    chain = make_chain("plain", shape=(3, 3, 2), seed=1)
    monkeypatch.setattr(
        BallBounds, "paper", lambda self, honest=BallBounds.paper: honest(self) * (1 + balls.number(1e-30))
    )
    assert any("telescoping_paper" in said for said in comparison.compared(chain)[1])


@pytest.mark.parametrize(
    ("matrix", "gap"),
    [
        (np.diag([3.0, 3.0, 1.0]), False),
        (np.eye(3), False),
        (np.zeros((2, 2)), False),
        (np.outer([1.0, 2.0, 2.0], [2.0, -1.0, 2.0]), True),
        (np.asarray([[1.0, 1e-17], [0.0, 1.0]]), True),
        (np.asarray([[-2.5]]), True),
    ],
)
def test_singular_values_are_enclosed_whatever_is_tied(matrix, gap):
    with balls.precision(200):
        found = balls.enclose(balls.exact(matrix))
        squares = [x * x for x in found.sigma]
        gram = balls.exact(matrix).transpose() * balls.exact(matrix)
        trace = balls.total(gram[i, i] for i in range(len(matrix)))
        assert (balls.total(squares) - trace).contains(0)
        assert found.defect < 1e-50
        np.testing.assert_allclose([float(x) for x in found.sigma], np.linalg.svd(matrix)[1], atol=1e-14)
        if gap:
            u, v = found.triplet(0)
            misfit = balls.exact(matrix) * v - u * found.sigma[0]
            assert all(x.contains(0) and x.rad() < 1e-25 for x in misfit.entries())


def test_a_decomposition_that_is_off_says_so(monkeypatch):
    matrix = balls.exact(np.asarray([[3.0, 0.0], [4.0, 5.0]]))
    honest = balls._refined

    def tilted(m):
        left, right = honest(m)
        return left + balls.exact(np.full((2, 2), 1e-6)), right

    monkeypatch.setattr(balls, "_refined", tilted)
    with balls.precision(128):
        found = balls.enclose(matrix)
        assert (found.sigma[0] ** 2 - 45).contains(0)
        assert found.sigma[0].rad() > 1e-8


@pytest.mark.parametrize("shrunk", [1e-8, 1e-12, 1e-30])
@pytest.mark.parametrize(
    ("claim", "wrong"),
    [
        ("residual_transfer", lambda c, by: BallBounds(c).transfer() * (1 - by) - balls.frobenius(c.residual)),
        ("row_exact_upper", lambda c, by: BallBounds(c).row_exact()[1] * (1 - by) - balls.frobenius(c.residual)),
        ("top_k_upper", lambda c, by: BallBounds(c).top_k(2)[1] * (1 - by) - balls.frobenius(c.residual)),
    ],
)
def test_a_bound_wrong_by_little_is_refuted(claim, wrong, shrunk):
    chain = diagonal_chain()
    slacks = {claim: lambda c, t: [Slack(wrong(c, balls.number(shrunk)))]}
    found = st.certify(chain, names=[claim], everything=True, slacks=slacks)[claim]
    assert found.verdict is Verdict.VIOLATED and found.proof and found.high < 0
    honest = st.certify(chain, names=[claim], everything=True)[claim]
    assert honest.verdict is not Verdict.VIOLATED


def test_a_threshold_met_exactly_is_met():
    chain = st.LayerChain(jnp.asarray([np.diag([2.0, 1.0])] * 3), jnp.ones((3, 2, 1)))
    for gain, verdict in ((2.0, Verdict.HOLDS), (np.nextafter(2.0, 3.0), Verdict.VIOLATED)):
        limits = st.Thresholds(gain=float(gain))
        assert st.verify(chain, limits).conditions.stability.verdict is Verdict.UNDECIDED
        found = st.certify(chain, limits)
        assert found["gain"].verdict is verdict and found["gain"].proof
        assert found["stability"].verdict is verdict
    # what waited for the condition follows
    assert found["c1"].verdict is Verdict.NOT_APPLICABLE


def test_nothing_that_surely_holds_is_worked_out():
    chain = make_chain("plain", shape=(3, 3, 2), seed=4)
    found = st.certify(chain)
    assert "telescoping_paper" not in found
    every = st.certify(chain, everything=True)
    assert every["telescoping_paper"].proof
    assert all(r.verdict is not Verdict.VIOLATED for name, r in every.items() if name in CLAIMS)


def test_nearly_tied_values_are_told_apart_and_tied_ones_are_not():
    near = st.LayerChain(jnp.asarray([np.diag([1.0, 1.0 - 4e-16])] * 3), jnp.ones((3, 2, 1)))
    assert st.verify(near).conditions.stability.reason is Reason.TIE
    assert st.certify(near)["gain"].verdict is Verdict.HOLDS
    tied = st.LayerChain(jnp.asarray([np.eye(2)] * 3), jnp.ones((3, 2, 1)))
    found = st.certify(tied)["gain"]
    assert found.verdict is Verdict.UNDECIDED and "tie" in found.says


def test_a_chain_too_deep_stays_undecided(monkeypatch):
    monkeypatch.setattr(certification, "LARGEST_BITS", 100)
    chain = st.LayerChain(jnp.asarray([np.diag([2.0, 1.0])] * 3), jnp.ones((3, 2, 1)))
    found = st.certify(chain, st.Thresholds(gain=2.0), names=["gain"])["gain"]
    assert found.verdict is Verdict.UNDECIDED and "deep" in found.says


def test_the_command_line_says_what_was_proved(tmp_path, capsys):
    file = save_chain(tmp_path / "edge.npz", diagonal_chain(), thresholds={"gain": 1.0})
    outcome = check.run(file=file, certify=True)
    chain = outcome.record["chains"]["edge"]
    assert chain["conditions"]["stability"]["parts"]["gain"]["verdict"] == "HOLDS"
    assert chain["certified"]["statements"]["gain"]["says"] == "proved"
    assert chain["certified"]["seconds"] > 0
    assert "proved or refuted" in outcome.text
    json.dumps(outcome.record, allow_nan=False)
    assert cli.parse(["verify", str(file), "--certify"]).certify


def test_without_the_package_the_option_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    balls.flint.cache_clear()
    try:
        with pytest.raises(InputError, match="certify"):
            check.run(
                certify=True, layers=3, width=2, context=1, sigma=1.0, kappa=1.0, xi=0.1, gamma=1.0, coherence=1.0
            )
    finally:
        balls.flint.cache_clear()


def test_only_chains_with_entries_are_taken():
    with pytest.raises(InputError, match="LayerChain"):
        st.certify(object())
