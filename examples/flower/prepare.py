"""Assign docstrings of the standard library to five clients, before any of them is encoded.

    python examples/flower/prepare.py FOLDER

FOLDER gets the texts, the manifest (each client's keys), an empty store, and ``run.toml`` for
``flwr run --run-config``.
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flwr_datasets.partitioner import DirichletPartitioner

import embstore
from embstore_fl.flower import partition, save_partition

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from docstrings import Docstrings  # noqa: E402
from fl_docstrings.encoder import NAME, MiniLM  # noqa: E402

CLASSES, ALPHA = 20, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Inputs of a run: the texts, the manifest of each client's keys, and the store to fill."""

    texts: Path
    manifest: Path
    store: Path
    clients: int
    samples: int

    def run_config(self, **more: str | int | float) -> str:
        """Return the TOML for ``flwr run --run-config``."""
        given = {"texts": str(self.texts), "embstore.store": str(self.store), "embstore.manifest": str(self.manifest)}
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in {**given, **more}.items())


def chosen_texts(count: int) -> dict[str, str]:
    """Return docstrings of the modules with most of them, by key, shortest first: similar lengths need less padding."""
    texts = {str(sample.key): sample.load() for sample in Docstrings(lambda module: True)}
    found = Counter(embstore.Key.parse(key).class_name for key in texts)
    classes = {name for name, _ in found.most_common(CLASSES)}
    keys = [key for key in texts if embstore.Key.parse(key).class_name in classes]
    keys = sorted(keys, key=embstore.digest_of)[:count]  # an order independent of their content
    return {key: texts[key] for key in sorted(keys, key=lambda key: (len(texts[key]), key))}


def prepare(folder: Path, *, texts: int = 1000, clients: int = 5, seed: int = 0) -> Prepared:
    """Write the inputs of a run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared = Prepared(
        texts=folder / "texts.json",
        manifest=folder / "manifest.json",
        store=embstore.Cache(folder / "cache").path_of(store_config()),
        clients=clients,
        samples=texts,
    )
    chosen = chosen_texts(texts)
    prepared.texts.write_text(json.dumps(chosen))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw with too few samples for a client is repeated with a warning
        partitioner = DirichletPartitioner(clients, "label", alpha=ALPHA, min_partition_size=20, seed=seed)
        parts = partition(list(chosen), partitioner)
    scheme = {"partitioner": "Dirichlet", "alpha": ALPHA, "by": "label"}
    save_partition(parts, prepared.manifest, scheme=scheme, seed=seed, config=store_config())
    embstore.open(prepared.store, "a", config=store_config()).close()
    (folder / "run.toml").write_text(prepared.run_config())
    return prepared


def store_config() -> dict[str, object]:
    """Return the config of the embeddings. It is known before the model is loaded."""
    return {**MiniLM().config, "dataset": NAME}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    prepare(folder, texts=arguments.texts, clients=arguments.clients, seed=arguments.seed)
    print(f"flwr run {HERE} --stream --run-config {folder / 'run.toml'} \\")
    print(f'  --federation-config "num-supernodes={arguments.clients} client-resources-num-cpus=1"')


if __name__ == "__main__":
    main()
