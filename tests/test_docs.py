"""The documentation is code too: its blocks run, its links resolve, it misses no public name."""

import inspect
import json
import re
import runpy
import types
from pathlib import Path

import pytest

import spectral_theorem

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Brackets inside backticks and formulas are not links.
INLINE = re.compile(r"`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """List the anchors that headings of a page get."""
    titles = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def broken_links(page: Path) -> list[str]:
    found = []
    for target in LINK.findall(INLINE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            found.append(target)
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))], ids=page_id
)
def test_code_blocks_run(page, capsys):
    # One page, one namespace: later blocks may go on from earlier ones, as a reader would.
    namespace = {"__name__": "__docs__"}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, page_id(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page):
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "b.md").write_text("# One `title`, here\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md#one-title-here) [y](b.md#other) [z](none.md) `[c](none.md)` [w](https://example.org)\n")
    assert broken_links(page) == ["b.md#other", "none.md"]


@pytest.mark.parametrize("name", spectral_theorem.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(spectral_theorem, name)
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert re.search(rf"::: spectral_theorem\.{name}$", page, re.MULTILINE), f"{name} is missing in docs/api.md"
    documentation = inspect.getdoc(value) or ""
    assert documentation, f"{name} has no docstring"
    if callable(value) and not isinstance(value, types.ModuleType) and name not in WITHOUT_EXAMPLE:
        assert "Examples\n--------" in documentation, f"{name} has no example"
        assert ">>>" in documentation


# Results, which no user builds: the functions that return them show them at work.
WITHOUT_EXAMPLE = {"Triplets", "Condition", "Claim", "Verdict", "Reason", "Regime", "InputError"}


def test_the_list_of_exceptions_is_not_stale():
    assert set(spectral_theorem.__all__) >= WITHOUT_EXAMPLE


def test_mkdocs_names_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1]
    listed = re.findall(r"([\w/-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_every_page_is_utf8_without_machine_paths():
    for page in PAGES:
        assert not re.search(r"/work/|/root/|/home/", page.read_text(encoding="utf-8")), page


def test_the_benchmark_pages_are_drawn_from_their_files():
    drawn = runpy.run_path(str(ROOT / "scripts" / "benchmark_page.py"))
    read = lambda name: json.loads((drawn["FOLDER"] / name).read_text(encoding="utf-8"))
    expected = drawn["page"](read("whisper_speed.json"), read("wer.json"))
    assert (ROOT / "docs/benchmarks/whisper.md").read_text(encoding="utf-8") == expected
    others = {"openai-whisper": read("parity_openai.json"), "Flax Whisper": read("parity_flax.json")}
    expected = drawn["parity_page"](read("parity.json"), others, read("memory.json"))
    assert (ROOT / "docs/benchmarks/parity.md").read_text(encoding="utf-8") == expected
