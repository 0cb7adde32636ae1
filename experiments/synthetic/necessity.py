"""Every hypothesis but the floor of gamma is needed: without it an instance breaks a conclusion of the theorem.

Kind: finding.
Expected: nothing breaks while all hypotheses hold; without H1 C1 breaks, without H2 or H4 the residual is not small,
    without H3(b) or H3(c) everything does; without the floor of gamma nothing does, since H4 contains gamma.
Refuted by: a conclusion that breaks with every hypothesis in place, or a hypothesis named here without which none does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from spectral_theorem import balls, targets
from spectral_theorem.ballchain import BallChain
from spectral_theorem.chainfile import save_chain
from spectral_theorem.manifolds import HYPOTHESES, Family, build
from spectral_theorem.papers import prove
from spectral_theorem.search import climb
from spectral_theorem.types import Thresholds, Verdict

NONE, FLOOR = "nothing", "projection"
NAMES = {
    NONE: "nothing",
    "gain": "H1, ρ ≥ 1",
    "cumulative_gain": "H1, S ≥ 1",
    "alignment": "H2, alignment",
    "projection": "H3(a), γ",
    "directionality": "H3(b), direction",
    "signs": "H3(c), signs",
    "purity": "H4, purity",
}
BUILT = jax.jit(build, static_argnums=1)
GRID = {"dropped": tuple(NAMES)}


@dataclass(frozen=True)
class Config:
    """One hypothesis to drop, or "all" in turn; `rounds` per conclusion, `restarts` random starts of `steps` each."""

    dropped: str = "signs"
    layers: int = 4
    width: int = 3
    context: int = 2
    rounds: int = 1
    restarts: int = 16
    steps: int = 24
    seed: int = 0
    save: Path = Path()


def run(config: Config) -> list[dict[str, Any]]:
    """Search the worst instance of every conclusion; with `save`, keep those that break one for `verify FILE`."""
    rows = []
    for dropped in NAMES if config.dropped == "all" else [config.dropped]:
        keep = frozenset(HYPOTHESES) - {dropped}
        family = Family(config.layers, config.width, config.context, keep)
        target = targets.conclusions()
        evaluated, best = 0, {}
        for number in range(config.rounds * len(target.names)):
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            which = number % len(target.names)
            found = climb(key, which, target=target, family=family, restarts=config.restarts, steps=config.steps)
            evaluated += int(found.evaluated)
            for place, name in enumerate(target.names):
                ratio = float(found.best[place])
                if ratio > best.get(name, (-math.inf,))[0]:
                    best[name] = ratio, jax.tree.map(lambda x, place=place: x[place], found.numbers)
        for name, (ratio, numbers) in best.items():
            chain, _ = BUILT(numbers, family)
            with balls.precision(256):
                verdict = prove(name, BallChain(chain.propagators, chain.injections), Thresholds())
            file = ""
            if config.save != Path() and verdict is Verdict.VIOLATED:
                config.save.mkdir(parents=True, exist_ok=True)
                file = f"{dropped}-{name.partition(':')[2]}.npz"
                save_chain(
                    config.save / file, chain, {"claim": name, "expected": verdict, "note": f"without {dropped}"}
                )
            row = {"dropped": dropped, "conclusion": name.partition(":")[2], "ratio": math.exp(ratio)}
            rows.append(row | {"verdict": verdict.name, "evaluated": evaluated, "file": file})
    return rows


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge by proofs alone: what breaks with every hypothesis in place, and what breaks without each."""
    broken = {(r["dropped"], r["conclusion"]) for r in records if r["verdict"] == "VIOLATED"}
    total = sum({r["dropped"]: r["evaluated"] for r in records}.values())
    if any(dropped == NONE for dropped, _ in broken):
        return "VIOLATED", f"a conclusion fails with every hypothesis in place ({total} chains)"
    dropped = [name for name in dict.fromkeys(r["dropped"] for r in records) if name != NONE]
    needed = [name for name in dropped if any(d == name for d, _ in broken)]
    words = (
        f"{len(needed)} of {len(dropped)} hypotheses dropped broke a conclusion, by proven instances ({total} chains)"
    )
    if FLOOR in needed:
        return "VIOLATED", f"the floor of gamma is needed too: {words}"
    return ("HOLDS" if {*needed, FLOOR} >= {*dropped} else "UNDECIDED"), words


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Lay the records out as rows of Markdown: the largest left over right, in bold where a proof says it broke."""
    lines = ["| dropped | C1 | C2 | residual at most 0.16 Ψ |", "| --- | --- | --- | --- |"]
    for dropped in dict.fromkeys(r["dropped"] for r in records):
        cells = {r["conclusion"]: r for r in records if r["dropped"] == dropped}
        shown = [cells[name] for name in ("c1", "c2", "dominance")]
        words = [f"**{r['ratio']:.3g}**" if r["verdict"] == "VIOLATED" else f"{r['ratio']:.3g}" for r in shown]
        lines.append(f"| {NAMES[dropped]} | {' | '.join(words)} |")
    return "\n".join(lines)
