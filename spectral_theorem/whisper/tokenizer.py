"""Turn token ids into text and back, for any vocabulary in `tokenizer.json` form."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..types import refuse

_LARGEST_FILE = 1 << 27
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_FIRST_TIMESTAMP = "<|0.00|>"


class Tokenizer:
    """Wrap one `tokenizer.json`.

    Parameters
    ----------
    path : the file.

    Attributes
    ----------
    special : dict
        Text to id of every added token that is written `<|like this|>`: control tokens, languages,
        tasks and timestamps. They never appear in decoded text.
    languages : dict
        Two- or three-letter code to id, in the order of the vocabulary; empty in one without languages.
    tasks : dict
        "transcribe" and "translate" to id, as far as the vocabulary has them.
    first_timestamp : int or None
        Id of `<|0.00|>`; the ids after it are 0.02 s apart. None in a vocabulary without timestamps.

    Raises
    ------
    InputError
        If the file is missing, too large, or not a tokenizer.

    Notes
    -----
    A vocabulary of whole words has no decoder in its file; its words are joined by spaces.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import tokenizers
        except ImportError:
            refuse("no `tokenizers` package", "the whisper extra", "pip install 'spectral-theorem[whisper]'")
        path = Path(path)
        if not path.is_file():
            refuse(f"{path}, which is not a file", "a tokenizer.json", "the folder of a Hugging Face model")
        if path.stat().st_size > _LARGEST_FILE:
            refuse(
                f"{path} of {path.stat().st_size} bytes", f"at most {_LARGEST_FILE}", "the model's own tokenizer.json"
            )
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the package raises bare Exception
            refuse(
                f"{path}, not a tokenizer ({' '.join(str(error).split())[:120]})", "a tokenizer.json", "another file"
            )
        added = self._tokenizer.get_added_tokens_decoder()
        self.special: dict[str, int] = {
            token.content: id
            for id, token in added.items()
            if token.content.startswith("<|") and token.content.endswith("|>")
        }
        by_id = sorted(self.special.items(), key=lambda item: item[1])
        named = [(_LANGUAGE.fullmatch(name), id) for name, id in by_id]
        self.languages: dict[str, int] = {match[1]: id for match, id in named if match}
        tasks = {task: f"<|{task}|>" for task in ("transcribe", "translate")}
        self.tasks: dict[str, int] = {task: self.special[name] for task, name in tasks.items() if name in self.special}
        self.first_timestamp: int | None = self.special.get(_FIRST_TIMESTAMP)
        self._silent = frozenset(self.special.values())

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        kept = [int(id) for id in ids if int(id) not in self._silent]
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()

    def token(self, id: int) -> str:
        """Return one id as it is written in the vocabulary, special tokens included; for tables."""
        return self._tokenizer.id_to_token(int(id)) or f"<{int(id)}>"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without prompt and end."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids
