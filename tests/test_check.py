"""One `verify` from end to end: planted, written, replayed, compared; claims of the user's own."""

import dataclasses
import importlib
import json
import math
import shlex
import sys

import jax
import jax.numpy as jnp
import pytest

import spectral_theorem as st
from spectral_theorem import check, cli
from spectral_theorem.chainfile import load_chain, save_chain
from spectral_theorem.runs import read_run
from spectral_theorem.types import InputError

PLANTED = {"layers": 5, "width": 4, "context": 3, "sigma": 1.02, "kappa": 0.9999, "gamma": 0.5, "coherence": 0.9}
PURE, IMPURE = PLANTED | {"xi": 1e-3}, PLANTED | {"xi": 0.5}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    outcome = check.run(out=folder, seed=3, **PURE)
    return folder, outcome


@pytest.fixture
def verified_with(monkeypatch, run_folder):
    """Record what `verify` is asked, and answer with one verification, made once."""
    chain, _ = load_chain(run_folder[0] / "planted.npz")
    found, asked = st.verify(chain), []

    def verify(chain, thresholds):
        asked.append(thresholds)
        return found

    monkeypatch.setattr(check, "verify", verify)
    return asked


def test_the_run_folder_says_what_was_checked(run_folder):
    folder, outcome = run_folder
    assert outcome.exit_code == 0
    assert outcome.text.startswith("planted chain, seed 3: L=5, D=4, C=3, float64\nAll hypotheses hold")
    assert {path.name for path in folder.iterdir()} == {"planted.npz", "report.html", "summary.json", "table"}
    record = read_run(folder)
    assert record.summary["config"] == {"file": None, "claim": None, "thresholds": {}, **PURE}
    assert (record.summary["seeds"], record.summary["dtype"]) == ([3], "float64")
    assert record.summary["verdicts"]["planted"]["c2"] == "HOLDS"
    assert record.summary["chains"]["planted"] == outcome.record["chains"]["planted"]
    sigma = [row for row in record.rows if row["quantity"] == "sigma1"]
    assert [row["layer"] for row in sigma] == [1, 2, 3, 4, 5]
    assert all(row["value"] == pytest.approx(1.02, rel=1e-12) and row["scope"] == "synthetic" for row in sigma)
    verdicts = {row["quantity"]: row["verdict"] for row in record.rows if row["verdict"]}
    assert verdicts["condition.purity"] == verdicts["claim.c2"] == "HOLDS"


def test_a_run_folder_is_replayed_to_the_same_verdicts(run_folder):
    folder, outcome = run_folder
    again = check.run(file=folder)
    assert again.record["verdicts"] == outcome.record["verdicts"]
    assert again.record["chains"]["planted"]["layers"] == outcome.record["chains"]["planted"]["layers"]
    count = len(outcome.record["verdicts"]["planted"])
    assert again.text.endswith(f"as recorded: {count} of {count} verdicts checked again, all the same")


def test_a_verdict_that_changed_is_told(run_folder, tmp_path):
    summary = json.loads((run_folder[0] / "summary.json").read_text())
    summary["verdicts"]["planted"]["c2"] = "VIOLATED"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "planted.npz").write_bytes((run_folder[0] / "planted.npz").read_bytes())
    assert check.run(file=tmp_path).text.endswith("NOT as recorded: c2 VIOLATED -> HOLDS")


def test_hypotheses_that_fail_cost_nothing_unless_required():
    outcome = check.run(**IMPURE)
    assert outcome.exit_code == 0
    assert "H4 purity is violated" in outcome.text
    assert outcome.record["verdicts"]["planted"]["c2"] == "NOT_APPLICABLE"
    assert check.run(require="conditions", **IMPURE).exit_code == 1


def test_a_bare_archive_is_enough(tmp_path, run_folder):
    chain, _ = load_chain(run_folder[0] / "planted.npz")
    jnp.savez(tmp_path / "mine.npz", propagators=chain.propagators, injections=chain.injections)
    outcome = check.run(file=tmp_path / "mine.npz")
    assert outcome.text.startswith(f"{tmp_path / 'mine.npz'}: L=5, D=4, C=3, float64")
    assert "as recorded" not in outcome.text
    assert (outcome.record["seeds"], "layers" in outcome.record["config"]) == ([], False)


def test_thresholds_come_from_the_option_else_the_file_else_the_library(tmp_path, run_folder, verified_with):
    chain, _ = load_chain(run_folder[0] / "planted.npz")
    path = save_chain(tmp_path / "chain.npz", chain, {"thresholds": {"purity": 0.5, "gain": 0.9}})
    check.run(file=path, thresholds={"purity": 0.25})
    assert verified_with == [dataclasses.replace(st.Thresholds(), purity=0.25, gain=0.9)]


def test_a_recorded_claim_is_compared_but_never_imported_on_the_files_word(tmp_path, run_folder, verified_with):
    chain, _ = load_chain(run_folder[0] / "planted.npz")
    path = save_chain(tmp_path / "chain.npz", chain, {"claim": "os:abort", "expected": "VIOLATED"})
    outcome = check.run(file=path)
    assert outcome.exit_code == 0
    assert outcome.text.endswith("recorded, not checked: os:abort VIOLATED; try --claim os:abort")


OWN = """
import jax.numpy as jnp
def gains_are_at_most_one(chain):
    return jnp.linalg.norm(chain.propagators, 2, axis=(1, 2)), 1.0
def gains_are_at_most_two(chain):
    return jnp.linalg.norm(chain.propagators, 2, axis=(1, 2)), 2.0
def not_a_number(chain):
    return jnp.nan, 1.0
def breaks(chain):
    raise RuntimeError("first line\\nsecond line")
number = 3
"""


@pytest.fixture
def own_claims(tmp_path, monkeypatch):
    (tmp_path / "own_claims.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("gains_are_at_most_one", "VIOLATED"), ("gains_are_at_most_two", "HOLDS"), ("not_a_number", "VIOLATED")],
)
def test_a_claim_of_the_users_own(own_claims, run_folder, verified_with, name, verdict):
    outcome = check.run(file=run_folder[0], claim=f"own_claims:{name}")
    assert f"claim own_claims:{name}: {verdict}" in outcome.text
    assert outcome.record["verdicts"]["planted"][f"own_claims:{name}"] == verdict
    assert outcome.exit_code == (verdict == "VIOLATED")
    assert "defect" not in outcome.text


def test_a_saved_counterexample_is_replayed_with_its_claim(own_claims, tmp_path, run_folder, verified_with):
    chain, _ = load_chain(run_folder[0] / "planted.npz")
    name = "own_claims:gains_are_at_most_one"
    path = save_chain(tmp_path / "chain.npz", chain, {"claim": name, "expected": "VIOLATED"})
    outcome = check.run(file=path, claim=name)
    assert outcome.text.endswith("as recorded: 1 of 1 verdicts checked again, all the same")
    assert outcome.exit_code == 1


def test_the_command_that_check_claim_prints_replays_the_counterexample(own_claims, run_folder, verified_with, capsys):
    claim = importlib.import_module("own_claims").gains_are_at_most_one
    with pytest.raises(AssertionError) as error:
        st.testing.check_claim(claim, chains=st.testing.layer_chains(shapes=[(2, 2, 1)]), examples=30)
    command = shlex.split(str(error.value).partition("replay with: ")[2])
    assert command[0] == "spectral-theorem" and cli.main(command[1:]) == 1
    assert capsys.readouterr().out.strip().endswith("as recorded: 1 of 1 verdicts checked again, all the same")
    sys.modules.pop("own_claims")


@pytest.mark.parametrize(
    "claim", ["own_claims", "own_claims:", ":x", "own_claims:none", "none:x", "own_claims:number", "own_claims:breaks"]
)
def test_claims_that_cannot_be_used(own_claims, run_folder, verified_with, claim):
    with pytest.raises(InputError) as error:
        check.run(file=run_folder[0], claim=claim)
    assert claim in str(error.value)


def test_a_chain_too_large_for_the_machine_is_refused_before_it_is_made():
    with pytest.raises(InputError, match="GB"):
        check.run(**PURE | {"layers": 10**9})


def test_single_precision_from_the_command_line(capsys):
    """The only test that may change the 64-bit mode, so it changes it back."""
    arguments = [part for name, value in PURE.items() for part in (f"--{name}", str(value))]
    try:
        assert cli.main(["verify", *arguments, "--dtype", "float32", "--json"]) == 0
    finally:
        jax.config.update("jax_enable_x64", True)
    record = json.loads(capsys.readouterr().out)
    assert record["dtype"] == "float32"
    assert math.isclose(record["chains"]["planted"]["layers"][0]["sigma1"], 1.02, rel_tol=1e-6)
