r"""Train a small Whisper on strings of single words: the same architecture, every checkpoint kept.

Batches, masks and the order of everything are functions of (seed, step), and the state of the optimiser is
kept beside the checkpoints, so a run that was stopped and goes on is the run that was not.
"""

import dataclasses
import fnmatch
import hashlib
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from .audio import log_mel
from .clips import Clip
from .console import Outcome
from .corpus import Words, draw_strings, read_words
from .datasets import find
from .objective import optimiser, update
from .provenance import environment
from .scoring import DIGITS, corpus_errors
from .storage import json_ready, write_atomically
from .trainconfig import FRAME, TrainConfig, checkpoint_steps, read_config
from .types import refuse
from .whisper import WhisperModel, greedy, load, save, transcriptions
from .whisper.initial import initial_model, word_generation, write_word_tokenizer

STATE = "state.npz"
RECORD = "training.json"
CHECKPOINTS = "checkpoints"
_EVALUATION_SEED = 1 << 30
_HEADER = 4096  # more than the header of an array in an .npz


def run(*, config: Path, corpus: Sequence[Path], out: Path) -> Outcome:
    """Train as a config file says, on the recordings of one or more folders: the verb `train`.

    Parameters
    ----------
    config : TOML file, see `read_config`.
    corpus : folders of recordings with transcripts, as `datasets.find` takes them.
    out : folder of the run.

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        As `train` does.
    """
    settings = read_config(config)
    clips = [clip for folder in corpus for clip in find(folder)]
    with Console(stderr=True).status("reading recordings") as status:
        record = train(settings, clips, out, report=status.update)
    rates = [
        f"word error rate, {name.replace('_', ' ')}: {100 * r['rate']:.1f} % +- {100 * r['standard_error']:.1f} "
        f"(standard error, {r['strings']} strings)"
        for name, r in record["word_error_rates"].items()
    ]
    lines = [
        f"{record['parameters']:,} parameters, {record['steps']} steps, loss {record['final_loss']:.4f} nats per token",
        *rates,
        f"written to {out}: {record['checkpoint']}, sha256 of the weights {record['sha256'][:16]}",
    ]
    return Outcome("\n".join(lines), record, 0)


@dataclasses.dataclass(frozen=True)
class Split:
    """Hold which recordings serve for what."""

    training: Words
    held_out: Words
    unseen: Words


def split(words: Words, config: TrainConfig) -> Split:
    """Divide recordings into those to train on, held-out takes of the same speakers, and an unseen speaker.

    Raises
    ------
    InputError
        If nothing is left to train on, or the unseen speaker is not there.
    """
    apart = [any(fnmatch.fnmatchcase(name, pattern) for pattern in config.held_out) for name in words.name]
    unseen = [speaker == config.unseen_speaker for speaker in words.speaker]
    if config.unseen_speaker and not any(unseen):
        refuse(
            f"unseen_speaker={config.unseen_speaker!r}",
            f"one of {', '.join(sorted(set(words.speaker)))}",
            'unseen_speaker = ""',
        )
    parts = [
        words.where(keep)
        for keep in (
            [not a and not u for a, u in zip(apart, unseen, strict=True)],
            [a and not u for a, u in zip(apart, unseen, strict=True)],
            unseen,
        )
    ]
    if not len(parts[0]):
        refuse(f"held_out={list(config.held_out)}, which matches every recording", "some to train on", "held_out = []")
    return Split(*parts)


def train(
    config: TrainConfig,
    clips: Iterable[Clip],
    out: Path,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    r"""Train a model, or go on with a run that was stopped.

    .. math:: \min_\theta\ -\frac1N \sum_i \log p_\theta(x_i \mid x_{<i}, \text{audio})

    Parameters
    ----------
    config : what the run depends on.
    clips : recordings of single words.
    out : folder of the run; it gets `training.json`, `state.npz` and `checkpoints/step-N`, each a Hugging
        Face folder. Where it holds a run of the same config and recordings, that run goes on from its last state.
    report : called with a line of progress now and then.

    Returns
    -------
    dict
        What `training.json` holds: config, losses, word error rates, sha256 of the last checkpoint's weights.

    Raises
    ------
    InputError
        On an unusable corpus, a folder that holds something else, or a loss that is not finite; checkpoints
        and the last state stay.

    Notes
    -----
    On one device and one version of JAX the run is reproducible bit by bit.
    """
    data = split(read_words(clips), config)
    run = _Run(config, out, data.training.digest())
    state = run.last_state()
    words, window = data.training, config.dims.frames * FRAME
    tell = _Ticker(report, config.steps)
    report(f"compiling; {run.record['parameters']:,} parameters, {len(words)} recordings")
    try:
        for step in range(state.step, config.steps + 1):
            if step in checkpoint_steps(config.steps):
                run.keep_checkpoint(state)
            if step == config.steps:
                break
            drawn = draw_strings(
                words,
                seed=config.seed,
                step=step,
                batch=config.batch,
                shortest=config.shortest,
                longest=config.longest_at(step),
                window=window,
                augmentation=config.augmentation,
            )
            tokens = run.sequences(drawn.words)
            parameters, moments, loss = update(
                state.parameters, state.moments, drawn.samples, tokens, jnp.asarray(step), config
            )
            if not math.isfinite(float(loss)):
                refuse(
                    f"a loss of {float(loss)} at step {step}",
                    "a finite loss",
                    f"a lower learning_rate; the last good checkpoint is in {out / CHECKPOINTS}",
                )
            state = _State(parameters, moments, step + 1, (*state.losses, float(loss)))
            tell(state)
            if state.step % config.save_every == 0:
                run.keep_state(state)
    finally:  # Ctrl-C and SIGTERM come this way too
        run.keep_state(state)
    report("counting word errors")
    return run.finish(state, data)


@dataclasses.dataclass(frozen=True)
class _State:
    """Hold where a run has come to after `step` updates."""

    parameters: Any
    moments: Any
    step: int
    losses: tuple[float, ...]


class _Ticker:
    """Report about once in two seconds."""

    def __init__(self, report: Callable[[str], None], steps: int) -> None:
        self.report, self.steps, self.last, self.begun = report, steps, 0.0, None

    def __call__(self, state: _State) -> None:
        now = time.monotonic()
        if self.begun is None:
            self.begun = (now, state.step)  # after the first step, which compiles
        if now - self.last < 2 and state.step < self.steps:
            return
        self.last = now
        seconds, done = now - self.begun[0], state.step - self.begun[1]
        left = f", {seconds / done * (self.steps - state.step):.0f} s left" if done else ""
        recent = state.losses[-50:]
        self.report(f"step {state.step}/{self.steps}, loss {sum(recent) / len(recent):.3f}{left}")


class _Run:
    """Read and write the folder of one run."""

    def __init__(self, config: TrainConfig, out: Path, corpus: str) -> None:
        self.config, self.out, self.dims = config, out, config.dims
        record = out / RECORD
        plain = json_ready(config)[0]
        if out.exists() and not out.is_dir():
            refuse(f"{out}, a file", "a folder for the run", "another --out")
        if record.exists():
            try:
                before = json.loads(record.read_text(encoding="utf-8"))
                config_before, corpus_before = before["config"], before["corpus"]
            except (ValueError, KeyError, TypeError):
                refuse(f"{record}, which is damaged", "the record of a training run", "another --out")
            if config_before != plain:
                refuse(f"{out}, a run of another config", "the config of that run, or a new folder", "another --out")
            if corpus_before != corpus:
                refuse(f"{out}, a run on other recordings", "the corpus of that run, or a new folder", "another --out")
        elif out.exists() and any(out.iterdir()):
            refuse(f"{out}, which holds other files", "an empty folder, or a run of this config", "another --out")
        (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self.tokenizer = write_word_tokenizer(out / "tokenizer.json", DIGITS)
        self.generation = word_generation(len(DIGITS), self.dims.positions)
        key = jax.random.key(config.seed)
        self.model = initial_model(
            key, self.dims, generation=self.generation, tokenizer=self.tokenizer, label="trained on words"
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(self.model.parameters))
        self.record = {"config": plain, "corpus": corpus, "parameters": count, "environment": environment()}
        if not record.exists():
            self._write({"status": "running"})

    def _write(self, more: Mapping[str, Any]) -> dict[str, Any]:
        whole = json_ready({**self.record, **more})[0]
        text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
        write_atomically(self.out / RECORD, lambda file: file.write(text.encode()))
        return whole

    def last_state(self) -> _State:
        """Return the state to go on from: the last kept one, or the beginning."""
        parameters = self.model.parameters
        moments = optimiser(self.config).init(parameters)
        start = _State(parameters, moments, 0, ())
        return _read_state(self.out / STATE, start) if (self.out / STATE).exists() else start

    def keep_state(self, state: _State) -> None:
        """Write what the run needs to go on."""
        leaves = jax.tree.leaves((state.parameters, state.moments))
        arrays = {f"leaf_{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        arrays |= {"step": np.asarray(state.step), "losses": np.asarray(state.losses)}
        write_atomically(
            self.out / STATE,
            lambda file: np.savez(file, allow_pickle=False, **arrays),
        )

    def keep_checkpoint(self, state: _State) -> None:
        """Write the weights as a model of their own, once."""
        folder = self.folder(state.step)
        if not folder.exists():
            weights = nnx.state(self.model, nnx.Param)
            nnx.replace_by_pure_dict(weights, state.parameters)
            nnx.update(self.model, weights)
            save(self.model, folder)

    def folder(self, step: int) -> Path:
        """Name the checkpoint after a number of steps."""
        return self.out / CHECKPOINTS / f"step-{step:07d}"

    def sequences(self, words: Iterable[tuple[int, ...]]) -> np.ndarray:
        """Return token sequences (B, longest + 3): prompt, words, end-of-text to the end."""
        words = list(words)
        out = np.full((len(words), self.config.longest + 3), self.generation.end, np.int32)
        out[:, :2] = self.generation.prompt
        for row, said in zip(out, words, strict=True):
            row[2 : 2 + len(said)] = said
        return out

    def finish(self, state: _State, data: Split) -> dict[str, Any]:
        """Measure word error rates of the last checkpoint as `load` reads it, and write the record."""
        folder = self.folder(self.config.steps)
        model = load(folder)
        sets = {"held_out_takes": data.held_out, "unseen_speaker": data.unseen}
        rates = {name: word_error_rate(model, words, self.config) for name, words in sets.items() if len(words)}
        weights = (folder / "model.safetensors").read_bytes()
        every = max(1, self.config.steps // 200)
        return self._write(
            {
                "status": "done",
                "steps": state.step,
                "final_loss": float(np.mean(state.losses[-100:])),
                "losses": {"every": every, "values": [float(np.mean(part)) for part in _parts(state.losses, every)]},
                "word_error_rates": rates,
                "recordings": {"training": len(data.training), **{name: len(words) for name, words in sets.items()}},
                "checkpoint": str(folder.relative_to(self.out)),
                "sha256": hashlib.sha256(weights).hexdigest(),
            }
        )


def _parts(values: tuple[float, ...], size: int) -> list[tuple[float, ...]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def _read_state(path: Path, like: _State) -> _State:
    """Read a state written by `keep_state` into the form of another; no pickle is opened."""
    leaves, structure = jax.tree.flatten((like.parameters, like.moments))
    wanted = sum(leaf.nbytes + _HEADER for leaf in leaves)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist() if member.filename.startswith("leaf_"))
            if size > wanted:
                raise ValueError(f"arrays of {size} bytes, where the model has {wanted}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                found = [arrays[f"leaf_{i:05d}"] for i in range(len(leaves))]
                step, losses = int(arrays["step"]), tuple(map(float, arrays["losses"]))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        refuse(f"{path} ({' '.join(str(error).split())})", "the state of a training run", f"rm {path}, to begin anew")
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(found, leaves, strict=True)):
        refuse(f"{path} of a model of other sizes", "the state of this run", f"rm {path}, to begin anew")
    parameters, moments = jax.tree.unflatten(structure, map(jnp.asarray, found))
    return _State(parameters, moments, step, losses)


def word_error_rate(model: WhisperModel, words: Words, config: TrainConfig) -> dict[str, Any]:
    """Return the word error rate on strings of given recordings, without noise, with its standard error.

    Parameters
    ----------
    model : whose window and vocabulary are the config's.
    words : recordings; strings are drawn from them as in training, from a seed of their own.
    config : number and lengths of the strings.

    Returns
    -------
    dict
        `rate`, `standard_error` (over strings), `errors`, `words`, `strings`.
    """
    references, hypotheses = [], []
    for number, start in enumerate(range(0, config.evaluated, config.batch)):
        drawn = draw_strings(
            words,
            seed=_EVALUATION_SEED + config.seed,
            step=number,
            batch=min(config.batch, config.evaluated - start),
            shortest=config.shortest,
            longest=config.longest,
            window=config.dims.frames * FRAME,
        )
        mel = jax.vmap(lambda x: log_mel(x, config.mels, length=x.shape[0]))(jnp.asarray(drawn.samples))
        heard = transcriptions(model, greedy(model, model.encode(mel)), [config.window_seconds] * len(drawn.words))
        hypotheses += [transcription.text for transcription in heard]
        references += [" ".join(words.vocabulary[i] for i in said) for said in drawn.words]
    counted = [corpus_errors([pair], how="digits") for pair in zip(references, hypotheses, strict=True)]
    errors, sizes = np.array([c.errors for c in counted]), np.array([c.reference_words for c in counted])
    rate = errors.sum() / sizes.sum()
    spread = np.sqrt(np.sum((errors - rate * sizes) ** 2)) / sizes.sum()
    return {
        "rate": float(rate),
        "standard_error": float(spread),
        "errors": int(errors.sum()),
        "words": int(sizes.sum()),
        "strings": len(counted),
    }
