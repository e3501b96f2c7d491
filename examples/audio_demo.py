"""165 real recordings through AST at full size, twice: what the second run costs, and what the store saves.

Run by ``make demo-audio``. The architecture is the real one (`ASTConfig()`, 86 million weights). The weights are
random, from a fixed seed: that changes what the rows say, and nothing of how long they take.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from saving import print_saving

import embstore
from embstore.sources import Folder

DURATION = 5.0


def make_model(folder: Path) -> None:
    """Save AST at full size, with random weights from a fixed seed."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    ASTModel(ASTConfig()).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, help="folder of FLAC files whose class is the name's first part")
    parser.add_argument("--work", type=Path, default=Path("demo-audio"), help="folder for the model and the cache")
    arguments = parser.parse_args()
    model, cache = arguments.work / "ast", arguments.work / "cache"
    if not (model / "preprocessor_config.json").exists():
        print("making AST at full size, with random weights")
        make_model(model)

    job = Path(__file__).with_name("audio_job.py")
    command = [sys.executable, job, arguments.samples, "--model", model, "--cache", cache, "--duration", str(DURATION)]
    source = Folder(arguments.samples, name=arguments.samples.name, pattern="{class}_*.flac")
    before = len(embstore.Cache(cache).entries())
    seconds = []
    for title in ("first run", "second run", "third run"):
        print(f"\n{title}: the whole process, from its start to all rows in RAM", flush=True)
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.append(time.perf_counter() - started)
        print(f"  {seconds[-1]:.2f} s")

    encoder = embstore.from_pretrained(model, duration=DURATION)
    result = embstore.embed(source, encoder, cache)
    if before:
        print(f"\nthe first run encoded nothing, or only a part: remove {arguments.work} to start anew")
    print_saving(result, seconds[0], 0 if before else result.samples)
    print(f"  {'second run, against the first':<32} {seconds[0] / min(seconds[1:]):,.0f} x faster")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
        sys.exit(f"\nstopped ({error}); what was encoded is stored, run it again to go on from there")
