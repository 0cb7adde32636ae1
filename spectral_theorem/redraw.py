"""Run one `report`: draw a run's page again, or print one of its tables; no model runs."""

from pathlib import Path
from typing import Literal

from .console import Outcome
from .report import write_report
from .runs import read_summary
from .section_page import numbered_tables, table_of
from .types import refuse

Format = Literal["text", "csv", "latex"]


def run(*, run: Path, table: int | None = None, format: Format = "text") -> Outcome:
    """Draw `report.html` again from the records of a run, with its figures and tables, or print one table.

    Parameters
    ----------
    run : its folder. table : number of one table, which is printed instead. format : of that table.

    Returns
    -------
    Outcome
        The page's path, or the table.

    Raises
    ------
    InputError
        When the folder is no run, or has no such table.

    Examples
    --------
    >>> run(run=Path("/nowhere"))
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got /nowhere, which does not exist; expected a run folder; try ...
    """
    summary = read_summary(run)
    if table is None:
        if format != "text":
            refuse(f"--format {format} without --table", "the number of a table", f"--table 1 --format {format}")
        page = write_report(run)
        tables = [each for some in numbered_tables(summary.get("sections", [])).values() for each in some]
        listed = [f"  {each.number:2d}  {each.caption}" for each in tables]
        text = "\n".join([f"written: {page}", *(["tables, for --table N:", *listed] if listed else [])])
        return Outcome(text, {"report": str(page), "tables": [each.name for each in tables]}, 0)
    if "sections" not in summary:
        refuse(f"--table {table} of a run of {summary.get('verb')}", "a run of compare or sensitivity", f"report {run}")
    found = table_of(summary["sections"], table)
    text = {"text": found.to_text, "csv": found.to_csv, "latex": found.to_latex}[format]()
    return Outcome(text.rstrip("\r\n"), found.to_json(), 0)
