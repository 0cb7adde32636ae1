"""Bad input on the command line: one line on standard error, exit code 2, no traceback, files stay."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from spectral_theorem import cli

W = np.tile(np.eye(3), (4, 1, 1))
G = np.ones((4, 3, 2))


@pytest.fixture
def refused(capsys):
    """Run a command line that must be refused; give the one line."""

    def run(*arguments) -> str:
        assert cli.main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("error: got ")
        assert "; expected " in said.err and "; try " in said.err
        return said.err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no verb"),
        (["verfy"], "one of verify, demo, measure"),
        (["verify", "--layres", "3"], "--layers INT"),
        (["verify", "--layers", "many"], "--layers 'many'"),
        (["verify", "--layers"], "--layers without a value"),
        (["verify", "--dtype", "float16"], "--dtype 'float16'"),
        (["verify", "--require", "claims"], "--require 'claims'"),
        (["verify", "--thresholds.purity", "small"], "--thresholds.purity 'small'"),
        (["verify", "a.npz", "b.npz"], "unknown b.npz"),
        (["verify", "a.npz", "--layers", "3", "--seed", "1"], "--layers, --seed"),
        (["measure"], "no MODEL"),
        (["measure", "model"], "no AUDIO"),
        (["measure", "model", "clip.flac", "--granularity", "head"], "--granularity 'head'"),
        (["demo", "--loud"], "unknown --loud"),
    ],
)
def test_what_the_parser_refuses(refused, arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--layers", "0"],
        ["--layers", "-1"],
        ["--width", "0"],
        ["--context", "0"],
        ["--sigma", "0"],
        ["--sigma", "nan"],
        ["--sigma", "inf"],
        ["--kappa", "1.5"],
        ["--kappa", "nan"],
        ["--xi", "-0.1"],
        ["--xi", "1.1"],
        ["--gamma", "0"],
        ["--gamma", "2"],
        ["--coherence", "1.01"],
        ["--seed", "-1"],
        ["--layers", "1000000000"],
        ["--width", "1000000"],
        ["--thresholds.purity", "-1"],
        ["--thresholds.gain", "nan"],
        ["--width", "1", "--kappa", "0.5"],
    ],
    ids=" ".join,
)
def test_numbers_out_of_range(refused, arguments):
    refused("verify", *arguments)


def npy(value) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, value in entries.items():
            file.writestr(f"{name}.npy", value if isinstance(value, bytes) else npy(value))
    return path


def huge_header() -> bytes:
    """A header that promises far more than any machine holds, with no data behind it."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 100000, 100000), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "entries",
    [
        {"propagators": W.astype(np.float16)},
        {"propagators": W.astype(np.int64)},
        {"propagators": W.astype(complex)},
        {"propagators": W[0]},
        {"propagators": W[:0]},
        {"propagators": W[:, :, :2]},
        {"propagators": np.where(W == 0, np.nan, W)},
        {"propagators": np.where(W == 0, np.inf, W)},
        {"propagators": W, "injections": G[:3]},
        {"propagators": W, "injections": G[:, :2]},
        {"propagators": W, "injections": G.astype(np.float32)},
        {"propagators": W, "injections": G, "initial": np.ones((3, 5))},
        {"propagators": W, "initial": np.ones((2, 5))},
        {"propagators": np.array([{"a": 1}], dtype=object)},
        {"propagators": W, "meta": np.array("not json")},
        {"propagators": W, "meta": np.array(json.dumps({"schema": 999}))},
        {"propagators": huge_header()},
        {"propagators": b"nothing"},
        {"injections": G},
        {},
    ],
    ids=range(20),
)
def test_chain_files_that_are_none(refused, tmp_path, entries):
    path = archive(tmp_path / "chain.npz", entries)
    assert "chain.npz" in refused("verify", path) or entries.keys() >= {"propagators"}


def test_a_pickle_inside_is_never_run(refused, tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("open('sprung', 'w').close()",))

    path = archive(tmp_path / "chain.npz", {"propagators": npy(np.array([Trap()], dtype=object))})
    refused("verify", path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken"])
def test_files_that_are_no_archive(refused, tmp_path, content):
    path = tmp_path / "chain.npz"
    path.write_bytes(content)
    assert "chain.npz" in refused("verify", path)


def test_files_that_are_not_there(refused, tmp_path):
    assert "none.npz" in refused("verify", tmp_path / "none.npz")
    assert "nothing" in refused("measure", tmp_path / "nothing", tmp_path / "clip.flac")


def test_a_folder_that_is_no_run(refused, tmp_path):
    assert "summary.json" in refused("verify", tmp_path)


def test_a_run_without_chains(refused, tmp_path):
    (tmp_path / "summary.json").write_text('{"schema": 1, "run_id": "x", "status": "done"}')
    assert "no chain" in refused("verify", tmp_path)


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/nowhere", "foreign"])
def test_places_where_no_run_can_be_written(refused, tmp_path, where):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes").write_text("kept")
    for verb in (["verify", "--layers", "3", "--width", "3", "--context", "2"], ["demo"]):
        assert where in refused(*verb, "--out", tmp_path / where)
    assert (tmp_path / "file").read_text() == (tmp_path / "foreign/notes").read_text() == "kept"


def test_an_earlier_run_stays_when_the_next_is_refused(refused, tmp_path):
    (tmp_path / "summary.json").write_text('{"schema": 1, "run_id": "x"}')
    (tmp_path / "planted.npz").write_bytes(b"kept")
    refused("verify", "--sigma", "-1", "--out", tmp_path)
    assert (tmp_path / "planted.npz").read_bytes() == b"kept"


def test_an_unreadable_recording(refused, tmp_path, shared):
    (tmp_path / "clip.flac").write_bytes(b"no sound")
    assert "clip.flac" in refused("measure", shared / "models/whisper-tiny.en-digits", tmp_path / "clip.flac")


def test_a_step_beyond_the_transcript(refused, shared):
    clip = next(iter(sorted((shared / "data").rglob("*jfk*"))))
    assert "1000" in refused("measure", shared / "models/whisper-tiny.en-digits", clip, "--step", "1000")


def test_nothing_heavy_is_imported_for_a_refused_command_line():
    program = (
        "import sys; from spectral_theorem.cli import main; assert main(['verfy']) == 2 and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
