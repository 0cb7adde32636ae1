"""Sections of a run as `compare` and `sensitivity` write them, made up, small, and complete."""

import numpy as np

from spectral_theorem.runs import RunFolder
from spectral_theorem.tables import Column, Table

COMPONENTS = ("self_attention", "cross_attention", "mlp")


def table(name: str, heads: tuple[str, ...], rows: list[tuple]) -> dict:
    return Table(name, 1, f"About {name} <b>.", tuple(map(Column, heads)), tuple(rows)).to_json()


def section(name: str, verdict: str, tables: list[dict], data: dict | None = None, why: str = "") -> dict:
    sentence = f"Not computed: {why}." if why else f"The {name} is 1.5 [1, 2] <i>, by chance 0.1."
    title = f"What of {name}?"
    told = {"id": name, "title": title, "verdict": verdict, "sentence": sentence}
    return told | {"tables": tables, "data": data or {}, "why": why}


def sections(shift: float = 0.0) -> list[dict]:
    """Make one section of each kind that is drawn, and one that was not computed."""
    modes = np.arange(1.0, 21.0)
    places = [(component, layer) for component in COMPONENTS for layer in (1, 2)]
    spectra = [
        {"component": c, "layer": l, "clean": (modes**-1.0).tolist(), "stressed": (modes**-1.5).tolist()[:18]}
        for c, l in places
    ]
    plane = [
        {"component": c, "layer": l, "modes": 10, "condition": condition, "alpha_status": status}
        | {"effective_rank": [5.0 + l, 4.0, 8.0], "alpha": [alpha, None, None] if l == 2 else [alpha, 0.8, 1.9]}
        for c, l in places
        for condition, alpha, status in (("clean", 1.0, "OK"), ("stressed", 1.5, "FAILED"))
    ]
    changes = [
        (c, l, quantity, -3.5 + shift, -5.0 + shift, -2.0 + shift, 0.01, None)
        for c, l in places
        for quantity in ("ΔN_eff (%)", "Δα")
    ]
    heads = ("component", "layer", "quantity", "change", "low", "high", "p", "note")
    healthy = [{"component": c, "layer": l, "healthy": (modes**-0.9).tolist()} for c, l in places]
    grid = {"mean": [[0.1, -0.2, None]], "low": [[0.05, -0.3, None]], "high": [[0.2, 0.1, None]]}
    maps = [{"condition": c, "layers": [1], "steps": [0, 1, 5], **grid} for c in ("clean", "noise=0")]
    scatter = {
        "depth": [1.0, 2.0, 2.0],
        "actual": [0.5, 1.0, 1.2],
        "mean λ": [0.4, 0.8, 0.8],
        "own λ": [0.5, None, 1.0],
    }
    laws = [("mean λ", d, 0.1 * d, 0.0, 0.2 * d) for d in (1, 2)] + [("own λ", 1, 0.0, -0.1, 0.1)]
    variants = [
        (q, v, x, x - 0.1, x + 0.1) for q in ("|κ|", "λ (nats/layer)") for v, x in (("plain", 0.5), ("null", 0.1))
    ]
    about = ("quantity", "variant", "value", "low", "high")
    answers = [
        (c, kind, size, 0.3, 0.2, 0.4) for c in ("clean", "noise") for kind in ("state",) for size in (0.01, 0.1)
    ]
    decided = ("comparison", "change of λ", "low", "high")
    moved = ("condition", "layer", "quantity", "what changes", "change", "low", "high")
    parts = [("noise=0", "all", "λ (nats/layer)", what, 0.3, 0.2, 0.4) for what in ("sound alone", "tokens alone")]
    roc = [("λ", 0.6, 0.5, 0.7), ("log-probability", 0.8, None, None)]
    return [
        section("observables", "HOLDS", [table("changes_10", heads, changes)], {"spectra": spectra, "plane": plane}),
        section("baseline", "UNDECIDED", [], {"spectra": healthy}),
        section("paper", "VIOLATED", [table("paper_10", ("model", "ΔN_eff, paper", "ours"), [("tiny", -7.56, None)])]),
        section("lambda_map", "HOLDS", [], {"maps": maps}),
        section(
            "variance", "HOLDS", [table("variance", ("factor", "share", "low", "high"), [("layer", 0.5, 0.4, 0.6)])]
        ),
        section(
            "constant_lambda",
            "VIOLATED",
            [table("constant_lambda_depth", ("law", "d", "error", "error low", "error high"), laws)],
            {"scatter": scatter},
        ),
        section("nulls", "HOLDS", [table("nulls", about, variants)]),
        section(
            "ablations",
            "HOLDS",
            [table("ablation_decisions", decided, [("token", 0.3, 0.2, 0.4)]), table("ablations", about, variants)],
        ),
        section("same_tokens", "HOLDS", [table("same_tokens", moved, parts)]),
        section("prediction", "UNDECIDED", [table("prediction", ("score", "AUROC", "low", "high"), roc)]),
        section(
            "attractor",
            "VIOLATED",
            [table("attractor", ("condition", "perturbed", "size", "|cos|", "low", "high"), answers)],
            {"chance": 0.1, "aligned": 0.7},
        ),
        section("hallucinated", "NOT COMPUTED", [], why="nobody hallucinated"),
    ]


def written(folder, found: list[dict], **summary):
    """Write a run folder with these sections, and return its path."""
    run = RunFolder(folder, run_id="cafecafecafe")
    run.write_table([{"clip": "a", "quantity": "lam", "value": 0.5, "error": 0.1}])
    verdicts = {each["id"]: each["verdict"] for each in found}
    record = {"verb": "compare", "config": {"model": "small <script>"}, "seeds": [7], "dtype": "float32"}
    record |= {"model_label": "small", "model_digest": "0123", "verdicts": verdicts, "sections": found}
    run.write_summary(record | {"failed": {"b, clean": "no sound"}} | summary)
    return run.path
