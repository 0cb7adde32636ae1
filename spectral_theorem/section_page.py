"""Lay out the page of a run that answers questions, and write its figures and tables as files of their own."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .canvas import to_pdf, to_svg
from .page import provenance, signs, template
from .runs import RunRecord
from .storage import write_atomically
from .tables import Table, shown
from .types import refuse

STANDALONE = 'style="font-family: Verdana, DejaVu Sans, sans-serif; color: #010101; background: #ffffff" '


@dataclasses.dataclass(frozen=True)
class Shown:
    """Hold a figure as its file has it."""

    name: str
    svg: str
    pdf: bytes
    caption: str


def shown_figures(sections: Sequence[Mapping[str, Any]]) -> dict[str, list[Shown]]:
    """Draw all figures of a run once, for the page and for files.

    Parameters
    ----------
    sections : as in summary.json.

    Examples
    --------
    >>> shown_figures([{"id": "paper", "tables": [], "data": {}}])
    {'paper': []}
    """
    from .section_figures import figures_of

    words = lambda name: f"{name.replace('-', ' ')}; the numbers are in the tables below"
    return {
        section: [
            Shown(
                each.name,
                to_svg(each.figure, salt=each.name, label=words(each.name)),
                to_pdf(each.figure),
                each.caption,
            )
            for each in some
        ]
        for section, some in figures_of(sections).items()
    }


def section_html(run: RunRecord, *, name: str, drawn: Mapping[str, Sequence[Shown]] | None = None) -> str:
    """Lay out the page of one run, verdicts first.

    Parameters
    ----------
    run : whose summary has `sections`. name : the folder's name, for the commands that draw again.
    drawn : of `shown_figures`, where they are drawn already.

    Returns
    -------
    str
        One HTML document, which needs no network and no script; every word of the record is escaped.
    """
    summary = run.summary
    drawn = shown_figures(summary["sections"]) if drawn is None else drawn
    tables = numbered_tables(summary["sections"])
    sections = [
        {
            "id": section["id"],
            "title": section["title"],
            "verdict": section["verdict"],
            "sentence": section["sentence"],
            "figures": [{"svg": Markup(each.svg), "caption": each.caption} for each in drawn[section["id"]]],
            "tables": [_table_view(table) for table in tables[section["id"]]],
        }
        for section in summary["sections"]
    ]
    folder = shlex.quote(name)
    return template("sections.html").render(
        title=f"{summary.get('verb', 'run')}: {summary.get('model_label') or run.path.resolve().name}",
        run_id=summary["run_id"],
        written=summary.get("written", ""),
        warnings=_warnings(summary),
        signs=signs(),
        sections=sections,
        failed=list(summary.get("failed", {}).items()),
        provenance=provenance(run),
        config=json.dumps(summary.get("config", {}), indent=1, ensure_ascii=False),
        commands=f"spectral-theorem report {folder} --table 1 --format latex\nspectral-theorem report {folder}",
    )


def numbered_tables(sections: Sequence[Mapping[str, Any]]) -> dict[str, list[Table]]:
    """Give all tables of a run numbers, from 1 in the order of the page.

    Parameters
    ----------
    sections : as in summary.json.

    Returns
    -------
    dict
        Section id to its tables.

    Examples
    --------
    >>> empty = {"name": "a", "number": 0, "caption": "", "columns": [], "rows": []}
    >>> found = numbered_tables([{"id": "one", "tables": [empty]}, {"id": "two", "tables": [empty, empty]}])
    >>> {section: [table.number for table in tables] for section, tables in found.items()}
    {'one': [1], 'two': [2, 3]}
    """
    count, found = 0, {}
    for section in sections:
        found[section["id"]] = []
        for content in section["tables"]:
            count += 1
            found[section["id"]].append(dataclasses.replace(Table.from_json(content), number=count))
    return found


def table_of(sections: Sequence[Mapping[str, Any]], number: int) -> Table:
    """Find one table by its number.

    Raises
    ------
    InputError
        When there is none of this number.
    """
    tables = [table for some in numbered_tables(sections).values() for table in some]
    if not 1 <= number <= len(tables):
        named = ", ".join(f"{table.number} {table.name}" for table in tables)
        refuse(f"--table {number}", f"a table of the run: {named or 'it has none'}", "--table 1")
    return tables[number - 1]


def write_files(folder: Path, sections: Sequence[Mapping[str, Any]], drawn: Mapping[str, Sequence[Shown]]) -> None:
    """Write every figure as SVG and PDF, and every table as CSV and LaTeX, in place of earlier ones.

    Parameters
    ----------
    folder : of the run; `figures/` and `tables/` in it are ours. sections : as in summary.json.
    drawn : of `shown_figures`.
    """
    files: dict[str, bytes] = {}
    for each in (each for some in drawn.values() for each in some):
        files[f"figures/{each.name}.svg"] = each.svg.replace("<svg ", f"<svg {STANDALONE}", 1).encode() + b"\n"
        files[f"figures/{each.name}.pdf"] = each.pdf
    for table in (table for some in numbered_tables(sections).values() for table in some):
        stem = f"tables/{table.number:02d}-{table.name}"
        files[f"{stem}.csv"] = table.to_csv().encode()
        files[f"{stem}.tex"] = f"{table.to_latex()}\n".encode()
    for part in ("figures", "tables"):
        place = folder / part
        place.mkdir(exist_ok=True)
        for stale in place.iterdir():
            if f"{part}/{stale.name}" not in files:
                stale.unlink()
    for path, content in files.items():
        write_atomically(folder / path, lambda file, content=content: file.write(content))


def _table_view(table: Table) -> dict[str, Any]:
    numeric = [
        place
        for place, cells in enumerate(zip(*table.rows, strict=True))
        if all(cell is None or isinstance(cell, (int, float)) for cell in cells)
    ]
    return {
        "number": table.number,
        "caption": f"Table {table.number}. {table.caption}",
        "head": [column.title for column in table.columns],
        "rows": [[shown(cell) for cell in row] for row in table.rows],
        "numeric": numeric,
    }


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    found = []
    if summary.get("status") != "done":
        found.append("This run was not finished when the page was written: what follows may be incomplete.")
    if failed := summary.get("failed"):
        found.append(f"{len(failed)} recordings could not be measured; they are listed below.")
    return found
