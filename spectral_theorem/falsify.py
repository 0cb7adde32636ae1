r"""Run one `falsify`: try to break claims by gradient search, re-check every find, and keep what others can replay.

Three things are looked for at once: chains on which a statement fails, chains on which it is attained, and how close
to attained it gets. A find counts only when it survives: in ball arithmetic for built-in statements, outside jit in
float64 for a claim of a user's own.
"""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import balls, papers, provenance, targets
from . import tightness as tight
from .ballchain import BallChain
from .certification import certify
from .chainfile import save_chain
from .check import imported
from .console import Outcome, aligned
from .ensembles import COUNTEREXAMPLES, gaussian
from .manifolds import HYPOTHESES, Family, build, distance
from .search import Round, climb
from .searchfolder import begun, file_name, load, write_record
from .storage import json_ready
from .testing import judge
from .triplets import decompose
from .types import InputError, LayerChain, Thresholds, Verdict, refuse

RECORD = "falsify.json"
STEPS = 64
BATCH = 128
FREE, THEOREM = Family(), Family(keep=frozenset(HYPOTHESES))
READINGS = "paper"
# readings of rho < 1, and of rho >= 1: these on chains that keep all of H1 at every point, since a penalty for the
# least of many gains leads a search away from what it is after
DISPERSIVE, ATTRACTIVE = ("paper:decay",), ("paper:persistence", "paper:attraction")
STABLE = frozenset({"gain", "cumulative_gain"})
SCHEMA = 1


_built = jax.jit(build, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class Hunt:
    """Hold one target on one family, and how its finds are checked again."""

    name: str
    target: targets.Target
    family: Family
    recheck: Callable[[str, LayerChain], tuple[bool, str]]


def run(
    *,
    claim: str | None = None,
    seconds: float = 60.0,
    restarts: int | None = None,
    layers: int | None = None,
    width: int | None = None,
    context: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    batch: int = BATCH,
    steps: int = STEPS,
    tightness: bool = False,
    fix: str | None = None,
) -> Outcome:
    """Search until the time or the number of restarts is used up.

    Parameters
    ----------
    claim : a built-in claim, "paper" or one reading of it, "all" (the default: all built-in claims), or
        "module:function" of a user's own.
    seconds : budget of time; compilation counts.
    restarts : budget of starting points instead; then time does not matter, and the result depends on nothing else.
    layers, width, context : L, D, C of the chains. Default: 5, 3, 2; the paper's readings 8, 2, 1.
    seed : of every random number.
    out : folder for the record, finds and tightest instances; the same command goes on where it stopped.
    batch, steps : restarts side by side, gradient steps of each.
    tightness : instead of counterexamples, look for how much of each bound is attained at given scalars; then
        `restarts` is per bound and point (default `batch`), and time does not matter.
    fix : which scalars, as `tightness.read_fix` takes them; implies `tightness`.

    Returns
    -------
    Outcome
        Exit code 1 when a claim of this package or of the user's was refuted; 0 also when a reading of the paper was.

    Raises
    ------
    InputError
        On an unknown claim, a budget that is none, sizes out of range, or a folder of another search.
    """
    if restarts is None and not seconds > 0:
        refuse(f"--seconds {seconds}", "a positive number of seconds", "--seconds 60")
    for name, value in (("restarts", restarts), ("batch", batch), ("steps", steps)):
        if value is not None and value < 1:
            refuse(f"--{name} {value}", "a whole number >= 1", f"--{name} 128")
    if not 0 <= seed < 2**32:
        refuse(f"--seed {seed}", "a whole number from 0 to 4294967295", "--seed 0")
    balls.flint()  # a find that cannot be checked again is none
    if tightness or fix is not None:
        bounds = _bounds(claim)
        if layers is not None:
            refuse(f"--layers {layers} with --tightness", "the depths in --fix", f"--fix layers={layers}")
        given = {"width": width, "context": context, "seed": seed, "out": out}
        return tight.run(bounds=bounds, fix=fix, starts=restarts or batch, steps=steps, **given)
    hunts, wanted = _hunts(claim, layers=layers, width=width, context=context)
    config = {"claim": claim or "all", "layers": layers, "width": width, "context": context, "seed": seed}
    config |= {"batch": batch, "steps": steps}
    log = _Log(out, config, wanted)
    start, done_here = time.perf_counter(), 0
    while True:
        spent = time.perf_counter() - start
        if spent >= seconds if restarts is None else log.record["restarts"] >= restarts:
            break
        number = log.record["rounds"]
        hunt = hunts[number % len(hunts)]
        choices = [n for n in hunt.target.names if n in wanted]
        which = choices[number // len(hunts) % len(choices)]
        key = jax.random.fold_in(jax.random.key(seed), number)
        found = climb(
            key,
            hunt.target.names.index(which),
            target=hunt.target,
            family=hunt.family,
            restarts=batch,
            steps=steps,
        )
        log.add(hunt, which, found, batch)
        done_here += 1
        _progress(log, which, spent, seconds if restarts is None else None, restarts)
    log.finish(time.perf_counter() - start, done_here)
    return log.outcome()


def _bounds(claim: str | None) -> tuple[str, ...]:
    """Return the bounds that a claim speaks of; all of them where none is named."""
    if claim in (None, "all"):
        return tuple(tight.SIDES)
    found = tuple(name for name, known in tight.CLAIMS.items() if claim in (name, known))
    if not found:
        known = ", ".join(tight.CLAIMS.values())
        refuse(f"--claim {claim} with --tightness", f"all, or one of {known}", "--claim residual_transfer")
    return found


def _hunts(claim: str | None, **shape: int | None) -> tuple[list[Hunt], list[str]]:
    """Return what to search, and the names of the statements that are meant."""
    given = {name: value for name, value in shape.items() if value is not None}
    sized = lambda family: dataclasses.replace(family, **given)
    built_in, readings = targets.claims(), (*DISPERSIVE, *ATTRACTIVE)
    chosen = "all" if claim is None else claim
    if chosen == READINGS or chosen in readings:
        names = list(readings) if chosen == READINGS else [chosen]
        hunts = []
        for said, keep in ((DISPERSIVE, frozenset()), (ATTRACTIVE, STABLE)):
            if meant := tuple(name for name in said if name in names):
                family = dataclasses.replace(Family(8, 2, 1, keep), **given)
                hunts.append(Hunt("readings", targets.readings(meant), family, _recheck_reading))
        return hunts, names
    if chosen == "all" or chosen in built_in.names:
        names = list(built_in.names) if chosen == "all" else [chosen]
        free = Hunt("free", built_in, sized(FREE), _recheck_claim)
        kept = Hunt("theorem", targets.claims(theorem=True), sized(THEOREM), _recheck_claim)
        needs = {"psi_lower", "c1", "c2"}
        if set(names) <= needs:
            return [kept], names
        return [free, kept], names
    if ":" not in chosen:
        known = ", ".join([*built_in.names, READINGS, *readings])
        refuse(f"--claim {chosen}", f"MODULE:FUNCTION, all, or one of {known}", "--claim residual_transfer")
    own = imported(chosen)
    target, family = targets.user(chosen, own), sized(FREE)
    chain = gaussian(jax.random.key(0), layers=family.layers, width=family.width, context=family.context)
    try:
        judge(own(chain), chain)
    except InputError:
        raise
    except Exception as problem:  # whatever a function of the user's raises
        said = f"{type(problem).__name__}: {problem}"
        refuse(f"--claim {chosen}, which raised {said}", "(left, right) for every chain", "return left, right")
    if not targets.traceable(target, chain):
        refuse(
            f"--claim {chosen}, which JAX cannot differentiate",
            "(left, right) or (left, right, scale) made by jax.numpy from the chain's arrays",
            "testing.check_claim, which searches without gradients",
        )
    return [Hunt("own", target, family, lambda name, c: _recheck_own(own, c))], [chosen]


def _recheck_claim(name: str, chain: LayerChain) -> tuple[bool, str]:
    """Refute in ball arithmetic, or not."""
    found = certify(chain, names=[name], everything=True).get(name)
    refuted = found is not None and found.verdict is Verdict.VIOLATED and found.proof
    return refuted, "not worked out" if found is None else f"{found.verdict.name}, {found.says}, {found.bits} bits"


def _recheck_reading(name: str, chain: LayerChain) -> tuple[bool, str]:
    for bits in (192, 384):
        with balls.precision(bits):
            verdict = papers.prove(name, BallChain(chain.propagators, chain.injections), Thresholds())
        if verdict is not Verdict.UNDECIDED:
            return verdict is Verdict.VIOLATED, f"{verdict.name}, proved, {bits} bits"
    return False, "UNDECIDED"


def _recheck_own(own: Callable[[LayerChain], Any], chain: LayerChain) -> tuple[bool, str]:
    judged = judge(own(chain), chain)
    return not judged.holds, "HOLDS" if judged.holds else f"VIOLATED, {judged.says}, in float64"


class _Log:
    """Keep what was seen, on disk after every round when there is a folder."""

    def __init__(self, out: Path | None, config: dict[str, Any], wanted: list[str]) -> None:
        self.out, self.wanted = out, wanted
        blank = {"evaluated": 0, "best_ratio": None, "excess": None, "alarms": 0, "refuted": 0, "says": ""}
        self.record: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "environment": provenance.environment() | {"cpus": os.cpu_count(), "load_1min": [load()]},
            "config": config,
            "rounds": 0,
            "restarts": 0,
            "evaluated": 0,
            "seconds": 0.0,
            "statements": {name: dict(blank) for name in wanted},
            "finds": [],
        }
        if out is not None:
            self.record = begun(out, RECORD, self.record, ("finds", "tightest"))

    def add(self, hunt: Hunt, which: str, found: Round, restarts: int) -> None:
        """Take in one round; chains first, the record that speaks of them last."""
        for place, name in enumerate(hunt.target.names):
            if name not in self.wanted:
                continue
            entry = self.record["statements"][name]
            entry["evaluated"] += int(found.applied[place])
            ratio, excess = float(found.best[place]), float(found.excess[place])
            if math.isfinite(ratio) and (entry["best_ratio"] is None or ratio > entry["best_ratio"]):
                entry["best_ratio"] = ratio
                self._keep(self._chain(hunt, found.numbers, place), name, "tightest", f"{file_name(name)}.npz", {})
            if math.isfinite(excess) and (entry["excess"] is None or excess > entry["excess"]):
                entry["excess"] = excess
            if excess > 1:
                entry["alarms"] += 1
                self._suspect(hunt, name, entry, self._chain(hunt, found.suspects, place))
        self.record["rounds"] += 1
        self.record["restarts"] += restarts
        self.record["evaluated"] += int(found.evaluated)
        self._write()

    def _suspect(self, hunt: Hunt, name: str, entry: dict[str, Any], chain: LayerChain) -> None:
        refuted, entry["says"] = hunt.recheck(name, chain)
        if not refuted:
            return
        entry["refuted"] += 1
        near, far = nearest_known(chain)
        growth = np.linalg.norm(np.linalg.multi_dot(np.asarray(chain.propagators)[::-1]), 2) ** (1 / chain.depth)
        find = {
            "claim": name,
            "file": f"finds/{file_name(name)}-{entry['refuted']:03d}.npz",
            "round": self.record["rounds"],
            "says": entry["says"],
            "nearest_known": near,
            "distance": far,
            "growth_per_layer": float(growth),
        }
        self.record["finds"].append(find)
        self._keep(chain, name, "finds", Path(find["file"]).name, {"expected": Verdict.VIOLATED, "note": find["says"]})

    def _chain(self, hunt: Hunt, numbers: Any, place: int) -> LayerChain:
        return _built(jax.tree.map(lambda x: x[place], numbers), hunt.family)[0]

    def _keep(self, chain: LayerChain, name: str, part: str, file: str, meta: Mapping[str, Any]) -> None:
        if self.out is not None:
            save_chain(self.out / part / file, chain, {"claim": name, "thresholds": Thresholds(), **meta})

    def _write(self) -> None:
        if self.out is not None:
            write_record(self.out, RECORD, self.record)

    def finish(self, seconds: float, rounds: int) -> None:
        """Mark the record as done."""
        self.record["seconds"] += seconds if rounds else 0.0
        if rounds:
            self.record["environment"]["load_1min"].append(load())
        self.record["status"] = "done"
        self._write()
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def outcome(self) -> Outcome:
        """Put the record in words."""
        r = self.record
        rows = [["statement", "chains", "largest left/right", "alarms", "refuted", ""]]
        for name, entry in r["statements"].items():
            ratio = "-" if entry["best_ratio"] is None else f"{math.exp(entry['best_ratio']):.6g}"
            counts = [str(entry["evaluated"]), ratio, str(entry["alarms"]), str(entry["refuted"])]
            rows.append([name, *counts, entry["says"]])
        refuted = [name for name, entry in r["statements"].items() if entry["refuted"]]
        head = f"{r['evaluated']} chains evaluated from {r['restarts']} random starts in {r['seconds']:.0f} s: " + (
            f"refuted: {', '.join(refuted)}" if refuted else "nothing was refuted"
        )
        lines = [head, "", aligned(rows, words=1)]
        for find in r["finds"][:5]:
            lines.append(
                f"{find['claim']}: grows by {find['growth_per_layer']:.4g} per layer; nearest known case "
                f"{find['nearest_known']}, at a distance of {find['distance']:.2g} in (log sigma, |kappa|, xi)"
                + (f"; spectral-theorem verify {self.out / find['file']}" if self.out else "")
            )
        ours = [name for name in refuted if name not in papers.READINGS]
        return Outcome("\n".join(lines), json_ready(r)[0], int(bool(ours)))


def nearest_known(chain: LayerChain) -> tuple[str, float]:
    """Return the named counterexample whose scalars are closest, and how far it is.

    Examples
    --------
    >>> import spectral_theorem as st
    >>> nearest_known(st.ensembles.rotating(6))[0]
    'rotating'
    """
    here = decompose(chain)
    away = {name: distance(here, decompose(known.make(8))) for name, known in COUNTEREXAMPLES.items()}
    best = min(away, key=lambda name: away[name])
    return best, away[best]


def _progress(log: _Log, which: str, spent: float, seconds: float | None, restarts: int | None) -> None:
    if not sys.stderr.isatty():
        return
    r = log.record
    goal = f"{spent:.0f} of {seconds:.0f} s" if seconds else f"{r['restarts']} of {restarts} restarts"
    finds = sum(entry["refuted"] for entry in r["statements"].values())
    print(f"\r{goal}, {r['evaluated']} chains, {finds} finds, climbing {which:<24}", end="", file=sys.stderr)
