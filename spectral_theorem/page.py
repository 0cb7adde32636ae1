"""Set what all pages share: templates, the signs of verdicts, inline figures, and where numbers come from."""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from .runs import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"


@functools.cache
def template(name: str) -> Any:
    """Load a template of the package; every word that is put into it is escaped.

    Parameters
    ----------
    name : of the file.

    Examples
    --------
    >>> template("parts.html").module.badge is not None
    True
    """
    import jinja2

    folder = resources.files("spectral_theorem").joinpath("templates")
    read = jinja2.FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8"))
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=read).get_template(name)


def signs() -> dict[str, Mapping[str, str]]:
    """Return colour and sign of each verdict."""
    from .canvas import MUTED, VERDICTS

    found = {verdict: {"colour": colour, "sign": sign} for verdict, (_, colour, sign) in VERDICTS.items()}
    return {**found, "NOT COMPUTED": {"colour": MUTED, "sign": "○"}}


def inline(drawn: "Figure", label: str, salt: str, caption: str) -> dict[str, Any]:
    """Turn a figure into what a template shows.

    Parameters
    ----------
    drawn, caption : the figure, and what it shows. label : the same in a few words. salt : differs between figures.
    """
    from markupsafe import Markup

    from .canvas import to_svg

    svg = to_svg(drawn, salt=salt, label=f"{label}; the numbers are in the table below")
    return {"svg": Markup(svg), "caption": caption}


def provenance(run: RunRecord) -> list[tuple[str, str]]:
    """List where the numbers of a run come from."""
    summary = run.summary
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    seeds = ", ".join(map(str, summary.get("seeds", []))) or "none"
    named = ("run_id", "verb", "status", "written", "model_label", "model_digest", "dtype", "device", "platform")
    plain = {name.replace("_", " " if "model" in name else "_"): summary.get(name) for name in named}
    return [
        *((name, str(value)) for name, value in plain.items() if value is not None),
        ("seeds", seeds),
        ("versions", versions),
        ("commit", str(summary.get("commit") or "unknown: an installed copy")),
        ("schema", str(summary["schema"])),
        ("table", f"{run.table.num_rows} rows"),
        ("numbers that JSON cannot hold", f"{len(summary.get('nulls', []))}, listed in summary.json"),
    ]
