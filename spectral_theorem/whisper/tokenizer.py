"""Turn token ids into text and back, for any vocabulary in `tokenizer.json` form."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..types import refuse

_LARGEST_FILE = 1 << 27


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
