"""Run folders: what is written comes back, a kill loses nothing whole, bad folders are refused."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from spectral_theorem.provenance import environment, source_commit
from spectral_theorem.runs import COLUMNS, SCHEMA, RunFolder, read_run, read_summary
from spectral_theorem.storage import json_ready, write_atomically
from spectral_theorem.types import InputError, Verdict

ROW = {"clip": "a", "component": "decoder", "layer": 3, "step": 0, "quantity": "xi", "value": 0.25, "error": 1e-9}


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and text.startswith("got ") and "; expected " in text and "; try " in text
    return text


def test_round_trip(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.write_table([ROW, {**ROW, "layer": 4, "verdict": Verdict.HOLDS}], part="first")
    run.write_table([{"quantity": "kappa", "value": np.float32(0.5), "layer": jnp.asarray(1)}], part="second")
    run.write_summary({"config": {"layers": 4}, "seeds": [0], "dtype": "float64", "verdicts": {"C1": Verdict.HOLDS}})
    record = read_run(tmp_path / "run")
    assert record.table.column_names == list(COLUMNS)
    assert [row["value"] for row in record.rows] == [0.25, 0.25, 0.5]
    assert [row["verdict"] for row in record.rows] == [None, "HOLDS", None]
    assert {row["run_id"] for row in record.rows} == {run.run_id}
    assert record.rows[0] == dict.fromkeys(COLUMNS) | ROW | {"run_id": run.run_id}
    assert record.summary["schema"] == SCHEMA
    assert record.summary["status"] == "done"
    assert record.summary["config"] == {"layers": 4}
    assert record.summary["verdicts"] == {"C1": "HOLDS"}
    assert record.summary["versions"]["jax"]


def test_parts_have_the_types_the_schema_promises(tmp_path):
    path = RunFolder(tmp_path).write_table([{"quantity": "xi"}])
    found = {field.name: str(field.type) for field in pyarrow.parquet.read_schema(path)}
    assert found == {name: {"float64": "double"}.get(kind, kind) for name, kind in COLUMNS.items()}


def test_a_part_written_again_is_replaced(tmp_path):
    run = RunFolder(tmp_path)
    run.write_table([ROW, ROW], part="cell")
    run.write_table([{**ROW, "value": 1.0}], part="cell")
    run.write_summary({})
    assert [row["value"] for row in read_run(tmp_path).rows] == [1.0]


def test_numbers_json_cannot_hold_become_null_with_a_reason(tmp_path):
    content = {"a": [1.0, math.nan], "b": {"c": jnp.asarray([-math.inf])}, "d": np.float64("inf"), "e": None}
    RunFolder(tmp_path).write_summary(content)
    summary = read_summary(tmp_path)
    assert (summary["a"], summary["b"], summary["d"]) == ([1.0, None], {"c": [None]}, None)
    assert summary["nulls"] == [
        {"path": "a[1]", "reason": "nan"},
        {"path": "b.c[0]", "reason": "-inf"},
        {"path": "d", "reason": "inf"},
    ]
    text = (tmp_path / "summary.json").read_text()
    json.loads(text, parse_constant=pytest.fail)


def test_nan_in_the_table_is_null_and_infinity_stays(tmp_path):
    run = RunFolder(tmp_path)
    run.write_table([{**ROW, "value": math.nan, "error": math.nan}, {**ROW, "value": -math.inf}])
    run.write_summary({})
    assert [(row["value"], row["error"]) for row in read_run(tmp_path).rows] == [(None, None), (-math.inf, 1e-9)]


def test_json_ready_sees_through_containers():
    @dataclasses.dataclass(frozen=True)
    class Config:
        path: Path
        verdict: Verdict
        numbers: tuple[float, ...]

    ready, nulls = json_ready({"config": Config(Path("a/b"), Verdict.VIOLATED, (1.0, math.inf)), "n": np.int32(3)})
    assert ready == {"config": {"path": "a/b", "verdict": "VIOLATED", "numbers": [1.0, None]}, "n": 3}
    assert nulls == [{"path": "config.numbers[1]", "reason": "inf"}]
    with pytest.raises(TypeError, match=r"x\.y of type object"):
        json_ready({"x": {"y": object()}})


@pytest.mark.parametrize("row", [{"quantity": "xi", "colour": "red"}, {"value": 1.0}])
def test_rows_outside_the_schema_are_refused(tmp_path, row):
    with pytest.raises(ValueError, match="got "):
        RunFolder(tmp_path).write_table([row])
    assert not (tmp_path / "table").exists()


def test_the_run_folder_keeps_its_own_keys(tmp_path):
    with pytest.raises(ValueError, match="run_id"):
        RunFolder(tmp_path).write_summary({"run_id": "mine"})


def test_an_earlier_run_is_replaced_at_the_first_write_and_not_before(tmp_path):
    first = RunFolder(tmp_path)
    first.write_table([ROW], part="old")
    first.write_summary({"which": "first"})
    (tmp_path / "chain.npz").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    second = RunFolder(tmp_path)
    assert read_run(tmp_path).summary["which"] == "first"
    second.write_table([{**ROW, "value": 2.0}], part="new")
    assert read_summary(tmp_path)["status"] == "running"
    second.write_summary({"which": "second"})
    assert [row["value"] for row in read_run(tmp_path).rows] == [2.0]
    assert not (tmp_path / "chain.npz").exists()
    assert (tmp_path / "notes.txt").exists()


def test_parts_of_another_run_are_not_read(tmp_path):
    RunFolder(tmp_path / "a").write_table([ROW], part="foreign")
    run = RunFolder(tmp_path / "b")
    run.write_table([ROW], part="own")
    run.write_summary({})
    foreign = tmp_path / "a/table/part-foreign.parquet"
    (tmp_path / "b/table/part-foreign.parquet").write_bytes(foreign.read_bytes())
    assert len(read_run(tmp_path / "b").rows) == 1


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/nowhere", "foreign", "foreign_json"])
def test_bad_folders_are_refused_in_one_line(tmp_path, where):
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.tex").write_text("x")
    (tmp_path / "foreign_json").mkdir()
    (tmp_path / "foreign_json/summary.json").write_text("[1]")
    with pytest.raises(InputError) as error:
        RunFolder(tmp_path / where)
    assert where in one_line(error)
    assert (tmp_path / "foreign/thesis.tex").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InputError) as error:
        RunFolder(tmp_path / "run")
    assert "cannot be written" in one_line(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "without a readable summary.json"),
        ("{", "without a readable summary.json"),
        ("[]", "without a run_id"),
        ('{"run_id": "x", "schema": 999}', "schema 999"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_run(tmp_path)
    assert expected in one_line(error)


def test_a_damaged_part_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    part = run.write_table([ROW])
    run.write_summary({})
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError) as error:
        read_run(tmp_path)
    assert "part-all.parquet" in one_line(error)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import itertools, sys
from spectral_theorem.runs import RunFolder
run = RunFolder(sys.argv[1])
for size in itertools.count(1):
    run.write_table([{"quantity": "xi", "value": float(i)} for i in range(100)], part=f"{size % 7}")
    print(size, flush=True)
"""


def test_a_killed_writer_leaves_whole_files_only(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    with process:
        assert process.stdout is not None
        for _ in range(20):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    record = read_run(folder)
    assert record.summary["status"] == "running"
    assert len(record.rows) == 700
    resumed = RunFolder(folder, run_id=record.summary["run_id"])
    resumed.write_summary({})
    assert len(read_run(folder).rows) == 700
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["summary.json"]


def test_a_leftover_of_a_killed_run_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".summary.json.123.tmp").write_text("{")
    RunFolder(tmp_path).write_summary({})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_provenance_is_complete():
    found = environment()
    assert all(found["versions"].values())
    assert found["device"].startswith("cpu") or ":" in found["device"]


def test_source_commit_is_the_checkout_of_the_package(repository):
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        assert source_commit() is None
    else:
        assert source_commit() in (None, head.stdout.strip(), head.stdout.strip() + "+")
