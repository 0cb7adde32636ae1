"""Measure what every stage of stress does to the word errors of a small model on strings of digits.

    python scripts/measure_stress.py [FOLDER]     prints the table of docs/guides/stress.md; minutes

FOLDER holds models/whisper-tiny.en-digits and data/ with FSDD, LibriSpeech and other sounds; by
default the folder "shared" beside the checkout.
"""

import sys
from pathlib import Path

from spectral_theorem import datasets, scoring, stress, whisper

RECIPES = (
    "clean",
    "noise=20",
    "noise=0",
    "babble=6@0",
    "stretch=3.5",
    "stretch=3.5@faster",
    "hell",
    "silence",
    "silence+noise=0",
    "nonspeech=0",
)


def main(folder: Path) -> None:
    """Decode 50 strings under every recipe, and print one row for each."""
    model = whisper.load(folder / "models/whisper-tiny.en-digits")
    take = lambda clip: int(Path(clip.name).stem.rsplit("_")[-1])
    strings = datasets.digit_strings(datasets.find(folder / "data/fsdd").where(lambda clip: take(clip) < 5), length=5)
    talkers, sounds = (datasets.find(folder / "data" / name) for name in ("librispeech", "nonspeech"))
    print("| recipe | substituted | deleted | inserted | WER | clips above 0.5 | longest loop |")
    for text in RECIPES:
        recipe, pairs = stress.parse(text), []
        for clip in strings:
            samples, _ = stress.apply(
                0,
                clip.load(),
                recipe=recipe,
                name=clip.name,
                speaker=clip.speaker,
                talkers=talkers,
                non_speech=sounds,
            )
            heard = whisper.transcribe(model, samples).text
            pairs.append(("" if recipe.replaces else clip.transcript or "", heard))
        total = scoring.corpus_errors(pairs, how="digits")
        kept = sum(stress.kept(*pair, how="digits") for pair in pairs)
        loop = max(scoring.longest_loop(heard)[1] for _, heard in pairs)
        counts = f"{total.substitutions} | {total.deletions} | {total.insertions}"
        print(f"| `{text}` | {counts} | {total.rate:.1%} | {kept} | {loop} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "shared")
