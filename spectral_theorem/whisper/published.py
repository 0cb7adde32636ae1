"""Number the control tokens of the published vocabularies, for checkpoints that come without a tokenizer.

Every published Whisper has one of three vocabularies, told apart by their size: 51,864 tokens
(English-only), 51,865 (99 languages) and 51,866 (with Cantonese). Control tokens follow the plain
ones in a fixed order. An OpenAI `.pt` holds neither names nor numbers; they are part of the code that
reads it.
"""

from collections.abc import Mapping
from typing import Any

from .dims import Dims
from .tokenizer import Tokenizer

# In the order of their tokens.
LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
).split()
TASKS = ("transcribe", "translate")
_AFTER_LANGUAGES = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
_TIMESTAMPS = 1501
_ENGLISH_ONLY = 51_864
_PLAIN = {_ENGLISH_ONLY: 50_256, 51_865: 50_257, 51_866: 50_257}
_START, _END = "<|startoftranscript|>", "<|endoftext|>"
# What a transcript never holds: control tokens, and symbols for music, brackets and the like, which stand for what is
# not said. The second kind was published with the models, as lists of ids.
_NEVER = (_START, *_AFTER_LANGUAGES[:5])
_BLANK = 220
_UNSPOKEN = {
    False: (
        "1 2 7 8 9 10 14 25 26 27 28 29 31 58 59 60 61 62 63 90 91 92 93 357 366 438 532 685 705 796 930 1058 "
        "1220 1267 1279 1303 1343 1377 1391 1635 1782 1875 2162 2361 2488 3467 4008 4211 4600 4808 5299 5855 6329 "
        "7203 9609 9959 10563 10786 11420 11709 11907 13163 13697 13700 14808 15306 16410 16791 17992 19203 19510 "
        "20724 22305 22935 27007 30109 30420 33409 34949 40283 40493 40549 47282 49146"
    ),
    True: (
        "1 2 7 8 9 10 14 25 26 27 28 29 31 58 59 60 61 62 63 90 91 92 93 359 503 522 542 873 893 902 918 922 931 "
        "1350 1853 1982 2460 2627 3246 3253 3268 3536 3846 3961 4183 4667 6585 6647 7273 9061 9383 10428 10929 "
        "11938 12033 12331 12562 13793 14157 14635 15265 15618 16553 16604 18362 18956 20075 21675 22520 26130 "
        "26161 26435 28279 29464 31650 32302 32470 36865 42863 47425 49870 50254"
    ),
}


class ControlTokens(Tokenizer):
    """Stand for a tokenizer of which only the control tokens are known: names and ids, no text.

    Parameters
    ----------
    special : text to id.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self.special = dict(special)
        self.languages = {code: special[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in special}
        self.tasks = {task: special[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in special}
        self.first_timestamp = special.get("<|0.00|>")


def published_special(vocabulary: int) -> dict[str, int]:
    """Return the control tokens of a published vocabulary by its size, or none if it is not one of them.

    Examples
    --------
    >>> special = published_special(51_865)
    >>> special["<|startoftranscript|>"], special["<|en|>"], special["<|notimestamps|>"], special["<|30.00|>"]
    (50258, 50259, 50363, 51864)
    >>> published_special(13)
    {}
    """
    if vocabulary not in _PLAIN:
        return {}
    count = 100 if vocabulary == 51_866 else 99
    names = [_END, _START, *(f"<|{code}|>" for code in LANGUAGES[:count]), *_AFTER_LANGUAGES]
    names += [f"<|{0.02 * step:.2f}|>" for step in range(_TIMESTAMPS)]
    return {name: _PLAIN[vocabulary] + place for place, name in enumerate(names)}


def generation_by_names(special: Mapping[str, int], dims: Dims) -> dict[str, Any]:
    """Describe decoding, in the form of a `generation_config.json`, from the names of control tokens alone.

    Parameters
    ----------
    special : text to id of the control tokens, of a tokenizer or published.
    dims : sizes; those of a published vocabulary bring its lists of suppressed tokens.

    Examples
    --------
    >>> from spectral_theorem.whisper.family import catalogue
    >>> dims = catalogue["openai/whisper-tiny.en"].dims
    >>> described = generation_by_names(published_special(dims.vocabulary), dims)
    >>> described["decoder_start_token_id"], described["begin_suppress_tokens"], len(described["suppress_tokens"])
    (50257, [220, 50256], 90)
    """
    suppress = {special[name] for name in _NEVER if name in special}
    first = {special[_END]} if _END in special else set()
    if dims.vocabulary in _PLAIN:
        suppress |= set(map(int, _UNSPOKEN[dims.vocabulary != _ENGLISH_ONLY].split()))
        first |= {_BLANK}
    return {
        "decoder_start_token_id": special.get(_START),
        "eos_token_id": special.get(_END),
        "is_multilingual": dims.vocabulary in _PLAIN and dims.vocabulary != _ENGLISH_ONLY,
        "suppress_tokens": sorted(suppress),
        "begin_suppress_tokens": sorted(first),
        "max_length": dims.positions,
    }
