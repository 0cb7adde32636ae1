"""Run the package from a shell: parse, dispatch, and turn every outcome into one exit code.

Nothing heavy is imported until a verb runs, so that `--help` answers at once. Exit codes: 0 done,
1 a claim is violated (or a required condition does not hold), 2 bad input, 3 some clips or cells
failed, 75 stopped by SIGTERM, 130 Ctrl-C.
"""

import contextlib
import dataclasses
import importlib
import io
import json as json_module
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import tyro

from . import SPARE_THREADS, __version__, carried
from .verbs import PLANTED, RUNS, Compare, Demo, Falsify, Models, Stress, Sweep, Train, Transcribe, Verb, Verify

if TYPE_CHECKING:
    from .console import Outcome

PROGRAM = "spectral-theorem"
FEW = 8  # pairs
DONE, VIOLATED, BAD_INPUT, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
COLOURS = {"green": ["HOLDS"], "bold red": ["VIOLATED"], "yellow": ["UNDECIDED"], "dim": ["NOT_APPLICABLE"]}


class BadUsage(Exception):
    """Carry the one line that a refused command line prints."""


class Stopped(BaseException):
    """Say that SIGTERM arrived."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Parameters
    ----------
    arguments : without the program's name; those of the process if absent.

    Returns
    -------
    int
        The exit code of docs/design.md.

    Raises
    ------
    SystemExit
        After `--help`.

    Examples
    --------
    >>> main(["--version"])
    spectral-theorem ...
    0
    """
    # Read once, when NumPy loads: unset, LAPACK is slow and erratic on few cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(PROGRAM, __version__)
        return DONE
    try:
        verb = parse(arguments)
        with _stop_on_sigterm():
            outcome = _run(verb)
        _say(json_module.dumps(outcome.record, allow_nan=False) if verb.json else outcome.text)
        return outcome.exit_code
    except BadUsage as problem:
        return _fail(str(problem))
    except KeyboardInterrupt:
        return _fail("interrupted; what was already written stays", INTERRUPTED)
    except Stopped:
        return _fail("stopped by SIGTERM; what was already written stays, the same command starts again", STOPPED)
    except OSError as problem:
        return _fail(f"got {problem}; expected files that can be read and written; try another path")
    except ValueError as problem:
        from .types import InputError

        if not isinstance(problem, InputError):
            raise
        return _fail(str(problem))


def parse(arguments: Sequence[str]) -> Verb:
    """Read a command line into the dataclass of its verb.

    Raises
    ------
    BadUsage
        With one line that says what was got, what was expected and what to type.

    Examples
    --------
    >>> parse(["verify", "--layers", "8"]).layers
    8
    """
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(
                Verb,  # pyright: ignore[reportArgumentType]  # a union is a type form, which pyright does not know yet
                prog=PROGRAM,
                description="Check the Spectral Sensitivity Theorem numerically, with margins and certificates.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise BadUsage(one_line(boxed.getvalue())) from None


def one_line(box: str) -> str:
    r"""Say in one line what a parser's box says in many.

    Parameters
    ----------
    box : text framed by box-drawing characters, or below its title, its parts separated by rules.

    Returns
    -------
    str
        "got ...; expected ...; try ...".

    Examples
    --------
    >>> one_line("╭─ Missing argument ─╮\n│ Missing value for argument '--layers'. Expected 1 values. │")
    'got --layers without a value; expected --layers VALUE; try spectral-theorem --help'
    """
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [index for index, line in enumerate(lines) if re.fullmatch(r"[─-]{3,}", line)]
    if "╭" not in box and rules:  # where the terminal knows no frames, the title is a part of its own
        lines, rules = lines[rules[0] + 1 :], [rule - rules[0] - 1 for rule in rules[1:]]
    said = " ".join(lines[: rules[0]] if rules else lines).strip()
    more = [line for index, line in enumerate(lines) if rules and index > rules[0] and index not in rules]
    got, _, expected = said.partition("Expected ")
    got = got.strip().rstrip(".:").replace("Unrecognized options:", "unknown") or "no verb"
    if bad := re.match(r"Error parsing (\S+): .*?('[^']*')$", said):
        got = f"{bad[1]} {bad[2]}"
    elif bad := re.match(r"invalid choice ('[^']*') for argument '(\S+)'", said):
        got = f"{bad[2]} {bad[1]}"
    elif bad := re.match(r"Missing value for argument '(\S+)'", said):
        got, expected = f"{bad[1]} without a value", f"{bad[1]} VALUE"
    elif bad := re.match(rf"Missing from ({PROGRAM}[ \w-]*): (\S+)", said):
        got, expected = f"no {bad[2]}", f"{bad[1]} {bad[2]}"
    named = [line for line in more if line.startswith("-")]
    verbs = "Available subcommands: "
    choices = [f"one of {line.removeprefix(verbs)}" for line in more if line.startswith(verbs)]
    expected = expected or ", ".join(named) or "".join(choices) or "what --help lists"
    command = re.search(rf"{PROGRAM}[\w -]*--help", " ".join(more))
    return f"got {got}; expected {expected.rstrip('. ')}; try {command[0] if command else f'{PROGRAM} --help'}"


def _run(verb: Verb) -> "Outcome":
    """Load what the verb needs, in the precision it asks for, and run it."""
    options: dict[str, Any] = {field.name: getattr(verb, field.name) for field in dataclasses.fields(verb)}
    del options["json"]
    if options.get("audio") == ():
        example = " ".join([type(verb).__name__.lower(), *([options["model"]] if "model" in options else [])])
        raise BadUsage(f"got no AUDIO; expected one or more recordings; try {PROGRAM} {example} clip.flac")
    if options.get("model") == carried.NAME:
        options["model"] = str(carried.MODEL)
    if options.pop("offline", False):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the Hub's own package when it loads
    if isinstance(verb, Verify):
        if verb.file is not None:
            given = [f"--{name}" for name in PLANTED if options.pop(name) != getattr(Verify, name)]
            if given:
                other = ", ".join(given)
                raise BadUsage(f"got {verb.file} and {other}; expected one or the other; try verify {verb.file}")
        chosen = dataclasses.asdict(verb.thresholds)
        options["thresholds"] = {name: value for name, value in chosen.items() if value is not None}
    few = isinstance(verb, Compare) and _few(verb)
    if isinstance(verb, Verify | Demo | Falsify) or options.get("quick") or few:
        _prefer_quick_compilation()
    plain = isinstance(verb, Transcribe | Train | Stress | Models)
    if plain and os.environ.get("PJRT_NPROC") == SPARE_THREADS:
        # Spare threads serve decompositions, which may wait for ever without; these verbs have none, and there spare
        # threads cost a quarter of the encoder's time.
        os.environ["PJRT_NPROC"] = str(os.cpu_count() or 1)
    if isinstance(verb, Sweep) and os.environ.get("PJRT_NPROC") == SPARE_THREADS:
        # every device may have that many decompositions waiting for others
        os.environ["PJRT_NPROC"] = str(int(SPARE_THREADS) * max(verb.devices or 1, 1))
    if "dtype" in options:
        import jax

        # Before any array exists: arrays made earlier would keep the other precision.
        jax.config.update("jax_enable_x64", options["dtype"] == "float64")
    elif isinstance(verb, Falsify):
        import jax

        jax.config.update("jax_enable_x64", True)
    module, function = RUNS[type(verb)]
    return getattr(importlib.import_module(f".{module}", __package__), function)(**options)


def _few(verb: Compare) -> bool:
    """Tell whether a comparison is over before the machine code of long ones would have paid: 55 -> 28 s for a pair."""
    files = len(verb.clean) if all(path.is_file() for path in verb.clean) else FEW + 1
    return min(files, FEW + 1 if verb.limit is None else verb.limit) <= FEW


def _prefer_quick_compilation() -> None:
    """Ask XLA for cheap code where it is not told otherwise: one chain compiles for long and runs briefly.

    Measured on L=64, D=64: compilation 21 -> 6 s of processor time, run 0.35 -> 0.37 s.
    """
    from importlib import metadata

    flags = os.environ.get("XLA_FLAGS", "")
    quick = {"--xla_backend_optimization_level": "0"}
    if metadata.version("jaxlib").startswith("0.10."):  # XLA aborts on flags it does not know
        quick["--xla_cpu_use_fusion_emitters"] = "false"
    wanted = [f"{flag}={value}" for flag, value in quick.items() if flag not in flags]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [flags, *wanted]))


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that files are closed on the way out."""

    def stop(*_: Any) -> NoReturn:
        raise Stopped

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    """Print, in colour on a terminal, and stay calm when the reader of a pipe has left."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name of a file need not fit the terminal's encoding
    try:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.text import Text

            coloured = Text(text)
            for style, words in COLOURS.items():
                coloured.highlight_words(words, style)
            Console(soft_wrap=True).print(coloured)
        else:
            print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int = BAD_INPUT) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code
