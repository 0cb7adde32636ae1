"""Run one `verify`: a planted chain, a chain file or a run folder → verdict, record, run folder, report."""

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from . import certification, papers
from .ballchain import BallChain
from .balls import flint, precision
from .chainfile import load_chain, save_chain
from .console import Outcome, exit_code, verdicts, verification_text, working
from .ensembles import planted
from .profile import depth_profile
from .report import write_report
from .runs import SUMMARY, RunFolder, read_summary, verification_rows
from .storage import json_ready
from .triplets import decompose
from .types import LayerChain, Thresholds, refuse, tolerance
from .verification import verify

# A verification holds about this many arrays of the chain's size at once.
COPIES = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold one chain to check: its name, where it is from, its file's thresholds, and what was found before."""

    name: str
    origin: str
    chain: LayerChain
    thresholds: Mapping[str, float]
    recorded: Mapping[str, str]


def run(
    *,
    file: Path | None = None,
    out: Path | None = None,
    require: str | None = None,
    claim: str | None = None,
    certify: bool = False,
    certify_all: bool = False,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    dtype: str = "float64",
    **numbers: Any,
) -> Outcome:
    """Check the chain, or the chains, that the options name.

    Parameters
    ----------
    file : a chain in an .npz, or a run folder; None plants a chain.
    out : run folder to write; None writes nothing.
    require : "conditions" makes the exit code 1 unless all conditions hold.
    claim : "module:function" of a claim of the user's own, as `testing.check_claim` takes it.
    certify : settle what is within its allowance by ball arithmetic; `certify_all` all other statements too.
    thresholds : by name, those that override the file's and the library's.
    seed, dtype, numbers : of the planted chain, as `ensembles.planted` takes them.

    Returns
    -------
    Outcome
        `record` holds config, verdicts, and every verification as `to_dict` gives it.

    Raises
    ------
    InputError
        On options out of range, a chain too large for this machine, a file or folder that cannot be
        read or written, a claim that cannot be imported or evaluated.

    Notes
    -----
    Everything a user can get wrong is looked at before the computation starts. A claim that a file
    names is never imported on the file's word: only `claim` is, which the user typed.

    Examples
    --------
    >>> found = run(layers=4, width=4, context=3, sigma=1.02, kappa=0.9999, xi=1e-3, gamma=0.5, coherence=0.9)
    >>> found.exit_code, found.record["verdicts"]["planted"]["c2"]
    (0, 'HOLDS')
    """
    own = imported(claim) if claim else None
    if certify or certify_all:
        flint()
    if file is None:
        cases = [_plant(seed=seed, dtype=dtype, **numbers)]
    else:
        cases = _replay(file) if file.is_dir() else [_read(file)]
    limits = [Thresholds(**{**case.thresholds, **(thresholds or {})}) for case in cases]
    folder = RunFolder(out) if out is not None else None
    chains, found, texts = {}, {}, []
    for case, limit in zip(cases, limits, strict=True):
        with working(f"verifying {case.name}"):
            chain, proofs = _verified(
                case, limit, profiled=folder is not None, certified=certify or certify_all, everything=certify_all
            )
        chains[case.name], found[case.name] = chain, verdicts(chain)
        shape = f"L={case.chain.depth}, D={case.chain.width}, C={case.chain.context_size}, {case.chain.dtype}"
        lines = [verification_text(chain, title=f"{case.origin}: {shape}"), proofs]
        if claim and own:
            held, says = _judged(claim, own, case.chain)
            found[case.name][claim] = "HOLDS" if held else "VIOLATED"
            lines.append(f"claim {claim}: {found[case.name][claim]}{says}")
        for name in case.recorded.keys() & papers.STATEMENTS.keys():
            found[case.name][name] = _read_paper(name, case.chain, limit, proven=certify or certify_all)
            lines.append(f"{name} ({papers.STATEMENTS[name].statement}): {found[case.name][name]}")
        texts.append("\n\n".join(filter(None, [*lines, _compared(case, found[case.name])])))
    record = {
        "verb": "verify",
        "config": {
            "file": file,
            "claim": claim,
            "thresholds": thresholds or {},
            **({"certify": "all" if certify_all else "in doubt"} if certify or certify_all else {}),
        }
        | ({} if file else numbers),
        "seeds": [] if file else [seed],
        "dtype": str(cases[0].chain.dtype),
        "verdicts": found,
        "chains": chains,
    }
    if folder is not None:
        _write(folder, cases, record)
        texts.append(f"written to {folder.path}: {', '.join(sorted(p.name for p in folder.path.iterdir()))}")
    refuted = claim is not None and any(verdict[claim] == "VIOLATED" for verdict in found.values())
    code = exit_code(list(chains.values()), require=require) or int(refuted)
    return Outcome("\n\n".join(texts), json_ready(record)[0], code)


def _verified(
    case: Case, limit: Thresholds, *, profiled: bool, certified: bool, everything: bool
) -> tuple[dict[str, Any], str]:
    """Return the verification as plain values, and what ball arithmetic adds in words."""
    found = verify(case.chain, limit)
    # on the host at once: taking JAX arrays apart number by number compiles a program per length
    chain, proofs = jax.device_get(found).to_dict() | {"title": case.origin}, ""
    if profiled:
        chain["profile"] = depth_profile(case.chain, found.triplets).to_dict(case.chain.depth)
    if certified:
        results = certification.certify(case.chain, limit, found=found, everything=everything)
        chain, proofs = certification.settle(chain, results), certification.certified_text(results)
    return chain, proofs


def imported(claim: str) -> Callable[[LayerChain], Any]:
    """Import what the user named, from the current folder too."""
    module, _, name = claim.partition(":")
    hint = "--claim mybounds:my_claim"
    if not module or not name:
        refuse(f"--claim {claim}", "MODULE:FUNCTION", hint)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as problem:  # whatever a module of the user's raises while it loads
        refuse(f"--claim {claim}, which does not import ({type(problem).__name__}: {problem})", "a function", hint)
    if not callable(found):
        refuse(f"--claim {claim}, of type {type(found).__name__}", "a function", hint)
    return found


def _judged(claim: str, own: Callable[[LayerChain], Any], chain: LayerChain) -> tuple[bool, str]:
    """Evaluate a claim of the user's own, and put the result in words."""
    from .testing import judge

    try:
        judged = judge(own(chain), chain)
    except Exception as problem:  # whatever a function of the user's raises
        refuse(
            f"--claim {claim}, which raised {type(problem).__name__}: {problem}",
            "(left, right), (left, right, scale) or a bool for every chain",
            "return left, right",
        )
    return judged.holds, "" if judged.holds else f", {judged.says}"


def _read_paper(name: str, chain: LayerChain, limit: Thresholds, *, proven: bool) -> str:
    """Try one of the paper's readings, which a file names; they are built in, so that nothing is imported."""
    if not proven:
        return papers.judge(name, chain, decompose(chain), limit, tolerance(chain))[0].name
    with precision(256):
        return papers.prove(name, BallChain(chain.propagators, chain.injections, chain.initial), limit).name


def _plant(*, seed: int, dtype: str, **numbers: Any) -> Case:
    layers, width, context = (max(numbers[name], 0) for name in ("layers", "width", "context"))
    needed = COPIES * layers * width * (width + context) * jax.numpy.dtype(dtype).itemsize
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        refuse(
            f"--layers {layers} --width {width} --context {context}, about {needed / 1e9:.3g} GB",
            f"a chain that fits in {available / 1e9:.3g} GB",
            "a smaller --width",
        )
    if not 0 <= seed < 2**32:
        refuse(f"--seed {seed}", "a whole number from 0 to 4294967295", "--seed 0")
    chain = planted(jax.random.key(seed), dtype=dtype, **numbers)
    return Case("planted", f"planted chain, seed {seed}", chain, {}, {})


def _read(file: Path) -> Case:
    chain, meta = load_chain(file)
    recorded = {meta["claim"]: meta["expected"]} if {"claim", "expected"} <= meta.keys() else {}
    return Case(file.stem, str(file), chain, meta.get("thresholds", {}), recorded)


def _replay(folder: Path) -> list[Case]:
    """Read every chain that a run kept, with the verdicts it came to."""
    summary = read_summary(folder)
    files = sorted(folder.glob("*.npz"))
    if not files:
        refuse(f"{folder}, a run that kept no chain", f"{SUMMARY} with .npz files beside it", "verify --out run1")
    recorded = summary.get("verdicts", {})
    return [dataclasses.replace(_read(file), recorded=recorded.get(file.stem, {})) for file in files]


def _compared(case: Case, found: Mapping[str, str]) -> str:
    """Say whether the verdicts recorded earlier were found again."""
    lines = []
    changed = [f"{n} {before} -> {found[n]}" for n, before in case.recorded.items() if found.get(n, before) != before]
    if changed:
        lines.append(f"NOT as recorded: {', '.join(changed)}")
    elif again := case.recorded.keys() & found.keys():
        lines.append(f"as recorded: {len(again)} of {len(case.recorded)} verdicts checked again, all the same")
    for name in case.recorded.keys() - found.keys():
        lines.append(f"recorded, not checked: {name} {case.recorded[name]}; try --claim {name}")
    return "\n".join(lines)


def _write(folder: RunFolder, cases: list[Case], record: Mapping[str, Any]) -> None:
    folder.begin()
    for case in cases:
        chain = record["chains"][case.name]
        save_chain(folder.path / f"{case.name}.npz", case.chain, {"thresholds": chain["thresholds"]})
        labels = {"clip": case.name, "component": "chain", "granularity": "block", "scope": "synthetic"}
        rows = verification_rows(chain, **labels, context="full", dtype=record["dtype"])
        folder.write_table(rows, part=case.name)
    folder.write_summary(record)
    write_report(folder.path)
