"""Run one `diff`: what differs between two runs, in what was asked, by what it was made, and in what came out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .console import Outcome
from .runs import RunRecord, read_run
from .section_page import numbered_tables
from .tables import Cell, Table, shown

MADE_BY = ("verb", "model_label", "model_digest", "dtype", "seeds", "device", "platform", "commit", "versions")
KEYS = ("clip", "condition", "component", "granularity", "scope", "context", "layer", "step", "quantity")
SAME = 1e-12  # relative: below it, numbers differ by rounding
MOST = 12  # cells of one table that the text lists
Difference = dict[str, Any]


def run(*, first: Path, second: Path) -> Outcome:
    """Compare two runs from their records.

    Parameters
    ----------
    first, second : their folders.

    Returns
    -------
    Outcome
        Whatever differs: config, provenance, verdicts, and cells of tables, with a word on whether intervals meet. The
        exit code is 0 whether anything differs or not.

    Raises
    ------
    InputError
        When a folder is no run.

    Examples
    --------
    >>> run(first=Path("/nowhere"), second=Path("/nowhere"))
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got /nowhere, which does not exist; expected a run folder; try ...
    """
    one, other = read_run(first), read_run(second)
    found = differences(one, other)
    return Outcome(_text(found, first, second), {"first": str(first), "second": str(second), **found}, 0)


def differences(one: RunRecord, other: RunRecord) -> dict[str, list[Difference]]:
    """List what differs, part by part.

    Returns
    -------
    dict
        "config", "provenance" and "verdicts": `name`, `first`, `second`. "tables": `table`, `row`, `column` as well,
        and `intervals`: "apart", "meet" or None. "numbers": the same for the long table of runs without sections, and
        `beyond_errors`.
    """
    a, b = one.summary, other.summary
    made = [{name: summary.get(name) for name in MADE_BY} for summary in (a, b)]
    sections = [summary.get("sections", []) for summary in (a, b)]
    return {
        "config": list(_unlike(a.get("config", {}), b.get("config", {}))),
        "provenance": list(_unlike(*made)),
        "verdicts": list(_unlike(a.get("verdicts", {}), b.get("verdicts", {}))),
        "tables": list(_tables(*sections)),
        "numbers": [] if any(sections) else list(_numbers(one, other)),
    }


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        parts = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    return {name: value}


def _unlike(one: Any, other: Any) -> Iterator[Difference]:
    a, b = _flat(one), _flat(other)
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name) or (name in a) != (name in b):
            yield {"name": name, "first": a.get(name), "second": b.get(name)}


def _tables(one: Sequence[Any], other: Sequence[Any]) -> Iterator[Difference]:
    a, b = (
        {(section, table.name): table for section, tables in numbered_tables(sections).items() for table in tables}
        for sections in (one, other)
    )
    for key in dict.fromkeys([*a, *b]):
        whole = {"table": key[1], "row": None, "column": None, "intervals": None}
        if key not in a or key not in b:
            yield {**whole, "first": "there" if key in a else None, "second": "there" if key in b else None}
            continue
        yield from _cells(a[key], b[key])


def _cells(a: Table, b: Table) -> Iterator[Difference]:
    heads = [[column.title for column in table.columns] for table in (a, b)]
    count = min(_label_columns(a), _label_columns(b))
    rows = [_by_label(table, count) for table in (a, b)]
    for label in dict.fromkeys([*rows[0], *rows[1]]):
        one, other = (side.get(label) for side in rows)
        at = {"table": a.name, "row": ", ".join(str(part) for part in label[0])}
        if one is None or other is None:
            there = [None if row is None else "there" for row in (one, other)]
            yield {**at, "column": None, "intervals": None, "first": there[0], "second": there[1]}
            continue
        if heads[0] != heads[1]:
            continue
        for place in range(count, len(heads[0])):
            if _differ(one[place], other[place]):
                cells = {"first": one[place], "second": other[place]}
                yield {**at, "column": heads[0][place], "intervals": _intervals(a, one, other, place), **cells}


def _label_columns(table: Table) -> int:
    """Count the leading columns that tell rows apart: words and counts; at least the last is not one of them."""
    for place, cells in enumerate(zip(*table.rows, strict=True)):
        if any(isinstance(cell, float) for cell in cells) or all(cell is None for cell in cells):
            return place
    return max(0, len(table.columns) - 1)


def _by_label(table: Table, count: int) -> dict[tuple[tuple[Cell, ...], int], tuple[Cell, ...]]:
    found: dict[tuple[tuple[Cell, ...], int], tuple[Cell, ...]] = {}
    for row in table.rows:
        again = 0
        while (row[:count], again) in found:
            again += 1
        found[row[:count], again] = row
    return found


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return not math.isclose(one, other, rel_tol=SAME, abs_tol=0.0)
    return one != other


def _intervals(table: Table, one: Sequence[Cell], other: Sequence[Cell], place: int) -> str | None:
    """Say whether the intervals of a number meet, where the next two columns are its ends."""
    after = [column.name for column in table.columns[place + 1 : place + 3]]
    ends = [*one[place + 1 : place + 3], *other[place + 1 : place + 3]]
    named = len(after) == 2 and after[0].endswith("low") and after[1].endswith("high")
    if not named or not all(isinstance(end, (int, float)) for end in ends):
        return None
    numbers = [float(end) for end in ends if isinstance(end, (int, float))]
    return "apart" if numbers[0] > numbers[3] or numbers[1] < numbers[2] else "meet"


def _numbers(one: RunRecord, other: RunRecord) -> Iterator[Difference]:
    a, b = ({tuple(row[key] for key in KEYS): row for row in run.rows} for run in (one, other))
    for key in dict.fromkeys([*a, *b]):
        sides = [side.get(key, {}) for side in (a, b)]
        first, second = (side.get("value") for side in sides)
        verdicts = [side.get("verdict") for side in sides]
        if not _differ(first, second) and verdicts[0] == verdicts[1]:
            continue
        known = [number for number in (first, second, *(side.get("error") for side in sides)) if number is not None]
        beyond = abs(known[0] - known[1]) > known[2] + known[3] if len(known) == 4 else None
        name = ", ".join(f"{column} {part}" for column, part in zip(KEYS, key, strict=True) if part is not None)
        yield {"name": name, "first": first, "second": second, "beyond_errors": beyond}


def _text(found: Mapping[str, Sequence[Difference]], first: Path, second: Path) -> str:
    if not any(found.values()):
        return f"{first} and {second} do not differ."
    lines = []
    for part in ("config", "provenance", "verdicts"):
        if found[part]:
            lines += [f"{part}:", *(f"  {d['name']}: {_said(d['first'])} → {_said(d['second'])}" for d in found[part])]
    missing = [d for d in found["tables"] if d["row"] is None]
    for side, run in (("first", first), ("second", second)):
        if names := [d["table"] for d in missing if d[side]]:
            lines.append(f"tables of {run} only: {', '.join(names)}")
    for name in dict.fromkeys(d["table"] for d in found["tables"] if d["row"] is not None):
        mine = [d for d in found["tables"] if d["table"] == name]
        apart = sum(d["intervals"] == "apart" for d in mine)
        judged = sum(d["intervals"] is not None for d in mine)
        several = "1 difference" if len(mine) == 1 else f"{len(mine)} differences"
        lines.append(f"table {name}: {several}" + (f"; intervals of {apart} of {judged} are apart" if judged else ""))
        # those that intervals tell apart first
        mine.sort(key=lambda d: d["intervals"] != "apart")
        for d in mine[:MOST]:
            where = ", ".join(str(part) for part in (d["row"], d["column"]) if part is not None)
            sure = f" (intervals {d['intervals']})" if d["intervals"] else ""
            lines.append(f"  {where}: {shown(d['first'])} → {shown(d['second'])}{sure}")
        if len(mine) > MOST:
            lines.append(f"  and {len(mine) - MOST} more; --json lists all")
    if found["numbers"]:
        beyond = [d for d in found["numbers"] if d["beyond_errors"]]
        lines.append(f"numbers: {len(found['numbers'])} differ, {len(beyond)} of them beyond their errors")
        for d in [*beyond, *(d for d in found["numbers"] if not d["beyond_errors"])][:MOST]:
            lines.append(f"  {d['name']}: {shown(d['first'])} → {shown(d['second'])}")
    return "\n".join(lines)


def _said(value: Any) -> str:
    return "nothing" if value is None else str(value)
