"""List the Whisper models that are known by name, and those that lie in the local cache of the Hub."""

from typing import Any

from .console import Outcome, aligned
from .types import InputError
from .whisper import Published, catalogue, hub
from .whisper.formats import open_checkpoint

_NOTHING = "Nothing that can be loaded lies in the local cache of the Hub."


def run() -> Outcome:
    """List what is published and what is cached.

    Returns
    -------
    Outcome
        Of every cached Whisper whether it can be loaded, as far as its config and the frame of its
        weights tell; no weight is read and the network is not asked.

    Examples
    --------
    >>> [model["name"] for model in run().record["published"]][:2]
    ['openai/whisper-tiny', 'openai/whisper-tiny.en']
    """
    published = [_published(model) for model in catalogue.values()]
    try:
        cached, note = [_cached(entry) for entry in hub.cached()], _NOTHING
    except InputError as error:
        cached, note = [], f"The local cache of the Hub was not looked at: {error}."
    parts = [
        "Published models, by the name that MODEL takes:\n" + _table(published),
        "In the local cache of the Hub:\n" + _table(cached) if cached else note,
        "MODEL may also be a folder in Hugging Face or Flax layout, one of its weight files, or an OpenAI .pt file.",
    ]
    return Outcome("\n\n".join(parts), {"published": published, "cached": cached})


def _published(model: Published) -> dict[str, Any]:
    dims = model.dims
    return {
        "name": model.name,
        "parameters": model.parameters,
        "encoder_layers": dims.encoder_layers,
        "decoder_layers": dims.decoder_layers,
        "width": dims.width,
        "heads": dims.decoder_heads,
        "mels": dims.mels,
        "vocabulary": dims.vocabulary,
        "languages": model.languages,
    }


def _cached(entry: hub.Cached) -> dict[str, Any]:
    try:
        open_checkpoint(entry.folder)
        problem = None
    except InputError as error:
        problem = str(error)
    return {
        "name": entry.name,
        "commit": entry.commit,
        "bytes": entry.size,
        "loadable": problem is None,
        "problem": problem,
        "folder": str(entry.folder),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """Lay out rows under the keys they share, numbers with separators, paths left to the record."""
    keys = [key for key in rows[0] if key not in ("folder", "commit")]
    heads = [key.replace("_", " ") for key in keys]
    return aligned([heads, *([_cell(row[key]) for key in keys] for row in rows)], words=1 if "problem" in keys else 0)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)
