"""Encode recordings with a real audio model in a first run, and measure the time that the store saves two later runs.

``make demo-audio`` runs it with 165 recordings and AST. The architectures are the real ones at their base size (86
million weights of AST, 20 of Whisper's encoder, 94 of wav2vec 2.0). The weights are random, from a fixed seed. This
changes the values of the rows, but not the time to compute them.
"""

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

from saving import print_saving

import embstore
from embstore.sources import Folder

DURATION = 5.0
WHISPER_BASE = {
    "d_model": 512,
    **{"encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    **{"decoder_layers": 6, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048},
}
MODELS = {"ast": ("AST", {}), "whisper": ("Whisper", WHISPER_BASE), "wav2vec2": ("Wav2Vec2", {})}
"""Prefix of the class names in transformers, and the options of the base size that are not defaults."""


def make_model(kind: str, folder: Path) -> None:
    """Save a model at its base size, with random weights from a fixed seed, and its feature extractor."""
    import transformers
    from torch import manual_seed

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "At least one mel filter")  # AST's lowest are narrower than the spectrum's bins
    name, sizes = MODELS[kind]
    manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    getattr(transformers, f"{name}FeatureExtractor")().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, help="folder of FLAC files whose class is the name's first part")
    parser.add_argument("--model-type", choices=MODELS, default="ast", help="default %(default)s")
    parser.add_argument("--work", type=Path, default=Path("demo-audio"), help="folder for the model and the cache")
    arguments = parser.parse_args()
    model, cache = arguments.work / arguments.model_type, arguments.work / "cache"
    if not (model / "preprocessor_config.json").exists():
        print(f"making {arguments.model_type} at its base size, with random weights")
        make_model(arguments.model_type, model)

    job = Path(__file__).with_name("audio_job.py")
    command = [sys.executable, job, arguments.samples, "--model", model, "--cache", cache, "--duration", str(DURATION)]
    source = Folder(arguments.samples, name=arguments.samples.name, pattern="{class}_*.flac")
    before = {entry.path for entry in embstore.Cache(cache).entries()}
    seconds = []
    for title in ("first run", "second run", "third run"):
        print(f"\n{title}: the whole process, from its start to all rows in RAM", flush=True)
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.append(time.perf_counter() - started)
        print(f"  {seconds[-1]:.2f} s")

    encoder = embstore.from_pretrained(model, duration=DURATION)
    result = embstore.embed(source, encoder, cache)
    if again := result.path in before:
        print(f"\nthe first run encoded nothing, or only a part: remove {result.path} to start anew")
    print_saving(result, seconds[0], 0 if again else result.samples)
    print(f"  {'a later run, against the first':<32} {seconds[0] / min(seconds[1:]):,.0f} x faster")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
        sys.exit(f"\nstopped ({error}); what was encoded is stored, run it again to go on from there")
