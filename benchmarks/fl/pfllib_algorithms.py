"""Runs every algorithm of PFLlib on its own .npz files and on a store of the same samples: are the losses the same?

    PYTHONPATH=integrations python -m benchmarks.fl.pfllib_algorithms CHECKOUT

CHECKOUT is a clone of https://github.com/TsingZ0/PFLlib at d832e76, of which nothing is changed. Its requirements that
count here: h5py, scikit-learn, cvxpy, matplotlib, calmsize. Each algorithm of its main.py runs twice, in processes of
their own, with a logistic head and the same seeds. Compared are the losses, accuracies and AUCs that it saves, bit by
bit, every line that it prints but for times, and the parameters of the global model where it saves one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch

from benchmarks.fl.pfllib_data import written
from benchmarks.fl.pfllib_main import run
from benchmarks.report.measure import RESULTS, described

COMMIT = "d832e76f6a23b833038949ec1e4fdefe63a4d350"
NAME = "demo"
HEAVY = ("h5py", "sklearn.metrics", "sklearn.preprocessing", "cvxpy", "matplotlib.pyplot", "torch._dynamo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a run has left behind."""

    error: str = ""
    seconds: float = 0.0
    saved: dict[str, list[float]] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    model: str = ""  # digest of the global model's parameters


def algorithms(checkout: Path) -> list[str]:
    """Return the names that main.py knows, in its order."""
    found = re.findall(r"args\.algorithm == [\"'](.+?)[\"']", (checkout / "system" / "main.py").read_text())
    return list(dict.fromkeys(found))


def ran(args: argparse.Namespace, folder: Path, side: str, algorithm: str) -> Ran:
    """Run an algorithm in a forked process: what is heavy is imported already, nothing of PFLlib is."""
    for name in ("results", "system"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "system").mkdir()
    told = folder / f"{side}.txt"
    given = ["-algo", algorithm, "-data", NAME, "-m", "MLR", "-ncl", str(args.classes), "-nc", str(args.clients)]
    given += ["-gr", str(args.rounds), "-dev", "cpu", "-se", "50", "-lr", "0.05", "-lam", "0.5"]
    start = time.perf_counter()
    child = os.fork()
    if not child:
        status = 1
        with told.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            try:
                run(args.pfllib, folder, side, given, before=whole_beta if algorithm == "FedCAC" else lambda: None)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
    _, status = os.waitpid(child, 0)
    lines = told.read_text().splitlines()
    error = ""
    if status:
        places = [line.strip() for line in lines if re.search(r"system/.*\.py\", line", line)]
        where = re.sub(r'File ".*/system/(.*)", line (\d+), in .*', r"\1:\2", places[-1]) if places else "nowhere"
        error = f"{lines[-1]} ({where})"
    return Ran(
        error=error,
        seconds=time.perf_counter() - start,
        saved=saved_in(folder / "results"),
        printed=[line for line in takewhile(not_done, lines) if not of_its_time(line)],
        model=parameters_in(folder / "system"),
    )


def whole_beta() -> None:
    """Give FedCAC the whole number that it asserts: main.py reads --beta as a float, so no command line can."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser) -> argparse.Namespace:
        args = parse(self)
        args.beta = 1
        return args

    argparse.ArgumentParser.parse_args = parsed


def not_done(line: str) -> bool:
    """Tell a line from the one after which PFLlib says how much memory it holds: less, on a store."""
    return line != "All done!"


def of_its_time(line: str) -> bool:
    """Tell whether a line says how long something took, or where an object lies."""
    return bool(re.search(r"time cost|^-{20,}|^\d+\.\d+$|std for best|mean for best|object at 0x", line))


def saved_in(folder: Path) -> dict[str, list[float]]:
    import h5py

    found: dict[str, list[float]] = {}
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            found |= {name: np.asarray(file[name], dtype=np.float64).tolist() for name in file}
    return found


def parameters_in(folder: Path) -> str:
    """Return a digest of the model that PFLlib has saved, which is a pickle of a module of its own classes."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*_server.pt")):
        digest.update(path.read_bytes())
    return digest.hexdigest() if any(folder.rglob("*_server.pt")) else ""


def compared(npz: Ran, store: Ran) -> str:
    if npz.error or store.error:
        return "fails either way" if npz.error == store.error else "DIFFERS"
    numbers = np.array_equal(bits(npz.saved), bits(store.saved))
    return "identical" if numbers and npz.printed == store.printed and npz.model == store.model else "DIFFERS"


def bits(saved: dict[str, list[float]]) -> np.ndarray:
    return np.array([value for name in sorted(saved) for value in saved[name]], dtype=np.float64).view(np.int64)


def commit_of(checkout: Path) -> str:
    """Return what is checked out, and whether what runs was changed; an archive does not say."""
    log, status = (
        subprocess.run(["git", "-C", str(checkout), *asked], capture_output=True, text=True, check=False).stdout.strip()
        for asked in (["log", "-1", "--format=%H"], ["status", "--porcelain", "--untracked-files=no", "--", "system"])
    )
    return f"{log or 'unknown: no git folder'}{', changed' if status else ''}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pfllib", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--results", type=Path, default=RESULTS / "pfllib_algorithms.json")
    parser.add_argument("--only", nargs="+", metavar="ALGORITHM")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    args.pfllib = args.pfllib.resolve()
    torch.set_num_threads(1)  # threads don't outlive a fork, and sums are made in the same order each time
    for name in HEAVY:
        importlib.import_module(name)
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pfllib"
        shape = {"count": args.samples, "dim": 60, "classes": args.classes, "clients": args.clients}
        making = os.fork()  # in a process of its own, since it installs the store's function
        if not making:
            written(folder, args.pfllib, name=NAME, **shape)
            os._exit(0)
        if os.waitpid(making, 0)[1]:
            raise SystemExit("the data could not be written")
        for algorithm in args.only or algorithms(args.pfllib):
            npz = ran(args, folder, "npz", algorithm)
            store = ran(args, folder, "store", algorithm)
            verdict = compared(npz, store)
            losses = npz.saved.get("rs_train_loss", [])
            told = npz.error or f"train loss {', '.join(f'{loss:.4f}' for loss in losses) or 'not saved'}"
            print(f"{algorithm:10} {verdict:16} {told}", flush=True)
            results.append(
                {
                    "algorithm": algorithm,
                    "verdict": verdict,
                    "npz": {**asdict(npz), "printed": len(npz.printed)},
                    "store": {**asdict(store), "printed": len(store.printed)},
                }
            )
    counts = Counter(str(result["verdict"]) for result in results)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    about = described(RESULTS) | {"pfllib": {"expected": COMMIT, "found": commit_of(args.pfllib)}, "counts": counts}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    if counts.get("DIFFERS"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
