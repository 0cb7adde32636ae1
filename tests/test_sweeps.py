"""Sweeps: nothing finished is ever lost, and who computes what makes no difference to the table."""

import dataclasses
import errno
import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet
import pytest
from test_leftovers import dead_process

from spectral_theorem import InputError, batched, cli, launch, storage, sweeps
from spectral_theorem.experiment import load
from spectral_theorem.launch import Heart, Share, join, launched, read_shard, wait_for_others
from spectral_theorem.runs import read_summary
from spectral_theorem.shards import CELLS, Store, compact, digest, finished, read_rows, write_shard

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py")) for name in ("kill_sweep", "devices_sweep")}
ROUNDING = SCRIPTS["kill_sweep"]["EXPERIMENT"]
AXES = ("scale=1,2", "seed=0:4:5")  # ten cells, one program
HOST = '''"""The half of a number is half of it.

Kind: tight. Expected: equality. Refuted by: another number.
"""
import dataclasses, os, signal
@dataclasses.dataclass(frozen=True)
class Config:
    n: int = 0
def run(config):
    {trouble}
    return [{{"half": config.n / 2, "of": k}} for k in range(2)]
def verdict(records): return "{verdict}", f"{{len(records)}} rows"
'''


@pytest.fixture
def rounding(tmp_path):
    path = tmp_path / "rounding.py"
    path.write_text(ROUNDING)
    return path


def host(folder, trouble="pass", verdict="HOLDS"):
    path = folder / "half.py"
    path.write_text(HOST.format(trouble=trouble, verdict=verdict))
    return path


def table(folder):
    return read_rows(Store(folder))


# ---------------------------------------------------------------- what a sweep leaves


def test_a_sweep_concludes_and_goes_on_from_nothing_twice(rounding, tmp_path):
    out = tmp_path / "out"
    found = sweeps.run(experiment=rounding, out=str(out), set=AXES, batch=4)
    assert found.exit_code == 0 and found.record["computed"] == 10 and found.text.startswith("HOLDS")
    assert len(list((out / CELLS).iterdir())) == 3  # 4 + 4 + 2
    rows = table(out).to_pylist()
    assert [(r["cell"], r["scale"], r["seed"]) for r in rows] == [
        (5 * i + j, i + 1.0, j) for i in range(2) for j in range(5)
    ]
    summary = read_summary(out)
    assert summary["verdicts"] == {"rounding": {"rounding": "HOLDS"}} and summary["rows"] == 10
    assert summary["table_digest"] == digest(table(out)) and summary["seeds"] == [0, 1, 2, 3, 4]
    again = sweeps.run(experiment=rounding, out=str(out), set=AXES, batch=4, compact=True)
    assert again.record["computed"] == 0 and [p.name[:6] for p in (out / CELLS).iterdir()] == ["whole-"]
    assert digest(table(out)) == summary["table_digest"]
    # a reader who knows nothing of us finds the same rows
    assert len(pyarrow.parquet.read_table(out / CELLS)) == 10


def test_rows_are_those_of_the_cell_alone(rounding, tmp_path):
    sweeps.run(experiment=rounding, out=str(tmp_path / "out"), set=AXES, batch=64)
    experiment = load(rounding)
    row = table(tmp_path / "out").to_pylist()[7]
    (alone,) = experiment.run(experiment.config(scale=2.0, seed=2))
    assert row["total"] == pytest.approx(alone["total"], rel=1e-14) and row["seed"] == 2
    expected = 2.0 * np.sum(jax.random.uniform(jax.random.key(2), (64,)))
    assert row["total"] == pytest.approx(float(expected), rel=1e-14)


def test_experiments_that_cannot_be_traced_run_cell_by_cell(tmp_path):
    out = tmp_path / "out"
    found = sweeps.run(experiment=host(tmp_path), out=str(out), set=("n=0:4:5",))
    assert found.exit_code == 0 and found.record["sentence"] == "10 rows"
    assert table(out).column("half").to_pylist() == [n / 2 for n in range(5) for _ in range(2)]
    assert table(out).column("row").to_pylist() == [0, 1] * 5


def test_a_violated_claim_is_exit_code_1(tmp_path):
    found = sweeps.run(experiment=host(tmp_path, verdict="VIOLATED"), out=str(tmp_path / "out"))
    assert found.exit_code == 1 and found.text.startswith("VIOLATED")


def test_shares_make_one_table(rounding, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    sweeps.run(experiment=rounding, out=str(whole), set=AXES, batch=2)
    first = sweeps.run(experiment=rounding, out=str(shared), set=AXES, batch=2, shard="0/2")
    assert first.exit_code == 0 and first.record["computed"] == 6 and "share 0 of 2" in first.text
    assert not (shared / "summary.json").exists()
    second = sweeps.run(experiment=rounding, out=str(shared), set=AXES, batch=2, shard="1/2")
    assert second.record["computed"] == 4 and read_summary(shared)["status"] == "done"
    assert digest(table(whole)) == digest(table(shared))


def test_a_dry_run_writes_nothing(rounding, tmp_path):
    out = tmp_path / "out"
    found = sweeps.run(experiment=rounding, out=str(out), set=AXES, dry_run=True)
    assert found.record["cells"] == found.record["left"] == 10 and found.record["programs"] == 1
    assert found.record["seconds"] > 0 and found.record["memory_bytes_per_device"] > 0 and not out.exists()
    sweeps.run(experiment=rounding, out=str(out), set=AXES, shard="0/2", batch=2)
    left = sweeps.run(experiment=rounding, out=str(out), set=AXES, dry_run=True, batch=2)
    assert left.record["left"] == 4
    assert sweeps.run(experiment=host(tmp_path), set=("n=0:4:5",), dry_run=True).record["batches"] == 5


def test_any_filesystem_that_pyarrow_opens(rounding, tmp_path):
    pytest.importorskip("fsspec")
    out = f"fsspec+memory://{tmp_path.name}/out"
    found = sweeps.run(experiment=rounding, out=out, set=AXES, batch=4, compact=True)
    assert found.record["computed"] == 10 and len(Store(out).names(CELLS)) == 1
    assert sweeps.run(experiment=rounding, out=out, set=AXES, batch=4).record["computed"] == 0
    sweeps.run(experiment=rounding, out=f"file://{tmp_path}/local", set=AXES, batch=4)
    assert digest(table(tmp_path / "local")) == digest(table(out))


# ---------------------------------------------------------------- what may go wrong


def test_sigterm_keeps_what_is_finished_and_exits_75(tmp_path, capsys):
    flag = tmp_path / "killed"
    trouble = f"""if config.n == 3 and not os.path.exists({str(flag)!r}):
        open({str(flag)!r}, "w").close(); os.kill(os.getpid(), signal.SIGTERM)"""
    words = ["sweep", str(host(tmp_path, trouble)), "--out", str(tmp_path / "out"), "--set", "n=0:5:6"]
    assert cli.main(words) == cli.STOPPED
    assert "SIGTERM" in capsys.readouterr().err
    assert table(tmp_path / "out").column("n").to_pylist() == [0, 0, 1, 1, 2, 2]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == 3


def test_a_full_disk_loses_nothing(rounding, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["sweep", str(rounding), "--out", str(out), *(w for axis in AXES for w in ("--set", axis)), "--batch", "2"]
    real, left = os.fsync, [6]

    def full(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli.main(words) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert "No space left on device" in said and "finished cells stay" in said and said.count("\n") == 1
    there = len(finished(Store(out)))
    assert 0 < there < 10 and not list(out.rglob(".*.tmp"))
    stale = out / CELLS / f".part-x.parquet.{storage._here()}-{dead_process()}-00000000.tmp"
    stale.write_bytes(b"half")  # as a killed process leaves it
    assert cli.main(words) == 0 and not stale.exists()
    sweeps.run(experiment=rounding, out=str(tmp_path / "calm"), set=AXES, batch=2)
    assert digest(table(out)) == digest(table(tmp_path / "calm"))


def test_memory_that_runs_out_halves_the_batch(rounding, tmp_path, monkeypatch):
    real = batched.Program.__call__

    def small(self, batches):
        if self.width > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return real(self, batches)

    monkeypatch.setattr(batched.Program, "__call__", small)
    found = sweeps.run(experiment=rounding, out=str(tmp_path / "out"), set=AXES, batch=8)
    assert found.exit_code == 0 and found.record["halved"] == [8, 4] and "memory ran out" in found.text
    monkeypatch.setattr(batched.Program, "__call__", real)
    sweeps.run(experiment=rounding, out=str(tmp_path / "calm"), set=AXES, batch=8)
    close = [np.asarray(table(tmp_path / name).column("total")) for name in ("out", "calm")]
    np.testing.assert_allclose(*close, rtol=1e-14)
    monkeypatch.setattr(batched.Program, "__call__", lambda *_: (_ for _ in ()).throw(MemoryError("none")))
    with pytest.raises(InputError, match="a failure in every cell"):
        sweeps.run(experiment=rounding, out=str(tmp_path / "none"), set=AXES, batch=2)


def test_a_cell_that_fails_is_listed_and_the_others_stay(tmp_path):
    path = host(tmp_path, "if config.n == 1: raise ZeroDivisionError('by nought')")
    found = sweeps.run(experiment=path, out=str(tmp_path / "out"), set=("n=0,1,2",))
    assert found.exit_code == 3 and found.record["failed"] == [{"cell": 1, "reason": "ZeroDivisionError: by nought"}]
    assert "cell 1 failed: ZeroDivisionError: by nought" in found.text
    assert table(tmp_path / "out").column("n").to_pylist() == [0, 0, 2, 2]
    with pytest.raises(InputError, match="by nought"):
        sweeps.run(experiment=path, out=str(tmp_path / "other"), set=("n=1",))
    path = host(tmp_path, "if config.n == 1: return []")
    assert sweeps.run(experiment=path, out=str(tmp_path / "third"), set=("n=0,1",)).exit_code == 3


def test_a_cell_that_cannot_be_traced_says_so(rounding, tmp_path):
    rounding.write_text(ROUNDING.replace("x = config.scale", "x = float(config.scale)"))
    with pytest.raises(InputError, match="ConcretizationTypeError"):
        sweeps.run(experiment=rounding, out=str(tmp_path / "out"), set=AXES)
    rounding.write_text(ROUNDING.replace('"total": jnp.sum(x)', '"total": x'))
    with pytest.raises(InputError, match=r"'total' of shape \(64,\)"):
        sweeps.run(experiment=rounding, out=str(tmp_path / "vector"), set=AXES)


def test_folders_of_others_are_refused(rounding, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sweeps.run(experiment=host(tmp_path), out=str(out), set=("n=0,1",))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"which holds another sweep \(experiment: half\)"):
        sweeps.run(experiment=rounding, out=str(out), set=AXES)
    with pytest.raises(InputError, match=r"which holds another sweep \(design: "):
        sweeps.run(experiment=host(tmp_path), out=str(out), set=("n=0,2",))
    with pytest.raises(InputError, match=r"another version \(code: file "):
        sweeps.run(experiment=host(tmp_path, "1 + 1"), out=str(out), set=("n=0,1",))
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"another version \(code: package "):
        patch.setattr(sweeps, "source_digest", lambda: "other")
        sweeps.run(experiment=host(tmp_path), out=str(out), set=("n=0,1",))
    with pytest.raises(InputError, match="code: dtype float64"):
        sweeps.run(experiment=host(tmp_path), out=str(out), set=("n=0,1",), dtype="float32")
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a folder with thesis\.txt in it"):
        sweeps.run(experiment=host(tmp_path), out=str(tmp_path / "mine"))
    (out / "sweep.json").write_text("[")
    with pytest.raises(InputError, match="no record of a sweep"):
        sweeps.run(experiment=host(tmp_path), out=str(out), set=("n=0,1",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "no --out"),
        ({"out": "x", "batch": 0}, "--batch 0"),
        ({"out": "x", "devices": 0}, "--devices 0"),
        ({"out": "x", "devices": 4096}, "--devices 4096"),
        ({"out": "x", "shard": "2/2"}, "i from 0 to n-1"),
        ({"out": "x", "shard": "0/2", "coordinator": "auto"}, "--shard and --coordinator"),
        ({"out": "x", "processes": 2}, "without --coordinator"),
        ({"out": "x", "coordinator": "a:1", "processes": 2}, "0 <= i < N"),
        ({"out": "x", "coordinator": "a", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"out": "nowhere://x"}, "which nothing opens"),
        ({"out": "x", "set": ("m=1",)}, "the key 'm' in --set; expected one of n; try"),
        ({"out": "x", "random": 0}, "an empty design"),
    ],
)
def test_bad_options_are_named(tmp_path, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        sweeps.run(experiment=host(tmp_path), **words)
    assert not (tmp_path / "x").exists()


def test_a_file_in_place_of_a_folder_and_a_broken_shard(tmp_path):
    path = host(tmp_path)
    with pytest.raises(InputError, match="which is a file"):
        sweeps.run(experiment=path, out=str(path))
    sweeps.run(experiment=path, out=str(tmp_path / "out"))
    (shard,) = (tmp_path / "out" / CELLS).iterdir()
    shard.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-.*, which cannot be read"):
        sweeps.run(experiment=path, out=str(tmp_path / "out"))


# ---------------------------------------------------------------- shards


def test_joining_shards_while_others_write_loses_nothing(tmp_path):
    store = Store(tmp_path)
    row = lambda cell, **more: {"key": f"k{cell}", "cell": cell, "row": 0, "x": float("nan"), **more}
    for cell in range(4):
        write_shard(store, [row(cell)])
    calm = digest(read_rows(store))
    one = (tmp_path / CELLS / store.names(CELLS)[0]).read_bytes()
    assert compact(store) == 4 and len(store.names(CELLS)) == 1
    (tmp_path / CELLS / "part-late.parquet").write_bytes(one)  # written again by somebody who was late
    (tmp_path / CELLS / ".part-x.parquet.1.tmp").write_bytes(b"half")
    assert digest(read_rows(store)) == calm and finished(store) == {"k0", "k1", "k2", "k3"}
    compact(store)
    assert digest(read_rows(store)) == calm
    write_shard(store, [row(4, y=1)])  # a column that others lack
    assert read_rows(store).column("y").to_pylist() == [None] * 4 + [1]
    write_shard(store, [row(5, y="text")])
    with pytest.raises(InputError, match="do not fit together"):
        read_rows(store)
    with pytest.raises(InputError, match="a column of several types"):
        write_shard(store, [row(6, y="text"), row(7, y=1.0)])


# ---------------------------------------------------------------- devices, processes, kills


def test_devices_processes_and_a_lost_process_leave_one_table(rounding, tmp_path):
    given = [str(rounding), "--batch", "4", *(w for axis in ("scale=1:9:40", "seed=0:4:5") for w in ("--set", axis))]
    found = SCRIPTS["devices_sweep"]["compare"](tmp_path, given)
    assert [run["equal_to_one_device"] for run in found["runs"]] == [True] * 4
    assert {run["rows"] for run in found["runs"]} == {200} and {run["largest_difference"] for run in found["runs"]} == {
        0
    }
    lost = found["lost"]
    if lost["cells"] < 200:  # the one that was killed had not finished
        assert lost["exit_code"] == 3 and any("lost: process 1" in line for line in lost["said"])


@pytest.mark.parametrize("processes", [1, 2])
def test_kills_lose_nothing(tmp_path, processes):
    found = SCRIPTS["kill_sweep"]["disturb"](tmp_path, kills=3 * processes, processes=processes, seed=processes)
    assert found["kills"] >= 3 * processes and found["sweeps"] >= 1
    assert found["lost_cells"] == found["unreadable_files"] == found["different_tables"] == 0


def test_a_program_pads_and_keeps_places():
    @dataclasses.dataclass(frozen=True)
    class Config:
        x: float = 1.0
        seed: int = 0

    program = batched.Program(lambda config, key: {"y": 2 * config.x}, Config(), width=4)
    assert program([[Config(x) for x in (1.0, 2.0, 3.0)]]) == [[{"y": 2.0}, {"y": 4.0}, {"y": 6.0}]]
    assert batched.groups([Config(1.0), Config(2.0, seed=3)]) == [[0, 1]] and batched.groups([]) == []
    with pytest.raises(InputError, match="seed=-1"):
        program([[Config(seed=-1)]])


def test_a_silent_process_is_lost_and_a_beating_one_is_not(tmp_path):
    store = Store(tmp_path)
    store.write("processes/00001.json", b'{"status": "running", "beat": 1}')
    store.write("processes/00002.json", b'{"status": "stopped", "beat": 9}')
    store.write("processes/00003.json", b'{"status": "done", "beat": 9}')
    assert wait_for_others(store, Share(0, 4, joined=True), patience=0.2, done=lambda: False) == [2, 1]
    assert wait_for_others(store, Share(0, 4, joined=True), patience=0.2, done=lambda: True) == []


def test_a_heart_beats_until_its_work_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "BEAT_SECONDS", 0.02)
    store, said = Store(tmp_path), threading.Event()
    with Heart(store, Share(1, 2, joined=True)):
        first = store.read("processes/00001.json")
        while store.read("processes/00001.json") == first:
            said.wait(0.01)
    assert json.loads(store.read("processes/00001.json") or b"")["status"] == "done"
    with pytest.raises(KeyError), Heart(store, Share(1, 2, joined=True)):
        raise KeyError
    assert json.loads(store.read("processes/00001.json") or b"")["status"] == "stopped"
    with Heart(Store(tmp_path / "alone"), Share()):
        pass
    assert not (tmp_path / "alone").exists()


def test_launchers_are_recognised(monkeypatch):
    assert launched({"OMPI_COMM_WORLD_SIZE": "4"}) and launched({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert not launched({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "a"})
    assert read_shard("0/1") == Share() and join(None, None, None) == Share()
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **where: asked.append(where))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert join(None, None, None) == Share(0, 1, joined=True)  # jax.distributed finds out who and where
    assert asked == [{"initialization_timeout": 2 * launch.JOIN_SECONDS}]


def test_a_process_that_waits_in_vain_ends_with_one_line(rounding, tmp_path):
    given = [str(rounding), "--out", str(tmp_path / "out"), "--coordinator", "127.0.0.1:1", "--processes", "2"]
    program = "import sys; from spectral_theorem import cli, launch; launch.JOIN_SECONDS = 2; sys.exit(cli.main())"
    command = [sys.executable, "-c", program, "sweep", *given, "--process", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == 2
    said = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "no meeting of all processes within 2 s" in said[0] and not (tmp_path / "out").exists()


def test_the_scripts_see_what_they_count(tmp_path):
    store = Store(tmp_path)
    for cell in range(3):
        write_shard(store, [{"key": f"k{cell}", "cell": cell, "row": 0, "x": 1.0 + cell}])
    inspect, difference = SCRIPTS["kill_sweep"]["_inspect"], SCRIPTS["devices_sweep"]["_difference"]
    before = read_rows(store)
    assert inspect(store) == ({"k0", "k1", "k2"}, 0) and difference(before, before) == 0
    name = store.names(CELLS)[0]
    store.write(f"{CELLS}/{name}", (store.read(f"{CELLS}/{name}") or b"")[:-9])  # as a writer in place would leave it
    assert inspect(store) == (set(), 1)
    store.remove(f"{CELLS}/{name}")
    assert len(inspect(store)[0]) == 2
    store.write("summary.json", b"{")
    assert inspect(store)[1] == 1
    other = before.set_column(before.column_names.index("x"), "x", [[1.0, 2.0, 3.0 + 1e-12]])
    assert difference(before, other) == pytest.approx(1e-12 / 3, rel=1e-3) and digest(before) != digest(other)
