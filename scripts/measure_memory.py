"""Measure what loading and running a large model costs in memory, and keep it as JSON with its environment.

Usage: python scripts/measure_memory.py docs/benchmarks/memory.json [NAME] [DTYPE...]

A checkpoint of random weights in the shape of a published model (default openai/whisper-large-v3-turbo), float16 in
one file, is written to a temporary folder. Processes of their own, one per dtype, then load it, encode one 30-second
window and decode a few tokens. Peaks are resident memory of the whole process (ru_maxrss), code and compiler
included; "baseline" is what it was after the imports.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEFAULT = "openai/whisper-large-v3-turbo"
STEPS = 5
WRITE = """
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from spectral_theorem.whisper import catalogue
from spectral_theorem.whisper.checkpoint import parameter_shapes
from spectral_theorem.whisper.layouts import HUGGING_FACE
from spectral_theorem.whisper.published import generation_by_names, published_special

folder, dims = Path(sys.argv[1]), catalogue[sys.argv[2]].dims
draw, tensors = np.random.default_rng(0), {}
for path, leaf in parameter_shapes(dims).items():
    shape = HUGGING_FACE.shape(path, leaf.shape)
    array = draw.standard_normal(shape, np.float32)
    array *= 0.02 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
    tensors[HUGGING_FACE.name(path)] = (array + (path[-1] == "scale")).astype(np.float16)
save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
(folder / "config.json").write_text(json.dumps(dims.to_config()))
described = generation_by_names(published_special(dims.vocabulary), dims)
(folder / "generation_config.json").write_text(json.dumps(described))
"""
MEASURE = """
import dataclasses, json, resource, sys, time
import jax, jax.numpy as jnp, numpy as np
from spectral_theorem import whisper
from spectral_theorem.provenance import environment

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
jnp.zeros(1).block_until_ready()
figures, start = {"baseline_gb": peak() / 1e9}, time.perf_counter()
model = whisper.load(sys.argv[1], sys.argv[2])
jax.block_until_ready(model.parameters)
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.parameters))
loading = peak() / 1e9 - figures["baseline_gb"]
figures |= {"load_s": time.perf_counter() - start, "weights_gb": weights / 1e9}
figures |= {"loading_gb": loading, "loading_over_weights": loading * 1e9 / weights}
steps = int(sys.argv[3])
model.generation = dataclasses.replace(model.generation, longest=len(model.generation.prompt) + steps)
start = time.perf_counter()
samples = np.random.default_rng(1).standard_normal(480_000).astype(np.float32) * 0.1
context, _ = whisper.encode_audio(model, samples)
decoded = whisper.greedy(model, context[None])
tokens = int(decoded.length[0]) - len(model.generation.prompt)
assert 0 < tokens <= steps and np.isfinite(np.asarray(decoded.logprobs)).all()
figures |= {"run_s": time.perf_counter() - start, "tokens": tokens, "peak_gb": peak() / 1e9}
print(json.dumps({"figures": figures, "environment": environment()}))
"""


def python(code: str, *arguments: str) -> str:
    """Run code in a process of its own, whose memory is nobody else's, and return what it prints."""
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if process.returncode:
        sys.exit(process.stderr)
    return process.stdout


def main(target: Path, name: str = DEFAULT, *dtypes: str) -> None:
    """Write the checkpoint, measure it in every dtype, and write the file."""
    load, figures, environment = os.getloadavg(), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        python(WRITE, folder, name)
        size = (Path(folder) / "model.safetensors").stat().st_size
        for dtype in dtypes or ("float32", "bfloat16", "float16"):
            found = json.loads(python(MEASURE, folder, dtype, str(STEPS)))
            figures[dtype], environment = found["figures"], found["environment"]
    environment |= {"cpus": os.cpu_count(), "load_before": load, "date": time.strftime("%Y-%m-%d")}
    environment["PJRT_NPROC"] = os.environ.get("PJRT_NPROC", "set by the package")
    record = {"environment": environment, "shape": name, "file_gb": size / 1e9, "figures": figures}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    print(target.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
