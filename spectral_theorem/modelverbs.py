"""Say what those verbs take that are about a model or recordings: one dataclass each, one field per argument.

Nothing heavy is imported here.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

Dtype = Literal["float64", "float32"]
Number = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Out = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: nothing is written)")]
Require = Annotated[
    Literal["conditions"] | None, arg(metavar="{conditions}", help_behavior_hint="(default: nothing is required)")
]


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
