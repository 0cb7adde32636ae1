"""Write one page about a run: verdicts in words, margins, layers, bounds, claims, provenance.

Reads the files of a run folder and nothing else: no model runs here, and no theory is computed. The
page needs no network and no script.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .console import MEANINGS, NAMES, number, verdict_in_words
from .page import REPORT, inline, provenance, signs, template
from .runs import RunRecord, read_run
from .storage import write_atomically
from .sweep_words import (
    STEP_COLUMNS,
    clips_of,
    close_ups,
    hypothesis_rows,
    judgement_caption,
    map_caption,
    step_row,
    sweep_in_words,
    token_text,
)
from .wording import (
    BOUND_CAPTION,
    BOUND_WORDS,
    CERTIFICATES,
    CONDITION_CAPTION,
    PARTS,
    SCALE,
    UNITS,
    layer_caption,
    power,
    reason_in_words,
    regime_in_words,
)

AGAIN = "This checks those once more and compares the verdicts:"
ANEW = "The verb and the config above make them anew."
LAYER_COLUMNS = {
    "σ₁": "sigma1",
    "± σ₁": "sigma_error",
    "σ₂": "sigma2",
    "± σ₂": "sigma2_error",
    "ξ": "xi",
    "± ξ": "xi_error",
    "|κ|": "kappa_abs",
    "± κ": "kappa_error",
    "ρ": "rho",
    "± ρ": "rho_error",
    "λ (nats)": "lam",
    "± λ": "lam_error",
}
HEARD = ("clip", "condition", "said", "heard", "outcome")
LABELS = ("component", "granularity", "scope", "context", "condition", "step", "dtype")
FIGURES = ("conditions_figure", "layers_figure", "bounds_figure")
TOLD = {"title", "note", "transcript", "chance_kappa", "clip"}  # shown elsewhere on the page


def write_report(path: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder, from the files it holds.

    Parameters
    ----------
    path : a run folder.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        When there is no such folder, it is no run, or a file in it cannot be read.

    Notes
    -----
    The same files give the same page, byte for byte. About half a second per chain; clips that were measured at
    several tokens get maps and a table, and take a second each.

    References
    ----------
    docs/schema.md (what is read), docs/guides/certificates.md (how to read the page).

    Examples
    --------
    >>> import tempfile
    >>> from spectral_theorem.runs import RunFolder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = RunFolder(folder).write_summary({"verb": "demo", "chains": {}})
    ...     "holds no chain" in write_report(folder).read_text(encoding="utf-8")
    True
    """
    # here, so that a command that writes no page does not wait for matplotlib
    from . import section_page

    run = read_run(path)
    name = run.path.resolve().name
    if "sections" in run.summary:
        drawn = section_page.shown_figures(run.summary["sections"])
        section_page.write_files(run.path, run.summary["sections"], drawn)
        html = section_page.section_html(run, name=name, drawn=drawn)
    else:
        kept = sorted(file.name for file in run.path.iterdir() if file.suffix == ".npz")
        html = report_html(run, name=name, kept=kept)
    return write_atomically(run.path / REPORT, lambda file: file.write(html.encode()))


def report_html(run: RunRecord, *, name: str, kept: Sequence[str] = ()) -> str:
    """Lay out the page of one run that has chains.

    Parameters
    ----------
    run : what the folder says. name : the folder's name, for the command that replays it.
    kept : names of the chain files in the folder.

    Returns
    -------
    str
        One HTML document; every word of the record is escaped.
    """
    summary = run.summary
    labels, every = _labels(run), summary.get("chains", {})
    swept = clips_of(every)
    clips = [
        _clip_view(clip, some, f"clip-{i}", labels.get(clip, {})) for i, (clip, some) in enumerate(swept.items(), 1)
    ]
    apart = set().union(*swept.values())
    chains = [
        _chain_view(key, chain, identity=f"chain-{index}", labels=labels.get(key, {}))
        for index, (key, chain) in enumerate(every.items(), 1)
        if key not in apart
    ]
    warnings = [] if every else ["This run holds no chain."]
    if summary.get("status") != "done":
        warnings.append("This run was not finished when the page was written: what follows may be incomplete.")
    verb = str(summary.get("verb", "run"))
    return template(REPORT).render(
        title=_title(verb, clips, chains),
        run_id=summary["run_id"],
        written=summary.get("written", ""),
        warnings=warnings,
        signs=signs(),
        hypotheses=list(NAMES.values()),
        overall=_overall(every),
        chains=chains,
        clips=clips,
        heard=[[str(row[name] or "-") for name in HEARD] for row in summary.get("heard", [])],
        heard_head=list(HEARD),
        failed=list(summary.get("failed", {}).items()),
        provenance=provenance(run),
        config=json.dumps(summary.get("config", {}), indent=1, ensure_ascii=False),
        replay=f"Of {len(every)} chains the folder keeps {len(kept)}. {AGAIN if kept else ANEW}",
        command=f"spectral-theorem verify {shlex.quote(name)}" if kept else "",
    )


def _labels(run: RunRecord) -> dict[str, dict[str, str]]:
    """Collect what the rows of the table say about each chain."""
    columns = {name: run.table[name].to_pylist() for name in ("clip", *LABELS)}
    found: dict[str, dict[str, set[str]]] = {}
    for name in LABELS:
        for clip, value in set(zip(columns["clip"], columns[name], strict=True)):
            if value is not None:
                found.setdefault(clip, {}).setdefault(name, set()).add(str(value))
    joined = lambda entry: {name: ", ".join(sorted(values)) for name, values in entry.items()}
    return {clip: joined(entry) for clip, entry in found.items()}


def _title(verb: str, clips: Sequence[Any], chains: Sequence[Any]) -> str:
    if len(clips) + len(chains) == 1:
        return [*clips, *chains][0]["title"]
    counts = [(len(clips), "clips"), (len(chains), "chains")]
    return f"{verb}: " + " and ".join(
        f"{count} {what}" for count, what in counts if count or (what == "chains" and not clips)
    )


def _clip_view(clip: str, chains: Mapping[str, Any], identity: str, labels: dict[str, str]) -> dict[str, Any]:
    """Collect what the page says about one clip that was measured at several tokens."""
    # here, so that a command that writes no page does not wait for matplotlib
    from .step_figure import judgement_figure
    from .sweep_figure import map_figure

    several, shown = list(chains.values()), close_ups(chains)
    first = several[0]
    facts = {"tokens measured": str(len(several)), "layers": str(len(first["layers"]))}
    facts |= {name: value for name, value in labels.items() if name != "step"}
    facts |= {"duration": f"{number(first['duration'])} s"} if "duration" in first else {}
    facts |= {"context size": f"{first['context_size']:,}"} if "context_size" in first else {}
    links = {key: f"{identity}-{index}" for index, key in enumerate(shown, 1)}
    rows = [step_row(chain, token_text(chain)) | {"link": links.get(key)} for key, chain in chains.items()]
    figures = [("maps", map_figure, map_caption), ("bounds and hypotheses", judgement_figure, judgement_caption)]
    return {
        "id": identity,
        "title": clip,
        "words": sweep_in_words(several),
        "note": first.get("note"),
        "transcript": first.get("transcript"),
        "facts": list(facts.items()),
        "hypotheses": hypothesis_rows(several),
        "figures": [
            inline(draw(several), f"{kind} of {clip}", f"{identity}-{kind}", words(several))
            for kind, draw, words in figures
        ],
        "head": STEP_COLUMNS,
        "rows": rows,
        "close": [
            _chain_view(key, chains[key], identity=links[key], labels={}, drawn=False)
            | {"title": f"Step {chains[key]['step']} {token_text(chains[key])}", "note": None, "transcript": None}
            for key in shown
        ],
    }


def _chain_view(
    name: str, chain: Mapping[str, Any], *, identity: str, labels: dict[str, str], drawn: bool = True
) -> dict[str, Any]:
    """Collect all that the page says about one chain."""
    title = chain.get("title") or name
    conditions, claims = chain["conditions"], chain["claims"]
    own = {
        key.replace("_", " "): number(value) if isinstance(value, float) else str(value)
        for key, value in chain.items()
        if key not in TOLD and isinstance(value, (int, float, str))
    }
    return {
        "id": identity,
        "title": title,
        "words": verdict_in_words(chain),
        "regime": regime_in_words(chain),
        "note": chain.get("note"),
        "transcript": chain.get("transcript"),
        "facts": list(({"layers": str(len(chain["layers"]))} | labels | own).items()),
        "hypotheses": [conditions[condition]["verdict"] for condition in NAMES],
        "c1": claims["c1"]["verdict"],
        "c2": claims["c2"]["verdict"],
        "certified": chain["regime"]["certified"],
        "naive": chain["regime"]["naive"],
        "condition_rows": list(_condition_rows(conditions)),
        "layer_head": ["layer", *LAYER_COLUMNS, "remark"],
        "layer_rows": _layer_rows(chain),
        "bounds": _bounds(chain),
        "claims": [_claim_row(key, claim, conditions) for key, claim in claims.items()],
    } | (_figures(chain, identity, title) if drawn else dict.fromkeys(FIGURES))


def _figures(chain: Mapping[str, Any], identity: str, title: str) -> dict[str, Any]:
    """Draw the figures of one chain; None where there is nothing to draw."""
    from .figures import bound_figure, condition_figure
    from .layer_figure import MARKED, layer_figure

    figure = lambda kind, drawn, caption: inline(drawn, f"{kind} of {title}", f"{identity}-{kind}", caption)
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if any(condition["verdict"] != "NOT_APPLICABLE" for condition in chain["conditions"].values()):
        found["conditions_figure"] = figure("conditions", condition_figure(chain), CONDITION_CAPTION)
    found["layers_figure"] = figure("layers", layer_figure(chain), layer_caption(chain, marked=MARKED))
    profile = chain.get("profile") or {"depth": [], "log_paper": []}
    if len(profile["depth"]) > 1 and any(value is not None for value in profile["log_paper"]):
        found["bounds_figure"] = figure("bounds", bound_figure(chain), BOUND_CAPTION)
    return found


def _condition_rows(conditions: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from .figures import QUANTITIES, binding_part

    for name, condition in conditions.items():
        quantity, sense = QUANTITIES.get(binding_part(name, condition), ("", "≥"))
        yield _condition_row(
            NAMES[name], condition, sense, f"{MEANINGS[name]}; value: {quantity}", conditions, part=False
        )
        for part, entry in condition["parts"].items():
            sense = QUANTITIES.get(part, ("", sense))[1]
            yield _condition_row(part.replace("_", " "), entry, sense, PARTS.get(part, ""), conditions, part=True)


def _condition_row(
    name: str, entry: Mapping[str, Any], sense: str, meaning: str, conditions: Mapping[str, Any], *, part: bool
) -> dict[str, Any]:
    # a number that is null though the verdict is sure is infinite
    sure = entry["verdict"] in ("HOLDS", "VIOLATED")
    endless = {"HOLDS": "+∞", "VIOLATED": "-∞"}.get(entry["verdict"], "-")
    reason = reason_in_words(entry, conditions)
    return {
        "part": part,
        "name": name,
        "value": number(entry["value"]) if entry["value"] is not None or not sure else "∞",
        "error": _error(entry["error"]) if entry["error"] is not None or entry["value"] is None else "∞",
        "threshold": f"{sense} {number(entry['threshold'])}" if entry["threshold"] is not None else "-",
        "margin": endless if entry["margin"] is None else number(entry["margin"], signed=True),
        "layer": entry["layer"] or "-",
        "verdict": entry["verdict"],
        "words": "; ".join(filter(None, [meaning, reason])),
        "reason": reason,
    }


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _layer_rows(chain: Mapping[str, Any]) -> list[list[str]]:
    names = chain.get("names") or []
    rows = []
    for index, layer in enumerate(chain["layers"]):
        title = f"{layer['layer']} {names[index]}" if index < len(names) else str(layer["layer"])
        cells = [_error(layer.get(key)) if "error" in key else number(layer[key]) for key in LAYER_COLUMNS.values()]
        remarks = ["" if layer["resolved"] else "not resolved", "" if layer["certified"] else "estimate"]
        rows.append([title, *cells, ", ".join(filter(None, remarks))])
    return rows


def _claim_row(name: str, claim: Mapping[str, Any], conditions: Mapping[str, Any]) -> dict[str, Any]:
    slack, equality = claim["slack"], claim["kind"] == "equality"
    return {
        "name": name.replace("_", " "),
        "statement": claim["statement"],
        "needs": ", ".join(NAMES[need].split()[0] for need in claim["needs"]) or CERTIFICATES.get(name, "nothing"),
        "slack": f"error {_error(-slack)}" if equality and slack is not None else number(slack, signed=True),
        "tolerance": _error(claim["tolerance"]),
        "unit": UNITS.get(name, SCALE),
        "verdict": claim["verdict"],
        "reason": reason_in_words(claim, conditions),
    }


def _bounds(chain: Mapping[str, Any]) -> dict[str, Any]:
    """Compare every bound with the true residual at full depth."""
    path, bounds = chain["path"], chain["bounds"]
    truth, scale, psi = path["log_residual_norm"], path["log_scale"], path["log_psi_norm"]
    allowance = chain["claims"]["identity"]["tolerance"]
    if scale is None:
        return {"lines": ["No injection meets a layer: there is no residual to bound."], "rows": []}
    if truth is None:
        return {"lines": ["The residual is 0 to the last digit: a ratio of a bound to it means nothing."], "rows": []}
    lines = [f"True residual ‖R_Σ‖ = {power(truth)}, that is {power(truth - scale)} of the scale {SCALE}."]
    if allowance and truth - scale < math.log(allowance):
        lines[0] += " That is within the rounding allowance: the ratios below say nothing."
    if psi is not None:
        lines.append(f"‖Ψ‖ = {power(psi)}, so ‖R_Σ‖/‖Ψ‖ = {power(truth - psi)}.")
    rows = []
    for name, (words, kind) in BOUND_WORDS.items():
        if f"log_{name}" not in bounds:
            continue  # a run of an earlier version, which did not know it
        bound = bounds[f"log_{name}"]
        zero = "0" if kind == "lower" else "-"
        rows.append([words, kind, *(zero if bound is None else power(bound - unit) for unit in (scale, truth))])
    rows.append(["true residual", "", power(truth - scale), "1"])
    return {"lines": lines, "rows": rows}


def _overall(chains: Mapping[str, Any]) -> str:
    """Say in two sentences what all chains of a run come to."""
    broken = [
        chain.get("title") or name
        for name, chain in chains.items()
        if any(claim["verdict"] == "VIOLATED" for claim in chain["claims"].values())
    ]
    met = sum(all(c["verdict"] == "HOLDS" for c in chain["conditions"].values()) for chain in chains.values())
    lead = f"A proved claim is VIOLATED in: {', '.join(broken)}." if broken else "No claim is violated."
    return f"{lead} All four hypotheses hold in {met} of {len(chains)} chains."
