"""The command line: parsing, exit codes, what is printed where."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectral_theorem import cli, console, verbs
from spectral_theorem.types import InputError, Thresholds

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--layers", "6", "--width", "5", "--context", "4", "--xi", "1e-3"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "spectral_theorem", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        **options,
    )


def test_help_is_quick_and_loads_nothing_heavy():
    program = (
        "import sys; from spectral_theorem import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code in (0, None)\n"
        "assert not {'jax', 'numpy', 'scipy', 'flax', 'matplotlib', 'pyarrow'} & set(sys.modules)"
    )
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # processor time: what passes on the clock depends on who else is using the machine
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if best < 0.5:
            return
    pytest.fail(f"--help took {best:.2f} s")


@pytest.mark.parametrize("verb", ["verify", "demo", "measure", "stress"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code in (0, None)
    assert "--out" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spectral-theorem 0.")


def test_parse_gives_frozen_options():
    options = cli.parse(["verify", "--layers", "8", "--thresholds.purity", "0.5"])
    assert isinstance(options, verbs.Verify)
    assert (options.layers, options.thresholds.purity, options.thresholds.gain) == (8, 0.5, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.layers = 9  # pyright: ignore[reportAttributeAccessIssue]


def test_threshold_options_are_the_librarys():
    assert [f.name for f in dataclasses.fields(verbs.ThresholdOptions)] == [
        f.name for f in dataclasses.fields(Thresholds)
    ]
    lines = run("verify", "--help").stdout
    text = " ".join(lines.replace("│", " ").split())
    for field in dataclasses.fields(Thresholds):
        described = text.split(f"--thresholds.{field.name.replace('_', '-')} FLOAT")[1].split("--thresholds")[0]
        stated = float(described.split("(library: ")[1].split(")")[0].rstrip("."))
        assert stated == pytest.approx(field.default, rel=1e-3), field.name


def test_errors_read_the_same_on_a_terminal_without_frames():
    arguments = ["verify", "--layres", "3"]
    plain = run(*arguments, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    framed = run(*arguments, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert plain.stderr == framed.stderr
    assert plain.stderr == (
        "error: got unknown --layres, 3; expected --layers INT; try spectral-theorem verify --help\n"
    )


@pytest.mark.parametrize("own", [None, "--xla_backend_optimization_level=3", "--xla_cpu_enable_fast_math=false"])
def test_flags_for_quick_compilation_yield_to_the_users(monkeypatch, own):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if own:
        monkeypatch.setenv("XLA_FLAGS", own)
    cli._prefer_quick_compilation()
    cli._prefer_quick_compilation()
    flags = os.environ["XLA_FLAGS"].split()
    assert len(flags) == len(set(flags))
    assert [flag for flag in flags if flag.startswith("--xla_backend_optimization_level")] == [
        own if own and "backend" in own else "--xla_backend_optimization_level=0"
    ]
    assert not own or own in flags


@pytest.fixture
def verb(monkeypatch):
    """Replace what a verb does by a function of the test's choice."""

    def replace(action):
        monkeypatch.setattr(cli, "_run", lambda options: action())

    return replace


def raising(error: BaseException):
    def action():
        raise error

    return action


def test_outcome_is_printed_and_returned(verb, capsys):
    verb(lambda: console.Outcome("words", {"a": 1}, 3))
    assert cli.main(["demo"]) == 3
    assert capsys.readouterr().out == "words\n"
    assert cli.main(["demo", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"a": 1}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("got x;\n expected y; try z"), 2, "got x; expected y; try z"),
        (PermissionError(13, "Permission denied", "f"), 2, "Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exceptions_become_one_line_and_a_code(verb, capsys, error, code, words):
    verb(raising(error))
    assert cli.main(["demo"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1 and said.err.startswith("error: ") and words in said.err


def test_a_defect_keeps_its_traceback(verb):
    verb(raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["demo"])


def test_sigterm_ends_with_75(verb, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def action():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    verb(action)
    assert cli.main(["demo"]) == 75
    assert "SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_leaves_is_no_error():
    program = (
        "import sys; from spectral_theorem import cli, console\n"
        "cli._run = lambda verb: console.Outcome('words\\n' * 100000, {}, 0)\n"
        "sys.exit(cli.main(['demo']))"
    )
    line = f'"{sys.executable}" -c "$PROGRAM" | head -1; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PROGRAM": program}
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "words\n", "")
