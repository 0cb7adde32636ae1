"""Show the theorem at work: chains whose answers are known, then a tiny Whisper as plumbing."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .chainfile import save_chain
from .console import Outcome, aligned, exit_code, verdict_in_words, verdicts, working
from .ensembles import growing_despite_rho_below_one, planted
from .measure import measure_token
from .profile import depth_profile
from .report import write_report
from .runs import RunFolder, verification_rows
from .storage import json_ready
from .types import LayerChain
from .verification import verify
from .whisper import Dims, random_model

_PLANTED = {"layers": 64, "width": 64, "context": 48, "sigma": 1.02, "kappa": 0.9999, "gamma": 0.5, "coherence": 0.9}
_TITLES = {
    "all-hypotheses": "All hypotheses planted",
    "impure": "The same chain, 20 times less pure",
    "rho-below-one": "rho = 0.3 in every layer, and yet it grows",
    "random-whisper": "A tiny Whisper with random weights",
}
_NOTES = {
    "all-hypotheses": "Planted: sigma = 1.02, kappa = 0.9999, xi = 0.0005, gamma = 0.5, coherence 0.9, 64 layers.",
    "impure": "xi = 0.01 breaks purity, so C2 does not apply; the bounds need no hypothesis and are still compared.",
    "rho-below-one": "sigma = 3, kappa = 0.1, xi = 0.9 in the plane: the reading 'rho < 1 means decay' is wrong here.",
    "random-whisper": "Plumbing only: the weights are random, so nothing here says anything about Whisper.",
}
_TINY = {"width": 32, "mels": 20, "frames": 50, "vocabulary": 20, "positions": 16}
_TINY |= {
    f"{side}_{part}": size
    for side in ("encoder", "decoder")
    for part, size in (("layers", 4), ("heads", 2), ("hidden", 64))
}


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
    with working(f"measuring {_TITLES['random-whisper']}"):
        model = random_model(jax.random.key(0), Dims(**_TINY), dtype=jnp.dtype(dtype))
        tone = np.sin(2 * np.pi * 440 * np.arange(model.dims.window_samples) / 16_000)
        found["random-whisper"] = measure_token(model, tone).to_dict()
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
    }
    texts = [_text(name, chain) for name, chain in found.items()]
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
