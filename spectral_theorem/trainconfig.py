"""Hold and read everything a training run depends on, apart from the recordings."""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .audio import HOP, SAMPLE_RATE
from .configs import typed
from .corpus import Augmentation
from .scoring import DIGITS
from .types import refuse
from .whisper import Dims

FRAME = 2 * HOP  # samples per encoder position


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Hold everything a training run depends on, apart from the recordings.

    Parameters
    ----------
    seed : of weights, batches and masks.
    width, encoder_layers, decoder_layers, heads, hidden, mels : sizes, as in `Dims`.
    window_seconds : length of the model's window; Whisper's is 30.
    shortest, longest : words per string.
    ramp : steps over which the longest string grows from `shortest` to `longest`: where single words
        come first, attention finds them sooner.
    steps, batch : updates, and strings per update.
    learning_rate, warmup, weight_decay, clip_norm : AdamW with a linear warm-up over `warmup` steps and
        a cosine to zero; kernels alone decay; gradients longer than clip_norm are shortened to it.
    masked_mels, masked_frames : most mel bands and most mel frames that one mask hides; 0 for none.
    dtype : float32, or bfloat16 for the computation with weights kept in float32.
    save_every : steps between two states from which the run can go on.
    held_out : patterns of names of recordings that are not trained on.
    unseen_speaker : name of a speaker who is not trained on, or empty.
    evaluated : strings per word error rate.
    augmentation : how strings are varied.

    Examples
    --------
    >>> TrainConfig(steps=10, warmup=2, ramp=0).dims.frames
    150
    """

    seed: int = 0
    width: int = 96
    encoder_layers: int = 3
    decoder_layers: int = 4
    heads: int = 4
    hidden: int = 384
    mels: int = 80
    window_seconds: float = 3.0
    shortest: int = 1
    longest: int = 4
    ramp: int = 800
    steps: int = 4000
    batch: int = 24
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    masked_mels: int = 12
    masked_frames: int = 20
    dtype: str = "float32"
    save_every: int = 100
    held_out: tuple[str, ...] = ("*_[0-4].wav",)
    unseen_speaker: str = ""
    evaluated: int = 300
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        whole = ("encoder_layers", "decoder_layers", "shortest", "steps", "batch", "save_every", "evaluated")
        for name, holds, expected in (
            *((name, getattr(self, name) >= 1, "at least 1") for name in whole),
            ("seed", 0 <= self.seed < 2**32, "0 to 4294967295"),
            ("longest", self.longest >= self.shortest, f"at least shortest={self.shortest}"),
            ("ramp", 0 <= self.ramp <= self.steps, f"0 to steps={self.steps}"),
            ("window_seconds", 0.1 <= self.window_seconds <= 30, "seconds from 0.1 to 30"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a number > 0"),
            ("warmup", 0 <= self.warmup <= self.steps, f"0 to steps={self.steps}"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a number >= 0"),
            ("clip_norm", 0 < self.clip_norm < math.inf, "a number > 0"),
            ("masked_mels", 0 <= self.masked_mels <= self.mels, f"0 to mels={self.mels}"),
            ("masked_frames", 0 <= self.masked_frames <= 2 * self.dims.frames, f"0 to {2 * self.dims.frames}"),
            ("dtype", self.dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
        ):
            if not holds:
                default = type(self).__dataclass_fields__[name].default
                refuse(f"{name}={getattr(self, name)!r}", expected, f"{name} = {json.dumps(default)}")

    def longest_at(self, step: int) -> int:
        """Return the words of the longest string that a step may draw."""
        if step >= self.ramp:
            return self.longest
        return self.shortest + (self.longest - self.shortest) * step // self.ramp

    @property
    def dims(self) -> Dims:
        """Sizes of the model: a vocabulary of the ten digits, and positions for the longest string."""
        return Dims(
            width=self.width,
            mels=self.mels,
            frames=round(self.window_seconds * SAMPLE_RATE) // FRAME,
            vocabulary=len(DIGITS) + 3,
            positions=self.longest + 4,
            encoder_layers=self.encoder_layers,
            encoder_heads=self.heads,
            encoder_hidden=self.hidden,
            decoder_layers=self.decoder_layers,
            decoder_heads=self.heads,
            decoder_hidden=self.hidden,
        )


def read_config(path: Path) -> TrainConfig:
    r"""Read a training config in TOML: the fields of `TrainConfig`, a table `augmentation` among them.

    Raises
    ------
    InputError
        If the file cannot be read, holds an unknown key, or a value of another type or out of range.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
    ...     _ = file.write("steps = 7\nwarmup = 1\nramp = 0\n[augmentation]\nspeed = 1.1\n")
    ...     file.flush()
    ...     config = read_config(Path(file.name))
    >>> config.steps, config.augmentation.speed
    (7, 1.1)
    """
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        refuse(
            f"{path} ({' '.join(str(error).split())})", "a training config in TOML", "experiments/training/small.toml"
        )
    return as_config(described, path)


def as_config(described: Mapping[str, Any], source: Path) -> TrainConfig:
    """Make a config of plain values, as TOML or the record of a run holds them.

    Parameters
    ----------
    described : the fields of `TrainConfig`, a mapping `augmentation` among them.
    source : where they are from, for messages.

    Raises
    ------
    InputError
        On an unknown key, or a value of another type or out of range.

    Examples
    --------
    >>> as_config({"seed": 3, "augmentation": {"speed": 1}}, Path("run4")).augmentation.speed
    1.0
    """
    own = {name: value for name, value in described.items() if name != "augmentation"}
    extra = described.get("augmentation", {})
    if not isinstance(extra, Mapping):
        refuse(f"augmentation={extra!r} in {source}", "a table [augmentation]", "[augmentation]")
    augmentation = Augmentation(**typed(extra, Augmentation, source))
    names = (field.name for field in dataclasses.fields(TrainConfig) if field.name != "augmentation")
    return TrainConfig(**typed(own, TrainConfig, source, known=names), augmentation=augmentation)


def checkpoint_steps(steps: int) -> tuple[int, ...]:
    """Return the steps after which a checkpoint is kept: 0, powers of two, and the last.

    Examples
    --------
    >>> checkpoint_steps(20)
    (0, 1, 2, 4, 8, 16, 20)
    """
    return (0, *(2**i for i in range(steps.bit_length()) if 2**i < steps), steps)
