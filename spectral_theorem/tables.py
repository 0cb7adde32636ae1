"""Hold a table as a value and write it as text, CSV or LaTeX."""

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .types import refuse

Cell = str | float | int | None
MISSING = "n/a"
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "−": "$-$",
        "±": r"$\pm$",
        "≤": r"$\le$",
        "≥": r"$\ge$",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "∞": r"$\infty$",
        "‖": r"$\|$",
        "Δ": r"$\Delta$",
        "Σ": r"$\Sigma$",
        "Ψ": r"$\Psi$",
        "α": r"$\alpha$",
        "γ": r"$\gamma$",
        "κ": r"$\kappa$",
        "λ": r"$\lambda$",
        "μ": r"$\mu$",
        "ξ": r"$\xi$",
        "ρ": r"$\rho$",
        "σ": r"$\sigma$",
    }
)


@dataclasses.dataclass(frozen=True)
class Column:
    """Name a column and the unit of its numbers; no unit for words.

    Examples
    --------
    >>> Column("λ", "nats/layer").title
    'λ (nats/layer)'
    """

    name: str
    unit: str = ""

    @property
    def title(self) -> str:
        """Name and unit as a heading."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclasses.dataclass(frozen=True)
class Table:
    r"""Hold a table of a report.

    Parameters
    ----------
    name : identifies the table in its run, also as the name of a file. number : for `report --table`.
    caption : what it shows. columns : one heading each.
    rows : cells as strings, numbers or None; None is what was not run or not computed, and is written n/a.

    Raises
    ------
    InputError
        On a row with another number of cells than there are columns.

    Examples
    --------
    >>> table = Table("slopes", 1, "Slopes.", (Column("model"), Column("Δα")), (("tiny", 0.25), ("large", None)))
    >>> print(table.to_text())
    Table 1. Slopes.
    model    Δα
    tiny   0.25
    large   n/a
    >>> table.to_csv()
    'model,Δα\r\ntiny,0.25\r\nlarge,n/a\r\n'
    >>> Table.from_json(table.to_json()) == table
    True
    """

    name: str
    number: int
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                refuse(f"a row of {len(row)} cells in table {self.name}", f"{len(self.columns)} cells", "None, for n/a")

    def to_text(self) -> str:
        """Write the table for a terminal: numbers to the right, words to the left."""
        head, body = [column.title for column in self.columns], [[shown(cell) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        right = [_numeric(column) for column in zip(*self.rows, strict=True)] or [False] * len(head)
        place = lambda row: "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        return "\n".join([f"Table {self.number}. {self.caption}", place(head), *map(place, body)])

    def to_csv(self) -> str:
        """Write the table as CSV, numbers with all their digits."""
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow([column.title for column in self.columns])
        writer.writerows([[MISSING if cell is None else cell for cell in row] for row in self.rows])
        return buffer.getvalue()

    def to_latex(self) -> str:
        r"""Write the table as a LaTeX `table` with rules of booktabs.

        Examples
        --------
        >>> "50\\%" in Table("a", 1, "50%", (Column("x"),), ((1.5,),)).to_latex()
        True
        """
        right = [_numeric(column) for column in zip(*self.rows, strict=True)] or [False] * len(self.columns)
        line = lambda cells: " & ".join(_latex(cell) for cell in cells) + r" \\"
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_latex(self.caption)}}}",
                rf"\label{{tab:{self.name}}}",
                r"\centering",
                rf"\begin{{tabular}}{{{''.join('r' if to_right else 'l' for to_right in right)}}}",
                r"\toprule",
                line([column.title for column in self.columns]),
                r"\midrule",
                *(line([shown(cell) for cell in row]) for row in self.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Table":
        """Take a table back from what `to_json` gave, through a file or not."""
        try:
            columns: Sequence[Mapping[str, str]] = content["columns"]
            return cls(
                content["name"],
                content["number"],
                content["caption"],
                tuple(Column(**column) for column in columns),
                tuple(tuple(row) for row in content["rows"]),
            )
        except (KeyError, TypeError) as problem:
            refuse(f"a table that is none ({problem!r})", "what `to_json` gives", "the run again")


def shown(cell: Cell) -> str:
    """Write one cell: four digits of a number, n/a for what is not there.

    Examples
    --------
    >>> [shown(cell) for cell in (0.123456, 12, -3e-7, None, "tiny")]
    ['0.1235', '12', '-3e-07', 'n/a', 'tiny']
    """
    if cell is None:
        return MISSING
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _latex(text: str) -> str:
    joined = re.sub("[₀-₉]+", lambda m: f"\0{m[0].translate(_SUBSCRIPTS)}\1", text)
    return joined.translate(_LATEX).replace("\0", "$_{").replace("\1", "}$")


def _numeric(cells: Sequence[Cell]) -> bool:
    return all(cell is None or isinstance(cell, (int, float)) for cell in cells)
