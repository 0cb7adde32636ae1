"""The verb: sections and files of a small run, a run that goes on, and options that mean nothing."""

import csv
import json

import pytest

from spectral_theorem import SPARE_THREADS, InputError, carried, cli, sensitivity, study
from spectral_theorem.runs import read_run

ASKED = {"model": str(carried.MODEL), "clean": [carried.CLIPS], "only": "(seven|six|nine|hum)", "steps": "1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity") / "run"
    return folder, sensitivity.run(**ASKED, out=folder, detailed=0)


def test_every_question_has_a_section(run):
    folder, outcome = run
    assert outcome.exit_code == 0
    found = read_run(folder)
    ids = [section["id"] for section in found.summary["sections"]]
    assert ids == [
        *("lambda_map", "variance", "constant_lambda", "same_tokens", "ablations", "nulls", "prediction", "attractor"),
        *("suspicious", "provenance"),
    ]
    assert found.summary["verdicts"]["nulls"] == "NOT COMPUTED" and "--detailed 10" in outcome.text
    assert found.summary["verdicts"]["prediction"] == "NOT COMPUTED"  # three clips
    assert {row["condition"] for row in found.rows} == {"clean", "noise=0", "no speech"}
    numbers = [table["number"] for section in found.summary["sections"] for table in section["tables"]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(list((folder / "tables").glob("*.csv"))) == len(list((folder / "tables").glob("*.tex"))) == len(numbers)
    with (folder / "suspicious.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7  # three clips twice, and the hum
    json.dumps(outcome.record, allow_nan=False)


def test_the_same_command_goes_on_and_says_the_same(run, monkeypatch):
    folder, before = run

    def measured(*_, **__):
        raise AssertionError("what is there is measured again")

    monkeypatch.setattr(study, "measured", measured)
    after = sensitivity.run(**ASKED, out=folder, detailed=0)
    assert after.record == before.record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stress": ""}, "no recipe or one twice"),
        ({"stress": "noise=0,noise=0"}, "no recipe or one twice"),
        ({"stress": "babble=2@0"}, "without talkers"),
        ({"detailed": -1}, "--detailed -1"),
        ({"sequences": -1}, "--sequences -1"),
        ({"only": "nobody"}, "--only nobody"),
        ({"clean": []}, "no recordings"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        sensitivity.run(**ASKED | {"model": "/nowhere"} | options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_verbs_that_decompose_keep_the_threads_that_keep_them_from_waiting_for_ever(monkeypatch):
    # seen: a close look of this verb hung in batched decompositions with as many threads as processors
    seen = {}
    monkeypatch.setattr(sensitivity, "run", lambda **_: seen.setdefault("threads", cli.os.environ["PJRT_NPROC"]))
    monkeypatch.setenv("PJRT_NPROC", SPARE_THREADS)
    cli._run(cli.parse(["sensitivity", "carried", "--clean", str(carried.CLIPS), "--out", "run"]))
    assert seen["threads"] == SPARE_THREADS
