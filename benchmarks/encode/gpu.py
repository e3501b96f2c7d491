"""On a GPU: AST at full size in clips a second; an epoch from the store into GPU memory, against the bus's own rate.

    python -m benchmarks.encode.gpu --quick
    python -m benchmarks.encode.gpu

Skipped with a word where there is no GPU. The bus's rate is that of one large copy from pinned memory, measured in the
same turns; an epoch is a shuffled one, gathered into pinned buffers, two at a time, so that a copy runs while the next
batch is gathered. The same through `DataLoader(pin_memory=True)`. Values that arrived are compared before timing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import embstore
from benchmarks.report.measure import add_options
from benchmarks.report.tables import print_report, save
from benchmarks.workloads.source import Source, make_source
from benchmarks.workloads.turns import Measurement, Pace, Side, in_turns

RATE, SECONDS = 16_000, 10


def clips_a_second(args: argparse.Namespace) -> Iterator[Measurement]:
    """Encode spectrograms that are in GPU memory already: what the model alone does."""
    import torch
    from transformers import ASTConfig, ASTModel

    torch.manual_seed(0)
    model = ASTModel(ASTConfig()).eval().cuda()
    frames = torch.randn(args.batch, 1024, 128).cuda()

    def side(dtype: torch.dtype) -> Side:
        def run(first: int, count: int) -> float:
            began = time.perf_counter()
            with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                for _ in range(count):
                    model(frames)
            torch.cuda.synchronize()
            return time.perf_counter() - began

        return run

    sides = {"float32": side(torch.float32), "bfloat16 (autocast)": side(torch.bfloat16)}
    turns = in_turns(sides, Pace(args.repeat), parts=20)
    rates = {name: [args.batch / taken for taken in times] for name, times in turns.figures.items()}
    data = f"AST, batches of {args.batch} clips of {SECONDS} s, spectrograms in GPU memory"
    yield Measurement("gpu-encoding", data, rates, unit="clips/s", better="more")


def epochs(source: Source, store: Any, size: int, args: argparse.Namespace) -> Iterator[Measurement]:
    """Bring all rows into GPU memory in a shuffled order; bytes a second."""
    import torch

    rows = store.array()
    pinned = [torch.empty((size, *source.shape), dtype=torch.float32).pin_memory() for _ in range(2)]
    copied = [torch.cuda.Event() for _ in pinned]
    block = torch.empty(min(source.nbytes, 2**30) // 4, dtype=torch.float32).pin_memory()

    def gathered(turn: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        order = source.shuffled(turn)
        for place, start in enumerate(range(0, len(order), size)):
            numbers, buffer = order[start : start + size], pinned[place % 2][: len(order[start : start + size])]
            copied[place % 2].synchronize()  # until its last copy is done
            rows.take(numbers, axis=0, out=buffer.numpy(), mode="clip")
            arrived = buffer.to("cuda", non_blocking=True)
            copied[place % 2].record()
            yield numbers, arrived

    for numbers, arrived in gathered(0):
        if not np.array_equal(arrived.cpu().numpy(), source.values[numbers]):
            raise SystemExit("other rows arrived: nothing else is worth measuring")

    def by_hand(first: int, count: int) -> float:
        began = time.perf_counter()
        for _ in gathered(first):
            pass
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def by_loader(first: int, count: int) -> float:
        from torch.utils.data import DataLoader

        from embstore.torch import EmbeddingDataset

        loader = DataLoader(EmbeddingDataset(store.select()), batch_size=size, shuffle=True, pin_memory=True)
        began = time.perf_counter()
        for (batch,) in loader:
            batch.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def bus(first: int, count: int) -> float:
        began = time.perf_counter()
        block.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / block.nbytes * source.nbytes

    sides = {"embstore": by_hand, "embstore, DataLoader": by_loader, "the bus": bus}
    turns = in_turns(sides, Pace(args.repeat))
    rates = {name: [source.nbytes / taken / 1e9 for taken in times] for name, times in turns.figures.items()}
    yield Measurement("gpu-epoch", source.label, rates, unit="GB/s", better="more", detail=f"batches of {size}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--sequences", type=int, default=280)
    parser.add_argument("--batch", type=int, default=32, help="clips a batch")
    add_options(parser, "gpu", repeat=7)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, 32 sequences")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.sequences, args.repeat = 20_000, 32, 5
    return args


def main() -> None:
    args = parsed()
    try:
        import torch
    except ImportError as error:
        return print(f"gpu: skipped: {error}", file=sys.stderr)
    if not torch.cuda.is_available():
        return print("gpu: skipped: torch sees no GPU here", file=sys.stderr)
    args.data.mkdir(parents=True, exist_ok=True)
    done = list(clips_a_second(args))
    for shape, size in (((args.rows, 768), 256), ((args.sequences, 1214, 768), 16)):
        with tempfile.TemporaryDirectory(dir=args.data, prefix="gpu-") as folder:
            source = make_source(Path(folder) / "source", shape)
            path = Path(folder) / "rows.zarr"
            with embstore.open(path, "w-", config={"benchmark": "gpu"}, expected_rows=len(source)) as store:
                store.append(source.keys, source.values)
            done += epochs(source, embstore.open(path), size, args)
    save(done, args.results, args.data, gpu=torch.cuda.get_device_name())
    print_report(done)


if __name__ == "__main__":
    main()
