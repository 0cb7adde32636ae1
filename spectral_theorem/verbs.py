"""Say what the command line takes: one dataclass per verb, one field per argument.

Nothing heavy is imported here. `RUNS` names the function that each verb's fields are passed to.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg, subcommand

# What `verify` plants where it is given no file.
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
class Measure:
    """Linearise the decoder of a Whisper model on recordings, and check the theorem there."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Folder or file of a checkpoint, or its name on the Hub."""
    audio: Positional[Annotated[tuple[Path, ...], arg(metavar="AUDIO...", help_behavior_hint="(one or more)")]]
    """Recordings; each is one clip unless --concat."""
    concat: bool = False
    """Join the recordings into one clip."""
    step: int = 0
    """Generated token to linearise at, from 0, end of text included; by the dense route."""
    steps: Annotated[str | None, arg(metavar="LIST|all", help_behavior_hint="(default: --step)")] = None
    """Generated tokens, such as 0,2,5-7; by the engine, for any number of them."""
    scope: Literal["token", "sequence"] = "token"
    """With --steps: a chain for each token, its past frozen, or one of all positions together, with nothing frozen."""
    granularity: Literal["block", "sub-block"] = "block"
    """One layer per decoder block, or one per attention and MLP part."""
    tolerance: Number = None
    """With --steps: residual of the triplets to reach, relative to sigma1 (library: 64 eps)."""
    context: Literal["encoder", "mel", "waveform"] = "encoder"
    """With --steps: the encoder output whole, or directions of the spectrogram or of the waveform."""
    directions: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: all of encoder, 16 of others)")
    ] = None
    """With --steps: so many random directions stand for the context."""
    basis: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: random directions)")] = None
    """With --steps: directions of your own, (r, *shape of the context) in a .npy."""
    group: int = 16
    """With --steps: tokens at once."""
    dtype: Dtype = "float64"
    """Precision of every number."""
    out: Out = None
    """Run folder to write."""
    json: bool = False
    """Print one JSON object instead of text."""
    require: Require = None
    """Exit with 1 unless all four conditions hold on every clip."""
    offline: bool = False
    """Do not ask the Hub: MODEL is a path, or a name in the local cache."""


@dataclasses.dataclass(frozen=True)
class Monitor:
    """Watch decoding while it goes on: spectra of activations at every token, gains now and then, calibrated alarms."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Folder of a checkpoint, its name on the Hub, or "carried" for the one that the package brings."""
    audio: Positional[Annotated[tuple[Path, ...], arg(metavar="AUDIO...", help_behavior_hint="(one or more)")]]
    """Recordings, or folders whose recordings are all taken."""
    window: int = 16
    """Newest positions that a spectrum is taken over."""
    modes: int = 10
    """Use the largest so many eigenvalues."""
    every: int = 8
    """Measure lambda at every so-manieth token; 0 never does."""
    tolerance: float = 1e-2
    """Residual of the singular triplets to reach, relative to sigma1."""
    clean: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: no alarms)")] = None
    """Record of clean clips, from an earlier --out: sets thresholds."""
    level: float = 0.05
    """Share of clips like the clean ones that may raise an alarm."""
    signals: str = "low_rank,steep,unlikely"
    """What alarms listen to: low_rank, high_rank, steep, flat, low_gain, high_gain, unlikely."""
    group: int = 16
    """Tokens at once: fewer are seen sooner, more cost less."""
    dtype: Dtype = "float32"
    """Precision of model and gains."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: nothing is written)")] = None
    """Record to write, lines of JSON; the same command goes on with one that was stopped."""
    json: bool = False
    """Print one JSON object instead of text."""
    offline: bool = False
    """Do not ask the Hub: MODEL is a path, or a name in the local cache."""


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
class Models:
    """List the Whisper models known by name, and those in the local cache of the Hub."""

    json: bool = False
    """Print one JSON object instead of text."""


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


@dataclasses.dataclass(frozen=True)
class Transcribe:
    """Transcribe recordings with a Whisper model: files, or folders of them."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Folder of a checkpoint, its name on the Hub, or "carried" for the one that the package brings."""
    audio: Positional[Annotated[tuple[Path, ...], arg(metavar="AUDIO...", help_behavior_hint="(one or more)")]]
    """Recordings, or folders whose recordings are all taken."""
    limit: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Take this many recordings at most."""
    language: Annotated[str | None, arg(metavar="CODE", help_behavior_hint="(default: detected)")] = None
    """Language of the speech, such as en; a multilingual model detects it otherwise."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Write what is said, or its translation into English."""
    timestamps: bool = False
    """Have the model say when each segment starts and ends, for short recordings too."""
    fallback: bool = False
    """Draw again, at rising temperatures, where a transcript repeats itself or is unlikely."""
    seed: int = 0
    """Seed of what is drawn."""
    batch: int = 8
    """Windows to decode together."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of the model."""
    out: Out = None
    """Run folder to write: summary.json and the table."""
    json: bool = False
    """Print one JSON object instead of text."""
    offline: bool = False
    """Do not ask the Hub: MODEL is a path, or a name in the local cache."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a small Whisper on strings of single words, or go on with a run that was stopped."""

    config: Positional[Annotated[Path, arg(metavar="CONFIG")]]
    """TOML file: the fields of TrainConfig."""
    corpus: UseAppendAction[Annotated[tuple[Path, ...], arg(metavar="FOLDER")]]
    """Recordings of single words with a manifest.csv; may be given several times."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder of the run: training.json, state.npz, checkpoints/."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the engine beside other ways to the same numbers; ratios and peak memory, with the load of the machine."""

    widths: Annotated[str | None, arg(metavar="INT,INT,...", help_behavior_hint="(default: 384,768,1280)")] = None
    """State sizes D of the random decoders."""
    repeats: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 7)")] = None
    """How often each way is timed."""
    quick: bool = False
    """Small sizes, in under a minute: the machinery, not the engine."""
    model: str = "carried"
    """Model of the whole clip: a folder, or "carried" for the one that the package brings."""
    audio: Annotated[Path | None, arg(metavar="AUDIO", help_behavior_hint="(default: one that is carried)")] = None
    """Recording of the whole clip."""
    only: Annotated[str, arg(metavar="NAME,NAME,...", help_behavior_hint="(default: all)")] = ""
    """Questions to take: dense, triplets, injection, sequence, clip, scaling, gpu."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: nothing is written)")] = None
    """Folder for engine.json, which is written after every row."""
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


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Measure λ, κ, σ₁ and ξ across layers, steps, clips and stress, and say what they are worth."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Folder or file of a checkpoint, its name on the Hub, or "carried" for the one that the package brings."""
    clean: UseAppendAction[Annotated[tuple[Path, ...], arg(metavar="FOLDER")]]
    """Recordings as they are, with a manifest.csv or without; may be given several times."""
    out: Annotated[Path, arg(metavar="RUN")]
    """Run folder to write; the same command goes on with one that was stopped."""
    stress: str = "noise=0"
    """Recipes, separated by commas, such as noise=10,noise=0,hell."""
    talkers: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: no babble can be made)")] = None
    """Recordings whose speakers babble."""
    nonspeech: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: none)")] = None
    """Recordings in which nobody speaks: measured as they are, and mixed in by recipes."""
    only: Annotated[str | None, arg(metavar="PATTERN", help_behavior_hint="(default: all)")] = None
    """Take the clips in whose name this regular expression is found."""
    digits: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: clips as they are)")] = None
    """Join recordings of single digits to strings of so many."""
    orders: int = 1
    """With --digits: orders in which each group of digits is joined; together they are a cluster."""
    steps: str = "16"
    """Generated tokens of every clip: so many evenly spaced, a list such as 0,2,5-7, or all."""
    detailed: int = 10
    """Clips for nulls, ablations and perturbations, clean and under the last recipe; 0 leaves these out."""
    sequences: int = 10
    """How many of these are decomposed as whole sequences as well, for token against sequence scope."""
    limit: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """How many clips at most, taken evenly from all."""
    seed: int = 0
    """Seed of every random number."""
    dtype: Dtype = "float64"
    """Precision of model and measurement."""
    json: bool = False
    """Print one JSON object instead of text."""
    offline: bool = False
    """Do not ask the Hub: MODEL is a path, or a name in the local cache."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare clean recordings with stressed ones, and among these the hallucinated with the survived."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Folder or file of a checkpoint, its name on the Hub, or "carried" for the one that the package brings."""
    clean: UseAppendAction[Annotated[tuple[Path, ...], arg(metavar="FOLDER")]]
    """Recordings as they are, with a manifest.csv or without; may be given several times."""
    stress: Annotated[str | None, arg(metavar="SPEC", help_behavior_hint="(default: noise=0)")] = None
    """Recipe that makes the stressed recordings, such as hell."""
    stressed: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: they are made)")] = None
    """Stressed recordings that were made elsewhere, of the same file names; of other names, nothing is paired."""
    talkers: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: no babble can be made)")] = None
    """Recordings whose speakers babble."""
    nonspeech: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: none)")] = None
    """Recordings in which nobody speaks: measured as they are, and mixed in by recipes."""
    only: Annotated[str | None, arg(metavar="PATTERN", help_behavior_hint="(default: all)")] = None
    """Take the clips in whose name this regular expression is found."""
    digits: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: clips as they are)")] = None
    """Join recordings of single digits to strings of so many."""
    orders: int = 5
    """With --digits: orders in which each group of digits is joined; together they are a cluster."""
    limit: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """How many clips at most, taken evenly from all."""
    steps: str = "16"
    """Generated tokens of every clip: so many evenly spaced, a list such as 0,2,5-7, or all."""
    modes: str = "10,50"
    """Windows: the first so many eigenvalues. The first window is judged."""
    seed: int = 0
    """Seed of every random number."""
    dtype: Dtype = "float32"
    """Precision of model and measurement."""
    out: Out = None
    """Run folder to write; the same command goes on with one that was stopped."""
    json: bool = False
    """Print one JSON object instead of text."""
    offline: bool = False
    """Do not ask the Hub: MODEL is a path, or a name in the local cache."""


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
