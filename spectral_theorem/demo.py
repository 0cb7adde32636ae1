"""Show the theorem at work: chains whose answers are known, then a small trained Whisper, clean and stressed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import carried
from .chainfile import save_chain
from .console import Outcome, aligned, exit_code, verdict_in_words, verdicts, working
from .datasets import read_manifest
from .ensembles import growing_despite_rho_below_one, planted
from .measure import measure_token
from .profile import depth_profile
from .report import write_report
from .runs import RunFolder, verification_rows
from .scoring import word_errors
from .storage import json_ready
from .stress import apply, kept, parse
from .types import LayerChain
from .verification import verify
from .whisper import WhisperModel, load, transcribe_many

_PLANTED = {"layers": 64, "width": 64, "context": 48, "sigma": 1.02, "kappa": 0.9999, "gamma": 0.5, "coherence": 0.9}
_TITLES = {
    "all-hypotheses": "All hypotheses planted",
    "impure": "The same chain, 20 times less pure",
    "rho-below-one": "rho = 0.3 in every layer, and yet it grows",
    "clean": "A small Whisper, trained on digits, on a clean clip",
    "stressed": "The same model on the same clip, stressed",
}
_NOTES = {
    "all-hypotheses": "Planted: sigma = 1.02, kappa = 0.9999, xi = 0.0005, gamma = 0.5, coherence 0.9, 64 layers.",
    "impure": "xi = 0.01 breaks purity, so C2 does not apply; the bounds need no hypothesis and are still compared.",
    "rho-below-one": "sigma = 3, kappa = 0.1, xi = 0.9 in the plane: the reading 'rho < 1 means decay' is wrong here.",
    "clean": "The model that the package carries: Whisper's architecture, four decoder blocks, a vocabulary of digits.",
    "stressed": "White noise as loud as the speech.",
}
STRESS = "noise=0"
RIGHT, WRONG, FAILED, INVENTED = "right", "some words wrong", "failed (WER > 0.5)", "hallucination: no speech"


def chains(dtype: str = "float64") -> dict[str, LayerChain]:
    """Make the chains with known answers that the demonstration shows.

    Parameters
    ----------
    dtype : "float64" or "float32".

    Returns
    -------
    dict
        Name to LayerChain.

    Examples
    --------
    >>> sorted(chains("float32"))
    ['all-hypotheses', 'impure', 'rho-below-one']
    """
    key = jax.random.key(0)
    return {
        "all-hypotheses": planted(key, xi=5e-4, dtype=dtype, **_PLANTED),
        "impure": planted(key, xi=0.01, dtype=dtype, **_PLANTED),
        "rho-below-one": growing_despite_rho_below_one(dtype=dtype),
    }


def run(*, out: Path | None = None, dtype: str = "float64") -> Outcome:
    """Verify every chain of the demonstration, and write a run folder with a report if asked.

    Parameters
    ----------
    out : run folder to write. dtype : "float64" or "float32".

    Returns
    -------
    Outcome
        Exit code 1 if a claim is violated.
    """
    folder = RunFolder(out) if out is not None else None
    found: dict[str, Any] = {}
    made = chains(dtype)
    for name, chain in made.items():
        with working(f"verifying {_TITLES[name]}"):
            verification = verify(chain)
            profile = depth_profile(chain, verification.triplets).to_dict(chain.depth)
            found[name] = verification.to_dict() | {"profile": profile}
    with working("listening to the clips that the package carries"):
        model = load(carried.MODEL, dtype=jnp.dtype(dtype))
        heard, sounds = listen(model)
    for condition, samples in sounds.items():
        with working(f"measuring {_TITLES[condition]}"):
            found[condition] = measure_token(model, samples).to_dict()
    for name, chain in found.items():
        notes = [_NOTES[name], chain.get("note", "")]
        chain |= {"title": _TITLES[name], "note": " ".join(filter(None, notes))}
    record = {
        "verb": "demo",
        "config": {},
        "seeds": [0],
        "dtype": dtype,
        "verdicts": {name: verdicts(chain) for name, chain in found.items()},
        "chains": found,
        "heard": heard,
    }
    texts = [_text(name, chain) for name, chain in found.items()]
    texts.insert(len(made), _heard_text(heard))
    if folder is not None:
        folder.begin()
        for name, chain in found.items():
            if name in made:
                save_chain(folder.path / f"{name}.npz", made[name], {"thresholds": chain["thresholds"]})
            scope = "synthetic" if name in made else "token"
            labels = {"clip": name, "component": "chain", "granularity": "block", "scope": scope, "dtype": dtype}
            folder.write_table(verification_rows(chain, context="full", **labels), part=name)
        folder.write_summary(record)
        texts.append(f"report: {write_report(folder.path)}")
    return Outcome("\n\n".join(texts), json_ready(record)[0], exit_code(list(found.values())))


def listen(model: WhisperModel) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Transcribe the carried clips, clean and stressed, and say of each what became of it.

    Parameters
    ----------
    model : the carried model.

    Returns
    -------
    heard : list of dict
        Per clip and condition: clip, condition, said, heard, errors, words, outcome. The label looks at
        texts only: a hallucination is any word on a clip without speech, a failure a WER above 0.5.
    sounds : dict
        "clean" and "stressed" samples of the clip whose stressed transcript has most errors.

    Examples
    --------
    >>> rows, sounds = listen(load(carried.MODEL))
    >>> len(rows), sorted(sounds)
    (16, ['clean', 'stressed'])
    """
    clips = read_manifest(carried.CLIPS)
    cases = [(clip, "clean", clip.load()) for clip in clips]
    for clip in clips:
        if clip.transcript:
            cases.append((clip, "stressed", apply(0, clip.load(), recipe=parse(STRESS), name=clip.name)[0]))
    found = transcribe_many(model, [samples for *_, samples in cases])
    rows = []
    for (clip, condition, _), transcript in zip(cases, found, strict=True):
        said = clip.transcript or ""
        errors = word_errors(said, transcript.text, how="digits")
        if not said:
            outcome = INVENTED if transcript.text else RIGHT
        else:
            outcome = FAILED if kept(said, transcript.text, how="digits") else WRONG if errors.errors else RIGHT
        rows.append(
            {
                "clip": clip.name,
                "condition": condition if said else "no speech",
                "said": said,
                "heard": transcript.text,
                "errors": errors.errors,
                "words": errors.reference_words,
                "outcome": outcome,
            }
        )
    worst = max((row for row in rows if row["condition"] == "stressed"), key=lambda row: row["errors"])["clip"]
    return rows, {condition: samples for clip, condition, samples in cases if clip.name == worst}


def _heard_text(heard: Sequence[dict[str, Any]]) -> str:
    """Lay out what the model heard, and count."""
    head = ["clip", "condition", "said", "heard", "outcome"]
    rows = [head, *([row[name] or "-" for name in head] for row in heard)]
    counts = []
    for condition in dict.fromkeys(row["condition"] for row in heard):
        mine = [row for row in heard if row["condition"] == condition]
        errors, words = (sum(row[name] for row in mine) for name in ("errors", "words"))
        rate = f", {errors} wrong words of {words}" if words else ""
        counts.append(f"{condition}: {sum(row['outcome'] == RIGHT for row in mine)} of {len(mine)} right{rate}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["What the carried model hears", *lines, "; ".join(counts)])


def _text(name: str, chain: dict[str, Any]) -> str:
    """Say in a few lines what one chain shows."""
    regime, bounds = chain["regime"], chain["bounds"]
    truth = chain["path"]["log_residual_norm"]
    times = lambda bound: "-" if bound is None or truth is None else f"{np.exp(bound - truth):.4g} x"
    rows = [
        ["condition", *chain["conditions"]],
        ["verdict", *(c["verdict"] for c in chain["conditions"].values())],
        ["margin", *("-" if c["margin"] is None else f"{c['margin']:+.4g}" for c in chain["conditions"].values())],
    ]
    sizes = ", ".join(
        f"{bound} {times(bounds[f'log_{bound}'])}" for bound in ("paper", "telescoping", "transfer", "row_exact")
    )
    total = chain["claims"]["total_norm"]["log_left"]
    growth = "" if total is None else f"; the product grows by {np.exp(total / len(chain['layers'])):.4g} per layer"
    return "\n".join(
        [
            chain["title"],
            chain["note"],
            verdict_in_words(chain),
            aligned(rows),
            f"bounds on the residual, as multiples of its true norm: {sizes}",
            f"regime, certified: {regime['certified']}; by the paper's reading of rho: {regime['naive']}{growth}",
        ]
    )
