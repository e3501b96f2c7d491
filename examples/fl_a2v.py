"""Federated audio-to-visual training: two servers run one after the other with four clients each and one cache.

``make demo-fl`` runs it after the Flower app. Recordings (Debian's sonic-pi-samples) are copied into the layout of
VEGAS, with the first part of each name as the class. The clients' class lists overlap. The first server finds no
embeddings and extracts each clip once, even if several clients have it. The second finds all of them, and does not
import transformers. Both train the same adapters. AST has its real input and sequence of 1,214 tokens in a small
configuration, with random weights from a fixed seed.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

DURATION = 5.0
MODEL_NAME = "small-ast"
SMALL = {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 768}
LEAST = 8
"""Least number of recordings of a class."""


def _write_wav(recording: Path, wav: Path) -> None:
    import av

    with av.open(recording) as given, av.open(wav, "w") as made:
        sound = given.streams.audio[0]
        stream = made.add_stream("pcm_s16le", rate=sound.rate)
        stream.codec_context.layout = sound.codec_context.layout
        for frame in given.decode(sound):
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))


def lay_out(samples: Path, root: Path) -> list[str]:
    """Copy recordings to ``<class>/audios/video_00000.wav``. Return the classes."""
    files = sorted(samples.glob("*_*.flac"))
    counts = Counter(file.name.partition("_")[0] for file in files)
    classes = sorted(name for name, count in counts.items() if count >= LEAST)
    if root.exists():
        return classes
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in classes:
        (partial / name / "audios").mkdir(parents=True)
        for place, file in enumerate(file for file in files if file.name.partition("_")[0] == name):
            _write_wav(file, partial / name / "audios" / f"video_{place:05d}.wav")
    partial.rename(root)
    return classes


def make_model(folder: Path) -> None:
    """Save AST in a small configuration."""
    import transformers
    from torch import manual_seed

    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "At least one mel filter")  # AST's lowest are narrower than the spectrum's bins
    manual_seed(0)
    transformers.ASTModel(transformers.ASTConfig(**SMALL)).save_pretrained(folder)
    transformers.ASTFeatureExtractor().save_pretrained(folder)


# -- a server, in its own process ----------------------------------------------------------------


def serve(work: Path, classes: list[str]) -> None:
    """Make four nodes, load their embeddings, and train each node's adapter for a round."""
    import torch

    from embstore_fl.a2v import A2VClient, A2VServer, VEGASDataset
    from embstore_fl.datasets import VEGAS

    class Recordings(VEGASDataset):
        default_root_dir = work / "recordings"

        def make_source(self, root: Path) -> VEGAS:
            return VEGAS(root, name="recordings", classes=classes)

    class Client(A2VClient):
        def __init__(self, number: int, dataset: Recordings) -> None:
            self.id = number
            self.node_data = SimpleNamespace(train_dataset=dataset.train, test_dataset=dataset.test)

        def train(self, adapter: torch.nn.Module) -> tuple[float, float]:
            """Train for a round. Return the last loss, and the accuracy on the node's test samples."""
            train, test = self.node_data.train_dataset, self.node_data.test_dataset
            options = {"batch_size": 8, "collate_fn": train.get_collate_fn()}
            optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
            torch.manual_seed(self.id)
            for _ in range(3):
                for batch in torch.utils.data.DataLoader(train, shuffle=True, **options):
                    loss = torch.nn.functional.cross_entropy(adapter(batch["audio_emb"].mean(1)), batch["labels"])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                right = [
                    adapter(batch["audio_emb"].mean(1)).argmax(1) == batch["labels"]
                    for batch in torch.utils.data.DataLoader(test, **options)
                ]
            return float(loss.detach()), float(torch.cat(right).float().mean())

    class Server(A2VServer):
        ast_model, ast_model_name, ast_duration = work / MODEL_NAME, MODEL_NAME, DURATION

    logging.basicConfig(format="  %(message)s", stream=sys.stdout)
    logging.getLogger("embstore").setLevel(logging.INFO)
    logging.getLogger("embstore").addFilter(lambda record: record.getMessage().startswith("node "))
    warnings.filterwarnings("ignore", "At least one mel filter")
    server = Server()
    server.clients = []
    lists = [classes[place : place + 4] for place in range(0, len(classes) - 3, 2)][:4]
    started = time.perf_counter()
    for number, own in enumerate(lists):
        dataset = Recordings(ast_cache_dir=work / "recordings.cache", selected_classes=own, audio_duration=DURATION)
        server.load_node_embeddings(dataset, node=f"{number} ({', '.join(own)})")
        server.clients.append(Client(number, dataset))
    seconds = time.perf_counter() - started
    torch.manual_seed(0)
    start = torch.nn.Linear(SMALL["hidden_size"], len(classes)).state_dict()
    scores = []
    for client in server.clients:
        adapter = torch.nn.Linear(SMALL["hidden_size"], len(classes))
        adapter.load_state_dict(start)
        scores.append(client.train(adapter))
    total = server.embedding_metrics.total
    print(f"  {len(server.embedding_metrics)} nodes: {total}")
    found = {
        "seconds": seconds,
        "extracted": total.extracted,
        "hits": total.hits,
        "scores": scores,
        "transformers": "transformers" in sys.modules,
    }
    (work / "found.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, help="folder of FLAC files whose class is the name's first part")
    parser.add_argument("--work", type=Path, default=Path("demo-fl"), help="folder for recordings, model and cache")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # the classes, for the process of a server
    arguments = parser.parse_args()
    work: Path = arguments.work
    if arguments.serve:
        serve(work, json.loads(arguments.serve))
        return
    work.mkdir(parents=True, exist_ok=True)
    classes = lay_out(arguments.samples, work / "recordings")
    if not (work / MODEL_NAME / "preprocessor_config.json").exists():
        make_model(work / MODEL_NAME)
    shutil.rmtree(work / "recordings.cache", ignore_errors=True)
    runs = []
    for title in ("first", "second"):
        print(f"\n{title} server: four clients of {work / 'recordings'}", flush=True)
        command = [sys.executable, __file__, arguments.samples, "--work", work, "--serve", json.dumps(classes)]
        subprocess.run(command, check=True)
        runs.append(json.loads((work / "found.json").read_text()))
    first, second = runs
    print()
    for name, value in (
        ("extracted", f"{first['extracted']:,} clips by the first, {second['extracted']:,} by the second"),
        ("found", f"{first['hits']:,} by the first (clients share classes), {second['hits']:,} by the second"),
        ("datasets of all nodes", f"{first['seconds']:.2f} s, then {second['seconds']:.3f} s"),
        ("that is", f"{first['seconds'] / second['seconds']:,.0f} x faster"),
        ("transformers imported", f"{first['transformers']}, then {second['transformers']}"),
        ("accuracy of the clients", ", ".join(f"{accuracy:.0%}" for _, accuracy in second["scores"])),
        ("losses and accuracies", "equal to the bit" if first["scores"] == second["scores"] else "DIFFERENT"),
    ):
        print(f"  {name:<32} {value}")
    if second["extracted"] or second["transformers"] or first["scores"] != second["scores"]:
        sys.exit("the second server was to find everything")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
        sys.exit(f"\nstopped ({error}); what was encoded is stored, run it again to go on from there")
