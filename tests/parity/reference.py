"""Run the reference implementation, transformers' Whisper in torch, on the shared cases."""

from pathlib import Path

import numpy as np
from parity_cases import Case, waveform


def run_case(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """Load a written case and return encoder states, logits and greedy tokens, in float64."""
    import torch
    from transformers import WhisperForConditionalGeneration

    case.write(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    model.eval()
    mel, tokens = case.inputs()
    features = torch.from_numpy(mel)
    with torch.no_grad():
        states = model.model.encoder(features).last_hidden_state
        logits = model(input_features=features, decoder_input_ids=torch.from_numpy(tokens)).logits
        return {
            "encoder": states.numpy(),
            "logits": logits.numpy(),
            "greedy": greedy_tokens(model, features, case.config["eos_token_id"]),
        }


def greedy_tokens(model, features, end: int) -> np.ndarray:
    """Return greedy sequences (prompt, generated, end-of-text), padded with end-of-text."""
    import torch

    settings = model.generation_config
    prompt = [settings.decoder_start_token_id, settings.no_timestamps_token_id]
    rows = []
    for one in features:
        with torch.no_grad():
            states = model.model.encoder(one[None])
            row = list(prompt)
            while len(row) < settings.max_length and (len(row) == len(prompt) or row[-1] != end):
                ids = torch.tensor([row])
                scores = model(encoder_outputs=states, decoder_input_ids=ids).logits[0, -1]
                scores[settings.suppress_tokens] = -torch.inf
                if len(row) == len(prompt):
                    scores[settings.begin_suppress_tokens] = -torch.inf
                row.append(int(scores.argmax()))
        rows.append(row + [end] * (settings.max_length - len(row)))
    return np.asarray(rows)


def greedy_batch(model, states, end: int) -> np.ndarray:
    """Return greedy sequences of a batch of encoder states, with the reference's own cache."""
    import torch

    settings = model.generation_config
    prompt = [settings.decoder_start_token_id, settings.no_timestamps_token_id]
    rows = torch.tensor([prompt] * len(states))
    ids, cache = rows, None
    with torch.no_grad():
        while rows.shape[1] < settings.max_length and not (rows[:, len(prompt) :] == end).any(1).all():
            out = model(encoder_outputs=(states,), decoder_input_ids=ids, past_key_values=cache, use_cache=True)
            scores, cache = out.logits[:, -1], out.past_key_values
            scores[:, settings.suppress_tokens] = -torch.inf
            if rows.shape[1] == len(prompt):
                scores[:, settings.begin_suppress_tokens] = -torch.inf
            ids = scores.argmax(-1)[:, None]
            ids[(rows[:, len(prompt) :] == end).any(1)] = end
            rows = torch.cat([rows, ids], 1)
    return rows.numpy()


def log_mel(n_mels: int, samples: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference extractor's log-mel, by its NumPy route and by its torch route."""
    from transformers import WhisperFeatureExtractor

    samples = waveform() if samples is None else samples
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    padded = np.pad(samples, (0, 480_000 - samples.size))[None]
    by_torch = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
    return extractor._np_extract_fbank_features(padded, "cpu")[0], by_torch
