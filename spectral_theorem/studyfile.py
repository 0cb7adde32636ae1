"""Read a study back: what was found for every clip under every condition, one file each.

A study is a folder: `study.json` says what was asked, `cells/` holds a file per clip and condition. Arrays are read
when they are asked for, so memory does not grow with the number of clips. docs/schema.md defines the files.
"""

import dataclasses
import functools
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .behaviour import Behaviour, Limits, hallucinated, swapped
from .storage import json_ready, write_atomically
from .types import refuse

DESCRIPTION = "study.json"
CELLS = "cells"
SCHEMA = 1
COMPONENTS = ("self_attention", "cross_attention", "mlp")
QUANTITIES = ("sigma1", "sigma2", "xi", "kappa_abs", "lam")  # each with its `*_error`
CLEAN, STRESSED, NO_SPEECH = "clean", "stressed", "no speech"


@dataclasses.dataclass(frozen=True)
class CellTranscript:
    """Hold what the model wrote.

    Attributes
    ----------
    text, tokens : without prompt and end.
    token_logprobs : nats, of each generated token, end-of-text included.
    avg_logprob : nats per token. no_speech_prob : None if the vocabulary has no such token.
    compression_ratio : bytes of the text over bytes of its zlib form.
    finished : whether end-of-text was reached.
    """

    text: str
    tokens: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    avg_logprob: float
    no_speech_prob: float | None
    compression_ratio: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Cell:
    """Hold what was found for one clip under one condition.

    Attributes
    ----------
    clip, speaker, cluster : clips of one cluster share recordings; statistics resample clusters.
    condition : e.g. "clean", "stressed", "no speech", or the text of a recipe.
    reference : what was said; empty where nobody speaks, None if unknown.
    transcript : CellTranscript
    behaviour : Behaviour, from audio and texts alone.
    steps : generated tokens measured, from 0, end-of-text included.
    seconds : duration of what the model heard.
    digest : of its samples.
    file : where the arrays are.
    told_steps : tokens measured with those of the first condition in place of its own; None where that was not done.
    group : of the arrays of layers in the file.
    cut : whether the recording is longer than the model's window; all numbers are of its first one.
    """

    clip: str
    speaker: str
    cluster: str
    condition: str
    reference: str | None
    transcript: CellTranscript
    behaviour: Behaviour
    steps: tuple[int, ...]
    seconds: float
    digest: str
    file: Path
    told_steps: tuple[int, ...] | None = None
    group: str = "layers/"
    cut: bool = False

    @functools.cached_property
    def layers(self) -> dict[str, np.ndarray]:
        r"""Quantities of layers, each (steps, L), float64.

        `sigma1`, `sigma2`, `xi`, `kappa_abs`, `lam`, with `*_error`, and `resolved` (bool). The last layer has no
        `kappa_abs` and `lam`: NaN. `log_gain_actual[:, i]` is :math:`\log\|W_L\cdots W_{i+1}\|` and
        `log_gain_predicted[:, i]` is :math:`\log\sigma_{1,L} + \sum_{j=i+1}^{L-1}\lambda_j`, nats, i from 0; an
        estimate that did not converge is NaN. `log_context_gain` (steps,) is :math:`\log\|J_L\|`, with
        `log_context_gain_error`.
        """
        return self._arrays(self.group)

    def told(self) -> "Cell | None":
        """Return the same cell with the layers that it has when the first condition's tokens are forced.

        Its transcript and label stay those of its own tokens; gains of products are not measured.
        """
        if self.told_steps is None:
            return None
        return dataclasses.replace(self, steps=self.told_steps, told_steps=None, group="told/")

    @property
    def activations(self) -> dict[str, np.ndarray]:
        """What each sub-block added to the residual stream, per component (L, positions, D) float32.

        Read anew each time. Positions are those that predict the generated tokens, in order, end-of-text included.
        """
        return self._arrays("activations/")

    def activation(self, component: str) -> np.ndarray:
        """Return the activations of one component, (L, positions, D), without reading the others."""
        with np.load(self.file, allow_pickle=False) as file:
            return file[f"activations/{component}"]

    def _arrays(self, prefix: str) -> dict[str, np.ndarray]:
        with np.load(self.file, allow_pickle=False) as file:
            return {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}


@dataclasses.dataclass(frozen=True)
class Study(Sequence[Cell]):
    """Hold the cells of a study, in the order of clips, then conditions.

    Attributes
    ----------
    path : the folder.
    description : what was asked: `clips`, `conditions`, `model_digest`, `seed`, `steps`, `how`, `layers`, `width`.
    cells : those that are finished.
    failed : (clip, condition) to the reason.
    missing : (clip, condition) that an unfinished run has not come to.
    """

    path: Path
    description: Mapping[str, Any]
    cells: tuple[Cell, ...]
    failed: Mapping[tuple[str, str], str]
    missing: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __getitem__(self, index: Any) -> Any:
        return self.cells[index]

    @functools.cached_property
    def _places(self) -> dict[tuple[str, str], Cell]:
        return {(cell.clip, cell.condition): cell for cell in self.cells}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditions, in the order they were asked for."""
        return tuple(self.description["conditions"])

    @property
    def clips(self) -> tuple[str, ...]:
        """Names of clips with at least one finished cell, in order."""
        return tuple(dict.fromkeys(cell.clip for cell in self.cells))

    def cell(self, clip: str, condition: str) -> Cell | None:
        """Return a cell, or None if it failed or is missing."""
        return self._places.get((clip, condition))

    def of(self, condition: str) -> tuple[Cell, ...]:
        """Return the cells of one condition."""
        return tuple(cell for cell in self.cells if cell.condition == condition)

    def pairs(self, first: str, second: str) -> list[tuple[Cell, Cell]]:
        """Return the cells of clips that are finished under both conditions."""
        found = [(self.cell(clip, first), self.cell(clip, second)) for clip in self.clips]
        return [(a, b) for a, b in found if a is not None and b is not None]


def read_study(folder: str | os.PathLike[str], *, limits: Limits | None = None) -> Study:
    """Read a study, finished or not.

    Parameters
    ----------
    folder : a run folder of `compare` or `sensitivity`, or another that `study.collect` wrote.
    limits : where behaviour counts as hallucination.

    Returns
    -------
    Study

    Raises
    ------
    InputError
        When there is no such folder, or its description cannot be read.

    Notes
    -----
    Labels are made here and not kept: they depend on all transcripts of a condition, and are cheap. A file that
    cannot be read counts as missing.

    Examples
    --------
    >>> read_study("/nowhere")
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got /nowhere without a readable study.json; expected a folder of compare ...
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        places = [(clip["name"], condition) for clip in description["clips"] for condition in clip["conditions"]]
        known = description["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError):
        refuse(
            f"{folder} without a readable {DESCRIPTION}",
            "a folder of compare or sensitivity",
            f"spectral-theorem compare MODEL --clean FOLDER --out {folder}",
        )
    if not known:
        refuse(f"{folder / DESCRIPTION} with schema {description['schema']!r}", f"schema {SCHEMA}", "its own version")
    headers, failed, missing = [], {}, []
    for number, (clip, condition) in enumerate(places):
        header = read_header(folder, number)
        if header is None:
            missing.append((clip, condition))
        elif "failed" in header:
            failed[clip, condition] = header["failed"]
        else:
            headers.append((number, header))
    return Study(folder, description, tuple(_labelled(folder, description, headers, limits)), failed, tuple(missing))


def _labelled(
    folder: Path, description: Mapping[str, Any], headers: Sequence[tuple[int, dict[str, Any]]], limits: Limits | None
) -> list[Cell]:
    """Make cells of headers: behaviour is judged condition by condition, so that audio is exchanged within one."""
    swaps: dict[int, tuple[float | None, float | None]] = {}
    how = description["how"]
    for condition in description["conditions"]:
        mine = [(number, header) for number, header in headers if header["condition"] == condition]
        found = swapped(
            [header["transcript"]["text"] for _, header in mine],
            clusters=[header["cluster"] for _, header in mine],
            references=[header["reference"] for _, header in mine],
            how=how,
        )
        swaps |= {number: both for (number, _), both in zip(mine, found, strict=True)}
    cells = []
    for number, header in headers:
        transcript = header["transcript"]
        agreement, similarity = swaps[number]
        behaviour = hallucinated(
            transcript["text"],
            header["reference"],
            agreement=agreement,
            similarity=similarity,
            cut=header.get("cut", False),
            how=how,
            limits=Limits() if limits is None else limits,
        )
        tokens, scores = tuple(transcript["tokens"]), tuple(transcript["token_logprobs"])
        told = header.get("told_steps")
        cells.append(
            Cell(
                **{name: header[name] for name in ("clip", "speaker", "cluster", "condition", "reference")},
                transcript=CellTranscript(**transcript | {"tokens": tokens, "token_logprobs": scores}),
                behaviour=behaviour,
                steps=tuple(header["steps"]),
                seconds=header["seconds"],
                digest=header["digest"],
                file=cell_file(folder, number),
                told_steps=None if told is None else tuple(told),
                cut=header.get("cut", False),
            )
        )
    return cells


def cell_file(folder: Path, number: int) -> Path:
    """Return where the arrays of a cell are."""
    return folder / CELLS / f"{number:05d}.npz"


def read_header(folder: Path, number: int) -> dict[str, Any] | None:
    """Return what a cell says beside its arrays, or {"failed": reason}, or None if there is no whole file."""
    try:
        with cell_file(folder, number).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = json.loads(str(file["header"]))
        return found if isinstance(found, dict) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_cell(folder: Path, number: int, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a cell whole or not at all."""
    text = json.dumps(json_ready(header)[0], allow_nan=False, sort_keys=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, header=np.asarray(text), **arrays)
    (folder / CELLS).mkdir(exist_ok=True)
    write_atomically(cell_file(folder, number), lambda file: file.write(buffer.getbuffer()))


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write `study.json`."""
    text = json.dumps(json_ready({"schema": SCHEMA, **description})[0], indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / DESCRIPTION, lambda file: file.write(text.encode()))
