"""Benchmark the engine beside PyTorch on transformers' Whisper, in one process, turn by turn.

    python scripts/bench_engine.py docs/benchmarks [--model FOLDER] [--audio CLIP] [--repeats 7]

The rows are those of `spectral-theorem bench`; needs the parity extra. The peers compute the Jacobian of
transformers' own decoder layer (eager attention, the encoder's frames as keys and values, earlier
positions in its cache) by one backward pass per row, which is what papers do, and by `torch.func`.
Their layer has our weights, and the row says by how much their Jacobian differs from ours.
`--append` keeps the rows that are not run again.
"""

import argparse
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer
from transformers.utils import logging

from spectral_theorem import bench, carried, whisper, workload
from spectral_theorem.audio import log_mel
from spectral_theorem.timing import Side
from spectral_theorem.workload import Point, Workload

WIDEST_FUNC = 768  # torch.func takes a minute for what is wider, and says nothing new


def tensor(array: Any) -> torch.Tensor:
    """Copy an array of ours."""
    return torch.from_numpy(np.array(array))


def layer_like(work: Workload) -> WhisperDecoderLayer:
    """Make transformers' decoder layer with the weights of our first block."""
    dims = work.model.dims
    config = WhisperConfig(
        d_model=dims.width, decoder_attention_heads=dims.decoder_heads, decoder_ffn_dim=dims.decoder_hidden,
        attn_implementation="eager",
    )  # fmt: skip
    layer = WhisperDecoderLayer(config, layer_idx=0).eval().requires_grad_(False)

    def flat(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
        found = {}
        for name, value in tree.items():
            if isinstance(value, dict):
                found |= flat(value, f"{prefix}{name}.")
            else:
                kernel = name == "kernel"
                found[prefix + ("bias" if name == "bias" else "weight")] = tensor(value).T if kernel else tensor(value)
        return found

    layer.load_state_dict(flat(work.model.parameters["decoder"]["layers"][0]), strict=True)
    return layer


def function_of(work: Workload, point: Point) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """Return one token's map h -> h' through transformers' layer, and h."""
    layer, context = layer_like(work), tensor(work.context)[None]
    earlier = int(point.cache.length)
    keys, values = (
        tensor(a)[:earlier].transpose(0, 1)[None].contiguous() for a in (point.cache.keys, point.cache.values)
    )

    def apply(h: torch.Tensor) -> torch.Tensor:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        cache.self_attention_cache.update(keys, values, 0)
        out = layer(h[None, None], encoder_hidden_states=context, past_key_values=cache, use_cache=True)
        return (out[0] if isinstance(out, tuple) else out)[0, 0]

    return apply, tensor(point.state)


def row_loop(apply: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    """Return the Jacobian by one backward pass per row."""
    h = h.clone().requires_grad_(True)
    out = apply(h)
    return torch.stack([torch.autograd.grad(out[i], h, retain_graph=True)[0] for i in range(out.shape[0])])


def forward_mode(apply: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    """Return the Jacobian by `torch.func.jacfwd`."""
    with torch.no_grad():
        return torch.func.jacfwd(apply)(h)


def reverse_mode(apply: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor) -> torch.Tensor:
    """Return the Jacobian by `torch.func.jacrev`."""
    return torch.func.jacrev(apply)(h)


def agreement(work: Workload) -> dict[str, float]:
    """Compare the peers' Jacobians with ours at the first token, relative to the largest entry."""
    point = workload.points(work)[0]
    ours = np.asarray(workload.by_jacfwd(point.parameters, point.crossed, point.cache, point.state))
    apply, h = function_of(work, point)
    ways = {"row loop": row_loop}
    if work.shape.width <= WIDEST_FUNC:
        ways |= {"torch jacfwd": forward_mode, "torch jacrev": reverse_mode}
    return {
        f"{name}: largest difference": float(np.abs(way(apply, h).numpy() - ours).max() / np.abs(ours).max())
        for name, way in ways.items()
    }


def dense_peers(work: Workload) -> dict[str, Side]:
    """Return PyTorch's ways to one dense W."""
    apply, h = function_of(work, workload.points(work)[0])
    columns = work.shape.jacobian_flops // (2 * work.shape.width**2)
    a, b = torch.randn(work.shape.width, work.shape.width), torch.randn(work.shape.width, columns)
    sides = {
        "row loop": Side(lambda: row_loop(apply, h), "torch, one autograd.grad per row"),
        "torch gemm": Side(lambda: a @ b, "the yardstick by PyTorch"),
    }
    if work.shape.width > WIDEST_FUNC:
        return sides
    return sides | {
        "torch jacfwd": Side(lambda: forward_mode(apply, h), "torch.func.jacfwd"),
        "torch jacrev": Side(lambda: reverse_mode(apply, h), "torch.func.jacrev"),
    }


def triplet_peers(work: Workload) -> dict[str, Side]:
    """Return PyTorch's way to the triplets of one W."""
    apply, h = function_of(work, workload.points(work)[0])
    w = row_loop(apply, h)
    return {
        "row loop + svd": Side(lambda: torch.linalg.svd(row_loop(apply, h)), "torch, one autograd.grad per row, SVD"),
        "torch svd": Side(lambda: torch.linalg.svd(w), "torch.linalg.svd, given W"),
    }


def transcriber(clip: bench.ClipWork, attention: str) -> Callable[[], torch.Tensor]:
    """Return transformers' transcription of a clip, from samples to tokens, as a function without arguments."""
    dims, generation = clip.model.dims, clip.model.generation
    model = WhisperForConditionalGeneration.from_pretrained(
        clip.folder, dtype=torch.float32, attn_implementation=attention
    ).eval()
    settings = model.generation_config
    settings.suppress_tokens = sorted(generation.suppress)
    settings.begin_suppress_tokens = sorted(generation.suppress_first) or None
    settings.forced_decoder_ids, settings.max_length = None, generation.longest

    def transcribe() -> torch.Tensor:
        features = np.array(log_mel(clip.samples, dims.mels, length=dims.window_samples))
        with torch.no_grad():
            return model.generate(
                encoder_outputs=model.model.encoder(torch.from_numpy(features)[None]),
                decoder_input_ids=torch.tensor([list(generation.prompt)]),
                do_sample=False,
                num_beams=1,
            )[0]

    return transcribe


def clip_peers(clip: bench.ClipWork) -> dict[str, Side]:
    """Return transformers' transcriptions of the same clip, on our log-mel."""
    return {
        name: Side(transcriber(clip, attention), f"transformers, {attention} attention, from samples to text")
        for name, attention in (("torch", "sdpa"), ("torch eager", "eager"))
    }


def clip_agreement(clip: bench.ClipWork) -> dict[str, str]:
    """Say whether both sides write the same tokens."""
    theirs = [token for token in transcriber(clip, "sdpa")().tolist() if token < clip.model.generation.end]
    ours = list(whisper.transcribe(clip.model, clip.samples).tokens)
    return {"tokens as transformers'": "the same" if theirs[-len(ours) :] == ours else f"{theirs} beside our {ours}"}


def main() -> None:
    """Run the benchmark and write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="folder of engine.json")
    parser.add_argument("--model", default=str(carried.MODEL), help="folder of the model of the whole clip")
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--widths")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--torch-threads", type=int, default=os.cpu_count())
    options = vars(parser.parse_args())
    logging.set_verbosity_error()
    torch.set_num_threads(options.pop("torch_threads"))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    peers = bench.Peers(
        sides={"dense": dense_peers, "triplets": triplet_peers, "clip": clip_peers},
        numbers={"dense": agreement, "clip": clip_agreement},
        versions=versions | {"torch threads": str(torch.get_num_threads())},
    )
    print(bench.run(peers=peers, **options).text)


if __name__ == "__main__":
    main()
