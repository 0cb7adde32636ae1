r"""Collect a study: every clip under every condition, transcribed and measured cheaply, one file each.

Of a cell it takes the transcript, what each sub-block adds to the residual stream, the leading two singular triplets
of every decoder block at a few generated tokens, and the gains of products and of the context Jacobian. A control
tells the model under stress the tokens that it wrote without. Conditions and bounds of the theorem are not judged here;
`measure` does that.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .clips import Clip
from .console import working
from .engine import layer_quantities, layer_triplets
from .gains import context_norms, product_norms
from .provenance import environment
from .runs import RunFolder
from .scoring import DIGITS, normalise
from .steps import spaced_steps
from .stress import Recipe, Recording, apply
from .studyfile import (
    CLEAN,
    COMPONENTS,
    NO_SPEECH,
    STRESSED,
    Cell,
    CellTranscript,
    Study,
    read_header,
    read_study,
    write_cell,
    write_description,
)
from .types import InputError, refuse
from .whisper import Transcription, WhisperModel, encode_audio, greedy, model_digest, token_factors, transcriptions
from .whisper.chain import padded_tokens
from .whisper.passes import Record, decoder_pass

__all__ = ["CLEAN", "NO_SPEECH", "STRESSED", "Cell", "CellTranscript", "Study", "collect", "read_study"]

Conditions = Mapping[str, Recipe | Mapping[str, Clip]]
GROUP = 16  # tokens at once, so that memory does not grow with a transcript
BUCKET = 8  # tokens are padded to a multiple, so that few shapes are compiled
_ADDED = Record(self_attention=True, cross_attention=True, mlp=True)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Name one cell to be measured, and how to get its sound."""

    clip: Clip
    condition: str
    reference: str | None
    load: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Told:
    """Hold what a model is told to have written: the sequence with its prompt, and the steps to measure."""

    sequence: tuple[int, ...]
    prompt_length: int
    steps: tuple[int, ...]


def collect(
    model: WhisperModel,
    clips: Sequence[Clip],
    *,
    conditions: Conditions | Sequence[Recipe | None],
    out: Path | RunFolder,
    steps: str = "16",
    nonspeech: Sequence[Clip] = (),
    talkers: Sequence[Recording] = (),
    sounds: Sequence[Recording] = (),
    how: str = "auto",
    gains: bool = True,
    told: bool = False,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Transcribe and measure every clip under every condition; go on where an earlier call was stopped.

    Parameters
    ----------
    model : WhisperModel in float32 or float64, which is the precision of every number.
    clips : recordings as they are; a clip of unknown cluster is a cluster of its own.
    conditions : by name, a recipe for all clips, or recordings made elsewhere by the name of the clip (clips without
        one are left out of that condition); or recipes alone, named by their text, None and the empty recipe "clean".
    out : folder to write, or a run folder that is open.
    steps : generated tokens to measure, as `spaced_steps` takes it.
    nonspeech : clips in which nobody speaks, measured as they are under the condition "no speech".
    talkers, sounds : recordings that recipes mix in.
    how : normaliser for labels; "auto" is "digits" when only digits are said, else "english".
    gains : whether to measure products of layers and the context Jacobian.
    told : whether to measure every clip's later conditions also with the tokens that its first condition wrote.
    seed : of every random number.
    about : more to say in study.json; another value begins anew.
    progress : called with cells done and in all.

    Returns
    -------
    Study
        Cells that could not be measured are in `failed`, with the reason.

    Raises
    ------
    InputError
        No clips, two clips of one name, or a half-precision model.

    Notes
    -----
    One file per cell, renamed into place when it is whole: a stop loses the cell in hand and nothing else. A cell is
    made again when the sound it was made of is no longer the same.

    References
    ----------
    docs/guides/compare.md, docs/schema.md.
    """
    if np.dtype(model.dtype).itemsize < 4:
        refuse(f"a model in {np.dtype(model.dtype)}", "float32 or float64, in which the theory is checked", "float32")
    named = _named(conditions)
    tasks = _tasks(clips, named, nonspeech, talkers, sounds, seed)
    chosen = _normaliser(clips) if how == "auto" else how
    description = {
        "clips": _described(tasks),
        "conditions": [*named, *([NO_SPEECH] if nonspeech else [])],
        "recipes": {name: str(r) if isinstance(r, Recipe) else "recordings" for name, r in named.items()},
        "steps": steps,
        "how": chosen,
        "gains": gains,
        "told": told,
        "seed": seed,
        "layers": model.dims.decoder_layers,
        "width": model.dims.width,
        "dtype": np.dtype(model.dtype).name,
        "model_digest": model_digest(model),
        "made_by": {name: environment()[name] for name in ("versions", "commit")},
        **(about or {}),
    }
    key = _digest(repr(sorted(description.items())).encode())
    folder = out if isinstance(out, RunFolder) else RunFolder(out, run_id=key[:12])
    folder.begin()
    write_description(folder.path, description | {"key": key})
    firsts: dict[str, int] = {}
    for number, task in enumerate(tasks):
        if progress is not None:
            progress(number, len(tasks))
        first = firsts.setdefault(task.clip.name, number)
        control = _tokens(folder.path, first) if told and first < number else None
        with working(f"{task.clip.name}, {task.condition} ({number + 1} of {len(tasks)})"):
            _keep(folder.path, number, key, task, model, steps, gains, control)
    if progress is not None:
        progress(len(tasks), len(tasks))
    return read_study(folder.path)


def _named(conditions: Conditions | Sequence[Recipe | None]) -> dict[str, Recipe | Mapping[str, Clip]]:
    """Give every condition its name."""
    found: dict[str, Recipe | Mapping[str, Clip]] = {}
    if isinstance(conditions, Mapping):
        found.update(conditions)
    else:
        recipes = [Recipe() if recipe is None else recipe for recipe in conditions]
        found.update({str(recipe): recipe for recipe in recipes})
        if len(found) < len(recipes):
            refuse("one condition twice", "different recipes", "each once")
    if not found or NO_SPEECH in found:
        refuse(f"conditions {list(found)}", f"at least one, none named {NO_SPEECH!r}", "conditions=[None, HELL]")
    return found


def _tasks(
    clips: Sequence[Clip],
    conditions: Mapping[str, Recipe | Mapping[str, Clip]],
    nonspeech: Sequence[Clip],
    talkers: Sequence[Recording],
    sounds: Sequence[Recording],
    seed: int,
) -> list[_Task]:
    """List the cells: clip by clip, so that pairs are whole when a run is stopped."""
    if not clips and not nonspeech:
        refuse("no clips", "at least one recording", "datasets.find(FOLDER)")
    names = [clip.name for clip in (*clips, *nonspeech)]
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        refuse(f"two clips named {again}", "a name of its own for each", "a manifest.csv with every path once")
    tasks = []
    for clip in clips:
        for name, how in conditions.items():
            if isinstance(how, Recipe):
                said = "" if how.replaces else clip.transcript
                load = lambda clip=clip, how=how: _stressed(clip, how, talkers, sounds, seed)
                tasks.append(_Task(clip, name, said, load))
            elif clip.name in how:
                other = how[clip.name]
                said = clip.transcript if other.transcript is None else other.transcript
                tasks.append(_Task(clip, name, said, other.load))
    return tasks + [_Task(clip, NO_SPEECH, "", clip.load) for clip in nonspeech]


def _stressed(
    clip: Clip, recipe: Recipe, talkers: Sequence[Recording], sounds: Sequence[Recording], seed: int
) -> np.ndarray:
    samples = clip.load()
    if not recipe.stages:
        return samples
    made, _ = apply(
        seed, samples, recipe=recipe, name=clip.name, speaker=clip.speaker, talkers=talkers, non_speech=sounds
    )
    return made


def _described(tasks: Sequence[_Task]) -> list[dict[str, Any]]:
    """Say of every clip what it is and under which conditions it is measured, in the order of the cells."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        clip = task.clip
        entry = {"name": clip.name, "speaker": clip.speaker, "cluster": clip.cluster or clip.name, "conditions": []}
        found.setdefault(clip.name, entry)["conditions"].append(task.condition)
    return list(found.values())


def _normaliser(clips: Sequence[Clip]) -> str:
    said = [normalise(clip.transcript, "digits").split() for clip in clips if clip.transcript]
    return "digits" if said and all(set(words) <= set(DIGITS) for words in said) else "english"


def _tokens(folder: Path, number: int) -> Told | None:
    """Return what a model wrote in an earlier cell; None where that one failed."""
    found = read_header(folder, number)
    if found is None or "failed" in found:
        return None
    return Told(tuple(found["sequence"]), found["prompt_length"], tuple(found["steps"]))


def _keep(
    folder: Path,
    number: int,
    key: str,
    task: _Task,
    model: WhisperModel,
    steps: str,
    gains: bool,
    told: Told | None,
) -> None:
    """Measure a cell and write it, unless an earlier call has."""
    labels = {
        "key": key,
        "clip": task.clip.name,
        "speaker": task.clip.speaker,
        "cluster": task.clip.cluster or task.clip.name,
        "condition": task.condition,
        "reference": task.reference,
        "told": None if told is None else list(told.sequence),
    }
    try:
        samples = np.ascontiguousarray(task.load(), np.float32)
        labels["digest"] = _digest(samples.tobytes())
        found = read_header(folder, number)
        same = ("key", "digest", "told")
        if found is not None and "failed" not in found and all(found.get(n) == labels[n] for n in same):
            return
        header, arrays = measured(model, samples, steps=steps, gains=gains, told=told)
        write_cell(folder, number, labels | header, arrays)
    except InputError as problem:
        write_cell(folder, number, labels | {"failed": str(problem)}, {})


def measured(
    model: WhisperModel, samples: np.ndarray, *, steps: str = "16", gains: bool = True, told: Told | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a cell says of one sound: its header, and its arrays by name.

    Parameters
    ----------
    model : WhisperModel. samples : (n,) float32 at 16 kHz; beyond the model's window they are not heard.
    steps, gains : as in `collect`.
    told : tokens with which its layers are measured as well.

    Raises
    ------
    InputError
        Sound that is unusable, steps that the transcript has not, non-finite activations.
    """
    window = model.dims.window_samples
    encoded, seconds = encode_audio(model, samples[:window])
    heard = transcriptions(model, greedy(model, encoded[None]), [seconds])[0]
    words = model.tokenizer
    if words is not None and any(token >= words.size for token in heard.tokens):
        beyond = max(heard.tokens)
        refuse(f"token {beyond} of a tokenizer of {words.size}", "tokenizer and weights of one model", "its own folder")
    wanted = spaced_steps(steps, heard.steps)
    if not wanted:
        refuse(f"--steps {steps} for a transcript of {heard.steps}", "at least one of its steps", "--steps 16")
    header = {
        "transcript": {field.name: getattr(heard, field.name) for field in dataclasses.fields(CellTranscript)},
        "steps": list(wanted),
        "sequence": list(heard.sequence),
        "prompt_length": heard.prompt_length,
        "seconds": seconds,
        "cut": samples.size > window,
    }
    arrays = {f"activations/{name}": value for name, value in _activations(model, encoded, heard).items()}
    layers = _layers(model, encoded, heard, wanted, gains)
    arrays |= {f"layers/{name}": value for name, value in layers.items()}
    if told is not None:
        control = dataclasses.replace(heard, sequence=told.sequence, prompt_length=told.prompt_length)
        if (told.sequence, told.steps) != (heard.sequence, wanted):
            layers = _layers(model, encoded, control, told.steps, gains=False)
        header["told_steps"] = list(told.steps)
        arrays |= {f"told/{name}": value for name, value in layers.items() if not name.startswith("log_")}
    return header, arrays


def _activations(model: WhisperModel, encoded: Any, heard: Transcription) -> dict[str, np.ndarray]:
    """Return what each sub-block adds at the positions that predict the generated tokens."""
    last = heard.position(heard.steps - 1)
    tokens = padded_tokens(model, encoded, heard.sequence, last)
    decoder, heads = model.parameters["decoder"], model.dims.decoder_heads
    run = decoder_pass(decoder, tokens, encoded, heads=heads, record=_ADDED)
    first = heard.prompt_length - 1
    found = {name: np.asarray(getattr(run, name), np.float32)[:, first : last + 1] for name in COMPONENTS}
    if not all(np.isfinite(value).all() for value in found.values()):
        refuse("non-finite activations", "finite numbers", "a checkpoint without NaN")
    return found


def _layers(
    model: WhisperModel, encoded: Any, heard: Transcription, steps: Sequence[int], gains: bool
) -> dict[str, np.ndarray]:
    """Return quantities of all blocks at the steps, each (steps, L)."""
    groups = [steps[first : first + GROUP] for first in range(0, len(steps), GROUP)]
    parts = [_group(model, encoded, heard, group, gains) for group in groups]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _group(
    model: WhisperModel, encoded: Any, heard: Transcription, steps: Sequence[int], gains: bool
) -> dict[str, np.ndarray]:
    """Return quantities of all blocks at few steps, which are as many to the compiler as any other few."""
    positions = [heard.position(step) for step in steps]
    # few shapes are compiled: the last token stands in for what is missing to a multiple
    factors = token_factors(model, encoded, heard.sequence, positions + positions[-1:] * (-len(steps) % BUCKET))
    found = [layer_triplets(f) for f in factors]
    layers: dict[str, Any] = {name: np.asarray(value, np.float64) for name, value in layer_quantities(found).items()}
    layers["resolved"] = layers["resolved"] > 0
    if gains:
        log_sigma = np.log(layers["sigma1"])
        products, whole = product_norms(factors), context_norms(factors)
        along = np.concatenate([layers["lam"][:, :-1], log_sigma[:, -1:]], axis=1)
        layers["log_gain_actual"] = np.asarray(products.value, np.float64)
        layers["log_gain_actual_error"] = np.asarray(products.error, np.float64)
        layers["log_gain_predicted"] = np.flip(np.cumsum(np.flip(along, 1), 1), 1)
        layers["log_context_gain"] = np.asarray(whole.value, np.float64)
        layers["log_context_gain_error"] = np.asarray(whole.error, np.float64)
    return {name: value[: len(steps)] for name, value in layers.items()}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
