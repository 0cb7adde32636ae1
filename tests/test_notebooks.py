"""The notebooks are valid, hold no outputs, lead somewhere, and run from the first cell to the last."""

import re
from pathlib import Path

import nbformat
import pytest

from spectral_theorem import carried

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_without_anything_beside_the_package(path, tmp_path, monkeypatch, capsys):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert codes and all(cell.outputs == [] and cell.execution_count is None for cell in codes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    namespace = {"__name__": "__notebook__"}
    for cell in codes:
        exec(compile(cell.source, f"{path.name}, cell {cell.id}", "exec"), namespace)
    said = capsys.readouterr().out
    assert "HOLDS" in said or "UNDECIDED" in said or "VIOLATED" in said
    assert namespace["MODEL"] == carried.MODEL and not namespace["study"].failed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_resolve_and_a_page_leads_to_it(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#]+)\)", text)]
    assert links and all((path.parent / link).is_file() for link in links)
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    assert any(path.name in page for page in pages) and path.name in (ROOT / "README.md").read_text(encoding="utf-8")
