r"""Find how much of each bound is attained when the scalars are given: what `falsify --tightness` does.

Over a whole search the largest left over right is 1 for most bounds, because some easy chain attains them: two layers,
perfect alignment. Here :math:`\sigma_1, \kappa, \xi` are the same given numbers in every layer, :math:`\gamma` and the
norms of all injections too, and a search over what is left says how near a bound the truth can come *there*. Where it
comes near, no better bound can be made of these scalars; where it does not, there may be room.
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from . import balls, provenance, targets
from .ballbounds import bounds as balled
from .ballchain import BallChain, Unresolved
from .balls import frobenius
from .chainfile import save_chain
from .console import Outcome, aligned
from .manifolds import Family, Scalars, build
from .search import climb
from .searchfolder import begun, file_name, load, write_record
from .storage import json_ready
from .types import Thresholds, refuse

RECORD = "tightness.json"
SCHEMA = 1
SHAPE = Family(8, 4, 2, held=True)
# what is given where --fix says nothing
GRID: Mapping[str, tuple[float, ...]] = {
    "layers": (4, 8),
    "sigma": (1.0,),
    "kappa": (0.1, 0.5, 0.9, 0.99),
    "xi": (0.01, 0.1, 0.3, 0.9),
    "gamma": (0.5,),
}
# sigma_3/sigma_2 and so on where the top-K bound, K = 2, is looked at: it is a function of sigma_3, and exact at 0
TAIL = 0.5
HALVED = ("top_k", "top_k_lower")
# one climb serves all that compare the residual with a function of the scalars
CLIMBED = ("total_norm", "transfer", "row_exact", "row_exact_lower", *HALVED)
CLAIMS = {
    "total_norm": "total_norm",
    "transfer": "residual_transfer",
    "damped": "residual_damped",
    "row_exact": "row_exact_upper",
    "row_exact_lower": "row_exact_lower",
    "top_k": "top_k_upper",
    "top_k_lower": "top_k_lower",
}
_residual = lambda c: frobenius(c.residual)
SIDES: Mapping[str, Callable[[BallChain], tuple[Any, Any]]] = {
    "total_norm": lambda c: (c.product_norm(0), balled(c).product_bound(0)),
    "paper": lambda c: (_residual(c), balled(c).paper()),
    "telescoping": lambda c: (_residual(c), balled(c).telescoping()),
    "transfer": lambda c: (_residual(c), balled(c).transfer()),
    "damped": lambda c: (_residual(c), balled(c).damped()),
    "row_exact": lambda c: (_residual(c), balled(c).row_exact()[1]),
    "row_exact_lower": lambda c: (balled(c).row_exact()[0], _residual(c)),
    "top_k": lambda c: (_residual(c), balled(c).top_k(2)[1]),
    "top_k_lower": lambda c: (balled(c).top_k(2)[0], _residual(c)),
}

_built = jax.jit(build, static_argnums=1)


def read_fix(text: str | None) -> dict[str, tuple[float, ...]]:
    """Read the scalars that are given, "kappa=0.9:0.99,xi=0.1", beside the default grid.

    Raises
    ------
    InputError
        On a name that is none, a number out of range, or the same name twice.

    Examples
    --------
    >>> read_fix("kappa=0.9:0.99,layers=6")["kappa"], read_fix("layers=6")["layers"]
    ((0.9, 0.99), (6.0,))
    """
    example = "--fix kappa=0.9:0.99,xi=0.1:0.3,layers=4:8"
    ranges: dict[str, tuple[str, Callable[[float], bool]]] = {
        "layers": ("whole numbers >= 3", lambda x: x >= 3 and x == int(x)),
        "sigma": ("numbers > 0", lambda x: x > 0),
        "kappa": ("numbers from 0 to 1", lambda x: 0 <= x <= 1),
        "xi": ("numbers above 0 and below 1", lambda x: 0 < x < 1),
        "gamma": ("numbers above 0, at most 1", lambda x: 0 < x <= 1),
    }
    given: dict[str, tuple[float, ...]] = {}
    for item in [] if text is None else text.split(","):
        name, _, values = item.strip().partition("=")
        if name not in ranges or name in given:
            refuse(f"--fix {text}", f"each of {', '.join(ranges)} once at most", example)
        words, inside = ranges[name]
        try:
            numbers = tuple(float(value) for value in values.split(":"))
        except ValueError:
            numbers = (math.nan,)
        if not all(math.isfinite(x) and inside(x) for x in numbers):
            refuse(f"--fix {item.strip()}", f"{words}, separated by colons", example)
        given[name] = tuple(dict.fromkeys(numbers))
    return {**GRID, **given}


def run(
    *,
    bounds: tuple[str, ...] = tuple(SIDES),
    fix: str | None = None,
    starts: int = 64,
    steps: int = 256,
    width: int | None = None,
    context: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> Outcome:
    """Search every point of the grid, and re-check the chain that came nearest to each bound in ball arithmetic.

    Parameters
    ----------
    bounds : names out of `SIDES`.
    fix : as `read_fix` takes it.
    starts, steps : random starts per bound and point, gradient steps of each.
    width, context : D and C of the chains; default 4 and 2.
    seed : of every random number.
    out : folder for the record and the chains; the same command goes on where it stopped.

    Returns
    -------
    Outcome
        Exit code 0: nothing can fail here.

    Raises
    ------
    InputError
        On scalars out of range, a width below 3, or a folder of another search.
    """
    shape = {"width": SHAPE.width if width is None else width, "context": SHAPE.context if context is None else context}
    if shape["width"] < 3:
        refuse(f"--width {width}", "at least 3 with --tightness: with 2 the top-K bound is exact", "--width 4")
    grid = read_fix(fix)
    balls.flint()
    config = {"bounds": bounds, "fix": grid, "starts": starts, "steps": steps, **shape, "tail": TAIL, "seed": seed}
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "running",
        "environment": provenance.environment() | {"load_1min": [load()]},
        "config": config,
        "evaluated": 0,
        "seconds": 0.0,
        "cells": [],
    }
    if out is not None:
        record = begun(out, RECORD, record, ["tightest"])
    points = list(itertools.product(*(grid[name] for name in GRID)))
    target, fresh = targets.tightness(), len(record["cells"])
    for number in range(fresh, len(points)):
        point = dict(zip(GRID, points[number], strict=True))
        _progress(number, len(points), point)
        start = time.perf_counter()
        key = jax.random.fold_in(jax.random.key(seed), number)
        family = dataclasses.replace(SHAPE, layers=int(point["layers"]), **shape)
        best, evaluated = _search(key, point, bounds, target=target, family=family, starts=starts, steps=steps)
        cell: dict[str, Any] = {**point, "layers": family.layers, "bounds": {}}
        for name, (ratio, numbers) in best.items():
            chain, _ = _built(numbers, family)
            cell["bounds"][name] = {**attained(name, chain), "searched": math.exp(ratio)}
            if out is not None and name in CLAIMS:
                where = "-".join(f"{key}{value:g}" for key, value in point.items())
                note = f"attains {cell['bounds'][name]['attained']} of {name}"
                meta = {"claim": CLAIMS[name], "thresholds": Thresholds(), "note": note}
                save_chain(out / "tightest" / f"{file_name(f'{name}-{where}')}.npz", chain, meta)
        record["cells"].append(cell)
        record["evaluated"] += evaluated
        record["seconds"] += time.perf_counter() - start
        if out is not None:
            write_record(out, RECORD, record)
    record["status"] = "done"
    if len(record["cells"]) > fresh:
        record["environment"]["load_1min"].append(load())
    if out is not None:
        write_record(out, RECORD, record)
    return Outcome(words(record), json_ready(record)[0], 0)


def _search(
    key: Any,
    point: Mapping[str, float],
    bounds: tuple[str, ...],
    *,
    target: targets.Target,
    family: Family,
    starts: int,
    steps: int,
) -> tuple[dict[str, tuple[float, Any]], int]:
    """Return per bound the largest log of truth over bound (or bound over truth) at one point, with its numbers."""
    best: dict[str, tuple[float, Any]] = {}
    evaluated = 0
    given = {name: point[name] for name in ("sigma", "kappa", "xi", "gamma")}
    for place, climbed in enumerate(CLIMBED):
        halved = climbed in HALVED
        serves = [name for name in bounds if (name in HALVED) == halved]
        if climbed not in bounds and not (climbed == "transfer" and {"paper", "telescoping", "damped"} & set(bounds)):
            continue
        found = climb(
            jax.random.fold_in(key, place),
            target.names.index(climbed),
            target=target,
            family=family,
            restarts=starts,
            steps=steps,
            scalars=Scalars(**given, tail=TAIL if halved else -1.0),
        )
        evaluated += int(found.evaluated)
        for name in serves:
            i = target.names.index(name)
            if float(found.best[i]) > best.get(name, (-math.inf,))[0]:
                best[name] = float(found.best[i]), jax.tree.map(lambda x, i=i: x[i], found.numbers)
    return best, evaluated


def attained(name: str, chain: Any) -> dict[str, Any]:
    """Enclose the attained fraction of one bound on one chain, in ball arithmetic from the chain's entries alone.

    Returns
    -------
    dict
        `attained`, a proven lower end of truth over bound (of a lower bound: bound over truth), rounded down, and
        `bits`; None where the balls do not tell.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> chain = st.LayerChain(jnp.asarray([[[2.0, 0.0], [0.0, 1.0]]] * 3), jnp.ones((3, 2, 1)))
    >>> round(attained("transfer", chain)["attained"], 12)
    1.0
    """
    bits = 0
    for bits in (128, 256, 512):
        with balls.precision(bits):
            try:
                left, right = SIDES[name](BallChain(chain.propagators, chain.injections))
                fraction = left / right
                low, high = float(fraction.lower()), float(fraction.upper())
            except (Unresolved, ZeroDivisionError):
                continue
            if high - low <= 1e-9:
                return {"attained": max(0.0, math.nextafter(low, 0.0)), "bits": bits}
    return {"attained": None, "bits": bits}


def words(record: Mapping[str, Any]) -> str:
    """Put a record in words: one row per point, one column per bound."""
    names = list(record["config"]["bounds"])
    rows = [["layers", "sigma", "kappa", "xi", "gamma", *names]]
    for cell in record["cells"]:
        values = [cell["bounds"].get(name, {}).get("attained") for name in names]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        rows.append([f"{cell[name]:g}" for name in rows[0][:5]] + shown)
    head = (
        f"{record['evaluated']} chains evaluated in {record['seconds']:.0f} s. Attained fraction of each bound where "
        "scalars are given, proved in ball arithmetic for the chain that came nearest; at 1 they allow no better."
    )
    return f"{head}\n\n{aligned(rows)}"


def _progress(number: int, count: int, point: Mapping[str, float]) -> None:
    if sys.stderr.isatty():
        where = ", ".join(f"{name} {value:g}" for name, value in point.items())
        print(f"\rpoint {number + 1} of {count}: {where:<60}", end="" if number + 1 < count else "\n", file=sys.stderr)
