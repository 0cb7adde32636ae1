"""Say what the command line takes: one dataclass per verb, one field per argument.

Nothing heavy is imported here. `RUNS` names the function that each verb's fields are passed to.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from .modelverbs import (
    Bench,
    Compare,
    Dtype,
    Measure,
    Models,
    Monitor,
    Number,
    Out,
    Require,
    Sensitivity,
    Stress,
    Train,
    Transcribe,
)

# What `verify` plants where it is given no file.
PLANTED = ("layers", "width", "context", "sigma", "kappa", "xi", "gamma", "coherence", "seed")


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
    certify: bool = False
    """Settle what is within its rounding allowance by ball arithmetic: HOLDS and VIOLATED are then proofs."""
    certify_all: bool = False
    """The same for every statement that applies, in doubt or not."""
    thresholds: ThresholdOptions = ThresholdOptions()


@dataclasses.dataclass(frozen=True)
class Demo:
    """Show the theorem on chains whose answers are known, then on a small Whisper, clean and stressed."""

    out: Out = None
    """Run folder to write."""
    json: bool = False
    """Print one JSON object instead of text."""
    dtype: Dtype = "float64"
    """Precision of every number."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw the page of a run again from its records, or print one of its tables; no model runs."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of the run."""
    table: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the whole page)")] = None
    """Number of one table, to print instead."""
    format: Literal["text", "csv", "latex"] = "text"
    """How to print that table."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclasses.dataclass(frozen=True)
class Diff:
    """Say what differs between two runs: config, provenance, verdicts, numbers and whether their intervals meet."""

    first: Positional[Annotated[Path, arg(metavar="RUN1")]]
    """Folder of a run."""
    second: Positional[Annotated[Path, arg(metavar="RUN2")]]
    """Folder of another."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run an experiment file over a grid or a random design of its config, on all devices; resumable."""

    experiment: Positional[Annotated[Path, arg(metavar="EXPERIMENT")]]
    """Experiment file, such as experiments/synthetic/phase_diagram.py."""
    out: Annotated[str | None, arg(metavar="FOLDER|URI", help_behavior_hint="(default: nothing is written)")] = None
    """Results: a folder, or a URI that pyarrow opens. One that holds the same sweep, unfinished, is gone on with."""
    config: Annotated[Path | None, arg(metavar="FILE.toml", help_behavior_hint="(default: the experiment's own)")] = (
        None
    )
    """Design in TOML: fields, and tables [grid] or [random]."""
    set: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="NAME=VALUES")]] = ()
    """Axis of the design: values with commas between, or low:high:count, or low:high:count:log."""
    random: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the whole grid)")] = None
    """Draw this many cells from the axes."""
    seed: int = 0
    """Seed of what is drawn."""
    shard: Annotated[str | None, arg(metavar="I/N", help_behavior_hint="(default: all)")] = None
    """Take one share of N, counted from 0, as the jobs of an array do."""
    coordinator: Annotated[
        str | None, arg(metavar="HOST:PORT|auto", help_behavior_hint="(default: as the launcher of a cluster says)")
    ] = None
    """Share the work with other processes, which meet here."""
    processes: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(with --coordinator)")] = None
    """How many processes there are."""
    process: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(with --coordinator)")] = None
    """Which of them this is, from 0."""
    devices: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Devices of this process to use; on a CPU, so many are made."""
    batch: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 64)")] = None
    """Cells on a device at once."""
    dtype: Dtype = "float64"
    """Precision of every number."""
    dry_run: bool = False
    """Say how many cells, how much memory and how long, and compute nothing else."""
    compact: bool = False
    """Join the shards into one file at the end."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclasses.dataclass(frozen=True)
class Falsify:
    """Try to break claims: gradient search from random chains, every find re-checked and kept for replay."""

    claim: Annotated[str | None, arg(metavar="NAME|MODULE:FUNCTION", help_behavior_hint="(default: all)")] = None
    """A built-in claim, "paper" for the paper's readings of rho, or a claim of your own."""
    seconds: float = 60.0
    """Budget of time."""
    restarts: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: as time allows)")] = None
    """Budget of random starts instead of time."""
    layers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 5, paper 8)")] = None
    """Number of layers L of the chains."""
    width: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 3, paper 2)")] = None
    """State size D."""
    context: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 2, paper 1)")] = None
    """Context size C."""
    seed: int = 0
    """Seed of every random number."""
    batch: int = 128
    """Random starts side by side."""
    steps: int = 64
    """Gradient steps from each start."""
    tightness: bool = False
    """Look for how much of each bound is attained at given scalars, instead of counterexamples."""
    fix: Annotated[str | None, arg(metavar="SCALARS", help_behavior_hint="(default: a grid)")] = None
    """With --tightness: which scalars, such as kappa=0.9:0.99,xi=0.1,layers=4:8; also sigma and gamma."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: nothing is written)")] = None
    """Folder for the record, finds and tightest chains; the same command goes on where it was stopped."""
    json: bool = False
    """Print one JSON object instead of text."""


Verb = (
    Annotated[Verify, subcommand("verify", prefix_name=False)]
    | Annotated[Demo, subcommand("demo", prefix_name=False)]
    | Annotated[Measure, subcommand("measure", prefix_name=False)]
    | Annotated[Stress, subcommand("stress", prefix_name=False)]
    | Annotated[Transcribe, subcommand("transcribe", prefix_name=False)]
    | Annotated[Compare, subcommand("compare", prefix_name=False)]
    | Annotated[Sensitivity, subcommand("sensitivity", prefix_name=False)]
    | Annotated[Monitor, subcommand("monitor", prefix_name=False)]
    | Annotated[Train, subcommand("train", prefix_name=False)]
    | Annotated[Bench, subcommand("bench", prefix_name=False)]
    | Annotated[Sweep, subcommand("sweep", prefix_name=False)]
    | Annotated[Report, subcommand("report", prefix_name=False)]
    | Annotated[Diff, subcommand("diff", prefix_name=False)]
    | Annotated[Falsify, subcommand("falsify", prefix_name=False)]
    | Annotated[Models, subcommand("models", prefix_name=False)]
)

RUNS = {
    Verify: ("check", "run"),
    Demo: ("demo", "run"),
    Measure: ("measured", "run"),
    Transcribe: ("transcription", "transcribe"),
    Stress: ("stressed", "run"),
    Compare: ("compared", "run"),
    Sensitivity: ("sensitivity", "run"),
    Monitor: ("monitored", "run"),
    Train: ("train", "run"),
    Bench: ("bench", "run"),
    Sweep: ("sweeps", "run"),
    Report: ("redraw", "run"),
    Diff: ("differing", "run"),
    Falsify: ("falsify", "run"),
    Models: ("models", "run"),
}
