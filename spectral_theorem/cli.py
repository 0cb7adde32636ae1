"""Run the package from a shell: parse, dispatch, and turn every outcome into one exit code.

Nothing heavy is imported until a verb runs, so that `--help` answers at once. Exit codes: 0 done,
1 a claim is violated (or a required condition does not hold), 2 bad input, 3 some clips or cells
failed, 75 stopped by SIGTERM, 130 Ctrl-C.
"""

import contextlib
import dataclasses
import io
import json as json_module
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro
from tyro.conf import Positional, arg, subcommand

from . import __version__

if TYPE_CHECKING:
    from .console import Outcome

PROGRAM = "spectral-theorem"
DONE, VIOLATED, BAD_INPUT, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
COLOURS = {"green": ["HOLDS"], "bold red": ["VIOLATED"], "yellow": ["UNDECIDED"], "dim": ["NOT_APPLICABLE"]}
PLANTED = ("layers", "width", "context", "sigma", "kappa", "xi", "gamma", "coherence", "seed")

Dtype = Literal["float64", "float32"]
Number = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Out = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: nothing is written)")]
Require = Annotated[
    Literal["conditions"] | None, arg(metavar="{conditions}", help_behavior_hint="(default: nothing is required)")
]


@dataclasses.dataclass(frozen=True)
class ThresholdOptions:
    """What stands for "much less than"; absent: the file's own, else the library's."""

    gain: Number = None
    """H1: every gain rho is at least this (library: 1)."""
    cumulative_gain: Number = None
    """H1: every cumulative gain S is at least this (library: 1)."""
    alignment: Number = None
    """H2: eps_kappa times L is at most this (library: 0.1)."""
    gamma_min: Number = None
    """H3: gamma is at least this (library: 0.1)."""
    coherence: Number = None
    """H3: the coherence value is at least this (library: 0.7071)."""
    purity: Number = None
    """H4: xi L / gamma is at most this (library: 0.1)."""
    dispersion_constant: Number = None
    """Dispersive: K0 (library: 10)."""
    dispersion_rate: Number = None
    """Dispersive: delta, nats per layer (library: 0.01)."""
    contraction: Number = None
    """Attractor: the product of cone contractions is at most this (library: 0.1)."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check the theorem on one chain: a file, a run folder, or a planted chain whose answer is known."""

    file: Positional[
        Annotated[Path | None, arg(metavar="FILE|RUN", help_behavior_hint="(default: a planted chain)")]
    ] = None
    """A chain in an .npz, or the folder of an earlier run, which is replayed."""
    layers: int = 64
    """Number of layers L of the planted chain."""
    width: int = 64
    """State size D."""
    context: int = 48
    """Context size C."""
    sigma: float = 1.02
    """Leading singular value of every propagator."""
    kappa: float = 0.9999
    """Alignment of neighbouring layers."""
    xi: float = 5e-4
    """Ratio of the second singular value to the first."""
    gamma: float = 0.5
    """Share of every injection that meets the dominant direction."""
    coherence: float = 0.9
    """Coherence of the injections with the planted direction."""
    seed: int = 0
    """Seed of the planted chain."""
    dtype: Dtype = "float64"
    """Precision of every number."""
    out: Out = None
    """Run folder to write: summary.json, table, chain, report.html."""
    json: bool = False
    """Print one JSON object instead of text."""
    require: Require = None
    """Exit with 1 unless all four conditions hold."""
    claim: Annotated[str | None, arg(metavar="MODULE:FUNCTION", help_behavior_hint="")] = None
    """A claim of your own to check on the chain as well, as `testing.check_claim` takes it."""
    thresholds: ThresholdOptions = ThresholdOptions()


@dataclasses.dataclass(frozen=True)
class Demo:
    """Show the theorem on four chains whose answers are known, and write the report."""

    out: Out = None
    """Run folder to write."""
    json: bool = False
    """Print one JSON object instead of text."""
    dtype: Dtype = "float64"
    """Precision of every number."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """Linearise the decoder of a Whisper model on recordings, and check the theorem there."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Folder of a checkpoint, or its name on the hub."""
    audio: Positional[Annotated[tuple[Path, ...], arg(metavar="AUDIO...", help_behavior_hint="(one or more)")]]
    """Recordings; each is one clip unless --concat."""
    concat: bool = False
    """Join the recordings into one clip."""
    step: int = 0
    """Generated token to linearise at, from 0, end of text included."""
    granularity: Literal["block", "sub-block"] = "block"
    """One layer per decoder block, or one per attention and MLP part."""
    dtype: Dtype = "float64"
    """Precision of every number."""
    out: Out = None
    """Run folder to write."""
    json: bool = False
    """Print one JSON object instead of text."""
    require: Require = None
    """Exit with 1 unless all four conditions hold on every clip."""


@dataclasses.dataclass(frozen=True)
class Stress:
    """Make recordings harder to hear, repeatably: time stretch, babble, noise, silence, other sounds."""

    audio: Positional[Annotated[tuple[Path, ...], arg(metavar="AUDIO...", help_behavior_hint="(one or more)")]]
    """Recordings, and folders of them with a manifest.csv or in LibriSpeech's layout."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder to write: one wav for every clip, and manifest.csv."""
    spec: str = "hell"
    """Recipe, such as stretch=3.5+babble=6@0+noise=0, which is hell; levels in dB."""
    talkers: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: no babble can be made)")] = None
    """Recordings whose speakers babble; the clip's own speaker does not."""
    nonspeech: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: none)")] = None
    """Recordings of other sounds."""
    seed: int = 0
    """Seed of every random number."""
    limit: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """How many clips at most."""
    json: bool = False
    """Print one JSON object instead of text."""


Verb = (
    Annotated[Verify, subcommand("verify", prefix_name=False)]
    | Annotated[Demo, subcommand("demo", prefix_name=False)]
    | Annotated[Measure, subcommand("measure", prefix_name=False)]
    | Annotated[Stress, subcommand("stress", prefix_name=False)]
)


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


def parse(arguments: Sequence[str]) -> Verify | Demo | Measure | Stress:
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


def _run(verb: Verify | Demo | Measure | Stress) -> "Outcome":
    """Load what the verb needs, in the precision it asks for, and run it."""
    options: dict[str, Any] = {field.name: getattr(verb, field.name) for field in dataclasses.fields(verb)}
    del options["json"]
    if isinstance(verb, Measure) and not verb.audio:
        raise BadUsage(f"got no AUDIO; expected one or more recordings; try {PROGRAM} measure {verb.model} clip.flac")
    if isinstance(verb, Stress):
        if not verb.audio:
            raise BadUsage(f"got no AUDIO; expected one or more recordings; try {PROGRAM} stress clip.flac --out hard")
        from . import stressed

        return stressed.run(**options)
    if isinstance(verb, Verify) and verb.file is not None:
        given = [f"--{name}" for name in PLANTED if options.pop(name) != getattr(Verify, name)]
        if given:
            raise BadUsage(f"got {verb.file} and {', '.join(given)}; expected one or the other; try verify {verb.file}")
    if not isinstance(verb, Measure):
        _prefer_quick_compilation()
    import jax

    # Before any array exists: arrays made earlier would keep the other precision.
    jax.config.update("jax_enable_x64", verb.dtype == "float64")
    if isinstance(verb, Verify):
        from . import check

        chosen = dataclasses.asdict(verb.thresholds)
        options["thresholds"] = {name: value for name, value in chosen.items() if value is not None}
        return check.run(**options)
    if isinstance(verb, Demo):
        from . import demo

        return demo.run(**options)
    from . import measure

    return measure.measure(**options)


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
