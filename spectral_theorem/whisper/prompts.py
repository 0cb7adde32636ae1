"""Build the tokens a transcript starts with: earlier text, language, task, timestamps or none."""

from collections.abc import Sequence

from ..types import refuse
from .generation import Generation


def prompt_tail(
    generation: Generation, *, language: str | None = None, task: str | None = None, timestamps: bool = False
) -> tuple[int, ...]:
    """Return the prompt from start-of-transcript on.

    Parameters
    ----------
    generation : what the model was loaded with; its own prompt is the answer where nothing is asked.
    language : two- or three-letter code, or None for that of the model's prompt.
    task : "transcribe" or "translate", or None for that of the model's prompt.
    timestamps : whether the model is to predict timestamps.

    Returns
    -------
    ids : start-of-transcript, then language and task if the model is multilingual, then the
        no-timestamps token if there is one and no timestamps are wanted.

    Raises
    ------
    InputError
        If the model has no such language or task, or no timestamps.

    Examples
    --------
    >>> known = Generation((50, 3, 8, 9), 49, languages=(("en", 3), ("de", 4)), tasks=(("transcribe", 8),),
    ...                    no_timestamps=9, first_timestamp=60)
    >>> prompt_tail(known, language="de"), prompt_tail(known, timestamps=True)
    ((50, 4, 8, 9), (50, 3, 8))
    >>> prompt_tail(known, language="fr")
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got language='fr'; expected one of en, de; try language='en'
    """
    prompt = generation.prompt
    if timestamps and generation.first_timestamp is None:
        refuse("timestamps=True", "False or None: the vocabulary has no timestamps", "timestamps=None")
    if timestamps:
        prompt = tuple(id for id in prompt if id != generation.no_timestamps)
    elif generation.no_timestamps is not None and generation.no_timestamps not in prompt:
        prompt = (*prompt, generation.no_timestamps)
    for kind, wanted, known in (
        ("language", language, dict(generation.languages)),
        ("task", task, dict(generation.tasks)),
    ):
        if wanted is None or (not known and wanted in ("en", "transcribe")):
            continue
        if not known:
            refuse(f"{kind}={wanted!r}", "en and transcribe: the model is English-only", "language='en'")
        if wanted not in known:
            names = list(known)
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            refuse(f"{kind}={wanted!r}", f"one of {shown}", f"{kind}={names[0]!r}")
        prompt = _named(prompt, wanted, known, after=1 if kind == "language" else 2)
    return prompt


def _named(prompt: tuple[int, ...], wanted: str, known: dict[str, int], *, after: int) -> tuple[int, ...]:
    """Put an id in the place of its like, or where it belongs if there is none."""
    places = [place for place, id in enumerate(prompt) if id in known.values()]
    if places:
        return (*prompt[: places[0]], known[wanted], *prompt[places[0] + 1 :])
    return (*prompt[:after], known[wanted], *prompt[after:])


def prompt_head(generation: Generation, earlier: Sequence[int], room: int) -> tuple[int, ...]:
    """Return what comes before start-of-transcript: the start-of-previous token and the end of earlier text.

    Parameters
    ----------
    generation : of the model.
    earlier : ids of earlier text; none, or a vocabulary without start-of-previous, gives nothing.
    room : most ids to return.

    Examples
    --------
    >>> prompt_head(Generation((50,), 49, previous=48), [1, 2, 3, 4], room=3)
    (48, 3, 4)
    """
    if not earlier or generation.previous is None or room < 2:
        return ()
    return (generation.previous, *(int(id) for id in earlier[-(room - 1) :]))
