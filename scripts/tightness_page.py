"""Draw the figure and the table of docs/theory/tightness.md from docs/benchmarks/tightness.json.

spectral-theorem falsify --tightness --restarts 32 --steps 192 --out run-tightness
cp run-tightness/tightness.json docs/benchmarks/tightness.json
python scripts/tightness_page.py
"""

import json
import re
from pathlib import Path
from typing import Any

from spectral_theorem.canvas import to_png, to_svg
from spectral_theorem.tightness_figure import TITLES, tightness_figure

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "benchmarks" / "tightness.json"
PAGE = ROOT / "docs" / "theory" / "tightness.md"
MARKS = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
LABEL = "Heat maps of the attained fraction of each bound over alignment and gap ratio, one row per depth"
DRAWN = ("total_norm", "transfer", "damped", "row_exact", "row_exact_lower", "top_k", "top_k_lower")


def table(record: dict[str, Any]) -> str:
    """Write, per depth and bound, the range over the grid and where the least is."""
    lines = ["| L | bound | least | at κ, ξ | median | most |", "| --- | --- | --- | --- | --- | --- |"]
    for depth in sorted({cell["layers"] for cell in record["cells"]}):
        for bound in record["config"]["bounds"]:
            found = sorted(
                (cell["bounds"][bound]["attained"], cell["kappa"], cell["xi"])
                for cell in record["cells"]
                if cell["layers"] == depth and cell["bounds"][bound]["attained"] is not None
            )
            (least, kappa, xi), middle, most = found[0], found[len(found) // 2][0], found[-1][0]
            cells = (depth, TITLES[bound], f"{least:.3g}", f"{kappa:g}, {xi:g}", f"{middle:.3g}", f"{most:.4g}")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def size(record: dict[str, Any]) -> str:
    """Say how large the search was, and on what."""
    config, environment = record["config"], record["environment"]
    start, *_, end = environment["load_1min"]
    return (
        f"{len(record['cells'])} points, {config['starts']} random starts of {config['steps']} gradient steps for each "
        f"of six quantities: {record['evaluated']:,} chains of D = {config['width']}, C = {config['context']} in "
        f"{record['seconds']:.0f} s on {environment['device']} (load {start} to {end}).\n"
    )


def main() -> None:
    """Draw, and write the table between its marks."""
    record = json.loads(SOURCE.read_text(encoding="utf-8"))
    depths = sorted({cell["layers"] for cell in record["cells"]})
    figure = tightness_figure(record["cells"], bounds=DRAWN, layers=depths)
    SOURCE.with_suffix(".svg").write_text(to_svg(figure, salt="tightness", label=LABEL) + "\n", encoding="utf-8")
    SOURCE.with_suffix(".png").write_bytes(to_png(figure))
    parts = {"table": table(record), "size": size(record)}
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKS.sub(lambda m: f"{m[1]}{parts[m[2]]}{m[3]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
