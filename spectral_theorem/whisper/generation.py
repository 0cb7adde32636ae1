"""Hold what decoding needs to know besides the weights: prompt, suppressed tokens, length."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..types import refuse
from .dims import Dims
from .tokenizer import Tokenizer

_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
_TIMESTAMPS = 1501  # 0.00 to 30.00 s, 0.02 s apart
_SMALLEST_MULTILINGUAL = 51_865
_HINT = "tokenizer, configs and weights of one model"


@dataclasses.dataclass(frozen=True)
class Generation:
    """Hold what decoding needs to know besides the weights.

    Parameters
    ----------
    prompt : token ids every transcript starts with, start-of-transcript first.
    end : id of end-of-text.
    suppress : ids never generated.
    suppress_first : ids not generated as the first token.
    longest : longest sequence, prompt and end-of-text included.
    no_speech : id whose probability after start-of-transcript says "no speech", or None.
    languages, tasks : code or name and id of every language and task, in the order of the
        vocabulary; empty when the model is English-only.
    language : the language of `prompt` if the checkpoint or the caller fixed one, else None: then
        it may be detected.
    no_timestamps : id that ends a prompt for text without timestamps, or None.
    first_timestamp : id of 0.00 s, 0.02 s before the next; None when there are no timestamps.
    previous : id that starts a prompt with earlier text, or None.

    Examples
    --------
    >>> Generation(prompt=(11, 12), end=10, suppress=(11, 12)).longest
    448
    """

    prompt: tuple[int, ...]
    end: int
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    longest: int = 448
    no_speech: int | None = None
    languages: tuple[tuple[str, int], ...] = ()
    tasks: tuple[tuple[str, int], ...] = ()
    language: str | None = None
    no_timestamps: int | None = None
    first_timestamp: int | None = None
    previous: int | None = None

    @property
    def multilingual(self) -> bool:
        """Whether a prompt names a language and a task."""
        return bool(self.languages)


def read_generation(
    described: Mapping[str, Any],
    dims: Dims,
    tokenizer: Tokenizer,
    *,
    language: str | None = None,
    task: str = "transcribe",
) -> Generation:
    """Read a parsed `generation_config.json`, or a `config.json` that stands in for it.

    Parameters
    ----------
    described : the parsed file.
    dims : sizes of the model; every id must lie in its vocabulary.
    tokenizer : names of the control tokens.
    language : two- or three-letter code, or None for the prompt the file prescribes and English
        where it leaves the language open.
    task : "transcribe" or "translate".

    Returns
    -------
    Generation

    Raises
    ------
    InputError
        If an entry has the wrong form, an id lies outside the vocabulary, or the model has no such
        language or task.
    """
    start, end = (_id(described, key, dims) for key in ("decoder_start_token_id", "eos_token_id"))
    multilingual = described.get("is_multilingual", dims.vocabulary >= _SMALLEST_MULTILINGUAL)
    forced = _forced(described, dims)
    chosen = language
    if forced is None or language is not None or task != "transcribe":
        forced = _named(tokenizer.special, bool(multilingual), language or "en", task)
    else:
        chosen = next((code for code, id in tokenizer.languages.items() if id in forced), None)
    prompt = (start, *forced)
    longest = described.get("max_length")
    longest = dims.positions if longest is None else longest
    if type(longest) is not int or longest <= len(prompt):
        refuse(f"max_length={longest!r}", f"an integer above {len(prompt)}, the length of the prompt", "max_length=448")
    no_speech = next((tokenizer.special[name] for name in _NO_SPEECH if name in tokenizer.special), None)
    generation = Generation(
        prompt=prompt,
        end=end,
        suppress=_ids(described, "suppress_tokens"),
        suppress_first=_ids(described, "begin_suppress_tokens"),
        longest=min(longest, dims.positions),
        no_speech=no_speech,
        languages=tuple(tokenizer.languages.items()) if multilingual else (),
        tasks=tuple(tokenizer.tasks.items()) if multilingual else (),
        language=chosen,
        no_timestamps=tokenizer.special.get("<|notimestamps|>"),
        first_timestamp=_first_timestamp(tokenizer, dims),
        previous=tokenizer.special.get("<|startofprev|>"),
    )
    named = (id for _, id in (*generation.languages, *generation.tasks))
    special = (id for id in (no_speech, generation.no_timestamps, generation.previous) if id is not None)
    for id in (*prompt, *generation.suppress, *generation.suppress_first, *named, *special):
        if not 0 <= id < dims.vocabulary:
            refuse(f"token id {id} in the generation config", f"0 to {dims.vocabulary - 1}, the vocabulary", _HINT)
    if len(prompt) >= generation.longest:
        refuse(f"a prompt of {len(prompt)} tokens", f"room after it in {dims.positions} positions", _HINT)
    if set(range(dims.vocabulary)) <= {*generation.suppress, *generation.suppress_first}:
        refuse("a generation config that suppresses every token", "a token left to choose", _HINT)
    return generation


def _first_timestamp(tokenizer: Tokenizer, dims: Dims) -> int | None:
    """Find 0.00 s: by its name, or behind the no-timestamps token, where older files leave the ids without names."""
    first = tokenizer.first_timestamp
    if first is None and "<|notimestamps|>" in tokenizer.special:
        first = tokenizer.special["<|notimestamps|>"] + 1
    return first if first is not None and first + _TIMESTAMPS <= dims.vocabulary else None


def _id(described: Mapping[str, Any], key: str, dims: Dims) -> int:
    id = described.get(key)
    if type(id) is not int or not 0 <= id < dims.vocabulary:
        refuse(f"{key}={id!r}", f"an integer from 0 to {dims.vocabulary - 1}", _HINT)
    return id


def _ids(described: Mapping[str, Any], key: str) -> tuple[int, ...]:
    ids = described.get(key) or ()
    if not isinstance(ids, list | tuple) or not all(type(id) is int for id in ids):
        refuse(f"{key}={str(ids)[:40]}", "a list of token ids", _HINT)
    return tuple(ids)


def _forced(described: Mapping[str, Any], dims: Dims) -> tuple[int, ...] | None:
    """Return the prompt the file forces after start-of-transcript, or None if it leaves any of it open."""
    pairs = described.get("forced_decoder_ids")
    if pairs is None:
        return None
    well_formed = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and (pair[1] is None or type(pair[1]) is int)
        for pair in pairs
    )
    if not well_formed or [place for place, _ in sorted(pairs, key=lambda pair: pair[0])] != list(
        range(1, len(pairs) + 1)
    ):
        refuse(f"forced_decoder_ids={str(pairs)[:40]}", "a list of [place, token id], places 1, 2, ...", _HINT)
    ids = [id for _, id in sorted(pairs, key=lambda pair: pair[0])]
    return None if None in ids else tuple(ids)


def _named(special: Mapping[str, int], multilingual: bool, language: str, task: str) -> tuple[int, ...]:
    """Return the prompt after start-of-transcript by the names of its tokens."""
    if not multilingual:
        if (language, task) != ("en", "transcribe"):
            refuse(
                f"language={language!r}, task={task!r}", "en and transcribe: the model is English-only", "language='en'"
            )
        wanted = []
    else:
        wanted = [f"<|{language}|>", f"<|{task}|>"]
        for name in wanted:
            if name not in special:
                refuse(
                    f"{name}", "a language and a task of this model's vocabulary", "language='en', task='transcribe'"
                )
    return tuple(special[name] for name in [*wanted, "<|notimestamps|>"] if name in special)
