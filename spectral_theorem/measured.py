"""Run one `measure`: a model and recordings → records, one table, one page.

With an output folder every finished clip is kept at once, and the same command goes on where it was stopped.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .audio import concatenate, load_audio
from .chainfile import save_chain
from .console import Outcome, aligned, exit_code, sweep_text, verdicts, verification_text, working
from .measure import SCOPE, chance_alignment, measure_token
from .provenance import environment
from .report import write_report
from .runs import RunFolder, verification_rows
from .sequencewise import SEED, measure_sequence, sequence_text
from .stepwise import GROUP, measure_steps
from .storage import json_ready, write_atomically
from .tokenwise import Granularity
from .types import InputError, refuse
from .whisper import WhisperModel, load, model_digest
from .whisper.contexts import Context, read_basis

KEPT_BYTES = 64e6  # a larger chain is not kept beside the record; measuring again gives it back
PROJECTED = "The context is projected ({}): gamma and the norms of injections belong to these directions."
FINISHED = "clips"  # folder of what a stopped run has finished


def run(
    *,
    model: str,
    audio: Sequence[Path],
    concat: bool = False,
    step: int = 0,
    steps: str | None = None,
    scope: Literal["token", "sequence"] = "token",
    granularity: Granularity = "block",
    tolerance: float | None = None,
    context: Context = "encoder",
    directions: int | None = None,
    basis: Path | None = None,
    group: int = GROUP,
    dtype: str = "float64",
    out: Path | None = None,
    require: str | None = None,
) -> Outcome:
    """Measure recordings with one model, and write a run folder if asked.

    Parameters
    ----------
    model : folder of a checkpoint.
    audio : recordings, each one clip; with `concat`, joined into one clip with 0.1 s between them.
    step : one token, measured by the dense route.
    steps : several tokens, "all" or a list, measured by the engine; takes the place of `step`.
    scope : "token", one chain for each of them with the past frozen; or "sequence", one chain of all positions up to
        the last of them, with nothing frozen.
    granularity, tolerance, context, group : as in `measure_steps`.
    directions, basis : its `basis`, as a number of random directions or a file of given ones.
    dtype : "float64" or "float32", of model and chain.
    out : run folder to write. One that holds a run of the same command, stopped, is gone on with.
    require : "conditions" makes the exit code 1 unless all conditions hold.

    Returns
    -------
    Outcome
        Exit code 3 when some clips could not be used; they are listed, and the others are kept.

    Raises
    ------
    InputError
        Unusable model or folder, or no clip that can be used.
    """
    if directions is not None and basis is not None:
        refuse("both --directions and --basis", "one of them", f"--basis {basis}")
    chosen = directions if basis is None else read_basis(basis)
    config = {"model": model, "audio": list(audio), "concat": concat, "granularity": granularity, "dtype": dtype}
    if scope == "sequence":
        if steps is None:
            refuse("--scope sequence without --steps", "--steps with it", "--steps all")
        if (context, directions, basis) != ("encoder", None, None):
            refuse(
                "--context, --directions or --basis with --scope sequence",
                "the encoder output, whole",
                "--scope token with them",
            )
        config |= {"steps": steps, "scope": scope, "tolerance": tolerance}
    elif steps is None:
        config |= {"step": step}
        if (context, directions, basis, tolerance) != ("encoder", None, None, None):
            refuse(
                "--context, --directions, --basis or --tolerance without --steps", "--steps with them", "--steps all"
            )
    else:
        config |= {"steps": steps, "tolerance": tolerance, "group": group, "context": context, "basis": directions}
        config |= {"basis_file": None if basis is None else hashlib.blake2b(basis.read_bytes()).hexdigest()}
    whole = context == "encoder" and chosen is None
    entering = "encoder_output" if whole else f"{context}, {'random directions' if basis is None else basis.name}"
    with working(f"loading {model}"):
        network = load(model, dtype=jnp.dtype(dtype))
    digest = model_digest(network)
    folder = None
    if out is not None:
        made_by = {name: environment()[name] for name in ("versions", "commit")}
        folder = RunFolder(out, run_id=_digest(json_ready(config)[0], digest, made_by)[:12])
    clips = _clips(audio, concat)
    chains: dict[str, Any] = {}
    failed: dict[str, str] = {}
    texts = []
    for count, (name, source) in enumerate(clips.items(), 1):
        try:
            with working(f"measuring {name} ({count} of {len(clips)})"):
                samples = _samples(source)
                key = hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).hexdigest()
                some = _finished(folder, count, key)
                if some is not None:
                    pass  # found by the run that was stopped
                elif scope == "sequence":
                    some = _whole(network, samples, name, steps or "all", granularity, tolerance)
                elif steps is None:
                    some = _one(network, samples, name, step, granularity, folder)
                else:
                    found = measure_steps(
                        network,
                        samples,
                        steps=steps,
                        granularity=granularity,
                        tolerance=tolerance,
                        context=context,
                        basis=chosen,
                        group=group,
                    )
                    note = SCOPE if whole else f"{SCOPE} {PROJECTED.format(entering)}"
                    about = {"clip": name, "note": note, "chance_kappa": chance_alignment(network.dims.width)}
                    said = (lambda token: None) if network.tokenizer is None else network.tokenizer.token
                    some = {
                        f"{name}, step {s}": chain | about | {"token_text": said(chain["token"])}
                        for s, chain in found.to_dicts().items()
                    }
                labels = {"clip": name, "scope": scope, "granularity": granularity, "context": entering, "dtype": dtype}
                _keep(folder, count, key, some, labels)
        except InputError as problem:
            failed[name] = str(problem)
            continue
        chains |= some
        if scope == "sequence":
            texts.append(sequence_text(name, some[name]))
        else:
            texts.append(_text(name, some[name]) if steps is None else sweep_text(name, list(some.values())))
    if not chains:
        name, problem = next(iter(failed.items()))
        raise InputError(problem if len(failed) == 1 else f"{problem} ({name}; none of {len(failed)} clips was usable)")
    record = {
        "verb": "measure",
        "config": config,
        "seeds": [SEED] if scope == "sequence" else [],
        "dtype": dtype,
        "model_digest": digest,
        "verdicts": {name: verdicts(chain) for name, chain in chains.items()},
        "chains": chains,
        "failed": failed,
    }
    if failed:
        texts.append("not measured:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    if folder is not None:
        folder.write_summary(record)
        write_report(folder.path)
        texts.append(f"written to {folder.path}: {', '.join(sorted(p.name for p in folder.path.iterdir()))}")
    code = exit_code(list(chains.values()), require=require)
    return Outcome("\n\n".join(texts), json_ready(record)[0], code or (3 if failed else 0))


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _finished(folder: RunFolder | None, count: int, key: str) -> dict[str, Any] | None:
    """Return what a stopped run of this command found for a clip, or None."""
    if folder is None or not folder.continues:
        return None
    try:
        kept = json.loads((folder.path / FINISHED / f"{count:04d}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    chains = kept.get("chains") if isinstance(kept, dict) and kept.get("samples") == key else None
    return chains if isinstance(chains, dict) and chains else None


def _keep(folder: RunFolder | None, count: int, key: str, chains: dict[str, Any], labels: dict[str, str]) -> None:
    """Write a finished clip: its rows, then the file that says that it is finished."""
    if folder is None:
        return
    folder.begin()
    about = {"component": "decoder", **labels}
    rows = [row for c in chains.values() for row in verification_rows(c, **about, step=c["step"])]
    folder.write_table(rows, part=f"{count:04d}")
    (folder.path / FINISHED).mkdir(exist_ok=True)
    text = json.dumps({"samples": key, "chains": json_ready(chains)[0]}, allow_nan=False)
    write_atomically(folder.path / FINISHED / f"{count:04d}.json", lambda file: file.write(text.encode()))


def _one(
    network: WhisperModel,
    samples: Any,
    name: str,
    step: int,
    granularity: Granularity,
    folder: RunFolder | None,
) -> dict[str, Any]:
    """Measure one token by the dense route, whose chain is small enough to be kept."""
    found = measure_token(network, samples, step=step, granularity=granularity)
    chain = found.to_dict()
    if folder is not None and sum(leaf.nbytes for leaf in jax.tree.leaves(found.chain)) <= KEPT_BYTES:
        folder.begin()
        file = folder.path / f"{name.replace('/', '_')}.npz"
        save_chain(file, found.chain, {"thresholds": chain["thresholds"]})
    return {name: chain}


def _whole(
    network: WhisperModel, samples: Any, name: str, steps: str, granularity: Granularity, tolerance: float | None
) -> dict[str, Any]:
    """Measure all positions of a clip together."""
    found = measure_sequence(network, samples, steps=steps, granularity=granularity, tolerance=tolerance).to_dict()
    return {name: found | {"clip": name, "chance_kappa": chance_alignment(found["state_size"])}}


def _clips(audio: Sequence[Path], concat: bool) -> dict[str, Sequence[Path]]:
    """Name the clips: one per file, or one for all."""
    if concat:
        return {"+".join(path.stem for path in audio): list(audio)}
    names = [path.stem for path in audio]
    if len(set(names)) < len(names):
        names = [str(path) for path in audio]
    if len(set(names)) < len(names):
        refuse("one recording twice", "different recordings", "each file once")
    return dict(zip(names, ([path] for path in audio), strict=True))


def _samples(paths: Sequence[Path]) -> Any:
    return concatenate([load_audio(path)[0] for path in paths], 0.1) if len(paths) > 1 else load_audio(paths[0])[0]


def _text(name: str, chain: dict[str, Any]) -> str:
    """Lay out one clip: transcript, layers, then the verification."""
    about = aligned(
        [
            ["transcript", repr(chain["transcript"])],
            ["token", f"step {chain['step']}, residual position {chain['position']}"],
            ["layers", ", ".join(f"{i} = {each}" for i, each in enumerate(chain["names"], 1))],
            [
                "context",
                f"all {chain['context_size']:,} entries, in an isometric basis of {chain['context_rank']} directions",
            ],
            ["checked", f"|v^T G| by structure against one VJP of the model: {chain['row_check']:.1e} relative"],
            ["chance", f"|kappa| of two random directions here: {chain['chance_kappa']:.4f} on average"],
        ]
    )
    return f"{about}\n{chain['note']}\n\n{verification_text(chain, title=name)}"
