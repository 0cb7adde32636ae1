"""The import order of docs/design.md, read from the syntax trees: data flows one way."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import spectral_theorem

RANK = {
    "types": 0,
    "storage": 0,
    "provenance": 0,
    "scaled": 1,
    "krylov": 1,
    "eigenpairs": 1,
    "lanczos": 2,
    "spectrogram": 1,
    "scoring": 1,
    "chainfile": 1,
    "searchfolder": 1,
    "tightness": 10,
    "tightness_figure": 5,
    "planting": 1,
    "resampling": 1,
    "moments": 1,
    "modefunctions": 1,
    "tables": 1,
    "statistics": 2,
    "association": 2,
    "divergence": 2,
    "observables": 3,
    "pooling": 4,
    "runs": 1,
    "behaviour": 2,
    "studyfile": 9,
    "gains": 9,
    "study": 10,
    "rolling": 1,
    "alarms": 5,
    "monitor": 10,
    "monitorfile": 1,
    "monitor_view": 11,
    "monitored": 12,
    "console": 1,
    "operatorchain": 1,
    "timing": 1,
    "peakmemory": 1,
    "benchrecord": 2,
    "judgement": 1,
    "largest": 1,
    "solvable": 1,
    "deep": 4,
    "manychains": 8,
    "trace": 1,
    "linearization": 2,
    "triplets": 2,
    "audio": 2,
    "path": 2,
    "coherence": 2,
    "factors": 2,
    "coupling": 2,
    "ensembles": 2,
    "wording": 2,
    "whisper": 3,
    "clips": 3,
    "distortions": 3,
    "shortened": 2,
    "closed": 2,
    "products": 3,
    "wide": 8,
    "steps": 1,
    "sequencewise": 9,
    "bounds": 3,
    "conditions": 3,
    "recipes": 3,
    "datasets": 4,
    "stress": 4,
    "regimes": 4,
    "profile": 4,
    "canvas": 4,
    "figures": 5,
    "layer_figure": 5,
    "phase_figure": 5,
    "sweep_figure": 5,
    "step_figure": 5,
    "sweep_words": 3,
    "claims": 5,
    "testing": 6,
    "page": 5,
    "spectra_figure": 5,
    "section_figures": 6,
    "section_page": 7,
    "report": 8,
    "redraw": 9,
    "differing": 9,
    "summary": 6,
    "verification": 7,
    "certificate": 3,
    "balls": 1,
    "ballchain": 3,
    "ballbounds": 4,
    "ballclaims": 5,
    "manifolds": 3,
    "papers": 6,
    "targets": 8,
    "search": 9,
    "falsify": 11,
    "certification": 8,
    "tokenwise": 8,
    "engine": 9,
    "stepwise": 10,
    "measure": 9,
    "measured": 11,
    "scopes": 8,
    "transcription": 8,
    "check": 10,
    "stressed": 10,
    "demo": 10,
    "models": 10,
    "workload": 10,
    "bench": 11,
    "corpus": 4,
    "trainconfig": 5,
    "objective": 6,
    "train": 8,
    "configs": 1,
    "experiment": 1,
    "shards": 1,
    "batched": 1,
    "designs": 2,
    "launch": 2,
    "sweepwork": 3,
    "sweeps": 11,
    "nulls": 2,
    "responses": 2,
    "chaingains": 3,
    "sections": 3,
    "contrast": 4,
    "constancy": 4,
    "suspicion": 4,
    "layerwise": 5,
    "sametokens": 6,
    "prediction": 5,
    "tokenchains": 9,
    "chance": 10,
    "ablations": 10,
    "attraction": 10,
    "detail": 11,
    "trials": 12,
    "sensitivity": 12,
    "remaining": 1,
    "paper_tables": 4,
    "material": 10,
    "gathered": 11,
    "spectra": 10,
    "spectral_sections": 11,
    "group_sections": 12,
    "compared": 13,
    "carried": 0,
    "modelverbs": 0,
    "verbs": 1,
    "cli": 14,
    "__main__": 15,
}
PACKAGE = "spectral_theorem"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
MODEL_SIDE = {"whisper", "audio", "spectrogram", "distortions", "stress", "clips", "datasets", "scoring"}
MODEL_SIDE |= {"behaviour", "corpus", "trainconfig", "objective"}


def module_name(path: Path) -> str:
    """Name a file by the dotted path below the package, `whisper` for `whisper/__init__.py`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, importer: str, *, is_package: bool) -> set[str]:
    """List dotted names below the package that this source imports, at any depth of nesting."""
    here = [PACKAGE, *(importer.split(".") if importer else [])]
    package = here if is_package else here[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            assert PACKAGE not in names, f"{importer} imports the whole package, which hides what it uses"
            found |= names
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{stem}.{alias.name}" for alias in node.names} | {stem}
    inside = {name.removeprefix(f"{PACKAGE}.") for name in found if name.startswith(f"{PACKAGE}.")}
    inside = {spectral_theorem._HOME.get(name, name) for name in inside}
    return {name for name in inside if top(name) in RANK}


def top(name: str) -> str:
    """Return the module or subpackage that carries the rank."""
    return name.split(".")[0]


def complaints(sources: dict[str, tuple[str, bool]]) -> list[str]:
    """List every import that breaks the order."""
    found = []
    for name, (source, is_package) in sources.items():
        for target in imported(source, name, is_package=is_package):
            here, there = top(name), top(target)
            if here == there:
                continue
            if RANK[here] <= RANK[there]:
                found.append(f"{name} (rank {RANK[here]}) imports {target} (rank {RANK[there]})")
            if RANK[here] < RANK["tokenwise"] and here not in MODEL_SIDE and there in MODEL_SIDE:
                found.append(f"{name} knows no model and imports {target}")
            if here == "whisper" and there not in {"types", "audio", "storage"}:
                found.append(f"{name} is a model and imports {target}")
    return found


def package_sources() -> dict[str, tuple[str, bool]]:
    # The root __init__ only names things, lazily, and stands outside the order.
    return {
        module_name(path): (path.read_text(encoding="utf-8"), path.name == "__init__.py")
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "__init__.py"
    }


def test_every_module_has_a_rank():
    assert {top(name) for name in package_sources()} == set(RANK)


def test_the_design_page_shows_these_ranks():
    page = (ROOT.parent / "docs/design.md").read_text(encoding="utf-8")
    shown = {}
    for names, rank in re.findall(r"^\| (`[^|]*`) \| (\d+) \|", page, re.MULTILINE):
        shown |= dict.fromkeys(re.findall(r"`(\w+)/?`", names), int(rank))
    assert shown == {name: rank for name, rank in RANK.items() if name != "__main__"}


def test_no_module_hides_a_public_function():
    # Importing a submodule sets an attribute of the package, which would win over the lazy name.
    assert not set(spectral_theorem._HOME) & {top(name) for name in package_sources()}


def test_imports_go_to_lower_ranks_only():
    assert complaints(package_sources()) == []


def test_subpackages_have_no_import_cycle():
    graph = {}
    for name, (source, is_package) in package_sources().items():
        inner = {t for t in imported(source, name, is_package=is_package) if top(t) == top(name) and "." in t}
        graph[name] = {t for t in inner if t in package_sources() and t != name}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("path", "from .bounds import residual_bounds"),
        ("path", "def f():\n    from spectral_theorem import verification"),
        ("path", "import spectral_theorem.cli"),
        ("path", "from spectral_theorem import Thresholds, residual_bounds"),
        ("bounds", "from . import whisper"),
        ("whisper.model", "from ..path import dominant_path"),
        ("types", "from .scaled import Scaled"),
    ],
)
def test_the_check_can_fail(name, source):
    assert complaints({name: (source, False)})


def test_the_check_lets_the_order_pass():
    assert not complaints({"bounds": ("from .path import dominant_path\nimport numpy", False)})
    assert not complaints({"whisper.model": ("from ..types import refuse\nfrom .dims import Dims", False)})
