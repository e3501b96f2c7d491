"""The audio-to-visual code base itself, beside the project: its server and clients, edited as the page says.

Skipped where the code is not present: ``EMBSTORE_FEDGFE`` names a folder with a checkout of lucapalazzo/fedgfe. Each
run is a process, in which `tests.fl.fedgfe` counts decoded clips and clips that AST got, for each stage.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fl import fedgfe, layouts

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

CODE = os.environ.get("EMBSTORE_FEDGFE")
pytestmark = pytest.mark.skipif(not CODE, reason="EMBSTORE_FEDGFE names no checkout of lucapalazzo/fedgfe")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "federated-learning.md").read_text()
ESC50 = ("dog", "rooster", "rain", "crow")
VEGAS = ("dog", "drum", "snoring")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with data in the layout of all three data sets, texts, and a small AST."""
    base = tmp_path_factory.mktemp("fedgfe")
    data = base / "data"
    layouts.vegas(data / "VEGAS", dict.fromkeys(VEGAS, 10))
    layouts.esc50_folders(data / "ESC-50", ESC50, each=2)
    layouts.vggsound(data / "Audio" / "vggsound", each=9)
    names = {"vegas_text_embeddings.pt": VEGAS, "esc50_text_embeddings.pt": ESC50}
    names["Audio/vggsound_text_embs_dict.pt"] = [name.lower().replace(" ", "_") for name in layouts.VGGSOUND]
    for file, classes in names.items():
        flux = {"prompt_embeds": torch.ones(1, 17, 4096), "pooled_prompt_embeds": torch.ones(1, 768)}
        torch.save({name: {"flux": flux} for name in classes}, data / file)
    fedgfe.make_ast(base / "home")
    return base


NODES = {
    "VEGAS": [["dog", "drum"], ["drum", "snoring"], ["dog", "snoring"]],
    "ESC50": [["dog", "rooster"], ["rooster", "rain"], ["rain", "crow"]],
    "VGGSound": [[0, 1], [1, 2], [0, 2]],
}


class Runs:
    """A copy of the code base and of the data, for one or more runs."""

    def __init__(self, base, folder, *, one_call=False):
        self.base, self.folder = base, folder
        folder.mkdir(exist_ok=True)
        skipped = shutil.ignore_patterns("wandb", "*.pt", "*.ipynb", "*.out")
        shutil.copytree(Path(CODE) / "system", folder / "system", symlinks=True, ignore=skipped)
        shutil.copytree(base / "data", folder / "data")
        (folder / "work").mkdir()
        folders = {"/home/lpala/fedgfe/dataset": folder / "data", '"/data/': f'"{folder}/data/'}
        fedgfe.edit(folder / "system", PAGE, folders, one_call=one_call)

    def configure(self, nodes, *, cls=(False,) * 3, rounds=2, **more):
        """Write the configuration of a run. `nodes` has a data set and classes for each node."""
        config = {
            "experiment": {"device": "cpu", "seed": 1},
            "federation": {
                "algorithm": "FedA2V",
                "diffusion_type": "flux",
                "num_clients": len(nodes),
                "global_rounds": rounds,
                "local_epochs": 1,
                "eval_gap": 1,
                "model_aggregation": "none",
            },
            "training": {"optimizer": "AdamW", "batch_size": 4},
            "feda2v": {
                "diffusion_type": "flux",
                "adapter_aggregation_mode": "none",
                "store_audio_embeddings": True,
                "audio_embedding_file_name": str(self.folder / "legacy.pt"),
                "images_output_dir": str(self.folder / "images"),
                "generate_nodes_images_frequency": rounds,
                "use_generator": True,
                "generator_granularity": "per_class",
                "generator_training_epochs": 1,
                "use_conditioned_vae": False,
                "train_adapters": True,
                "generator_training_sequence_length": 4,
                **more,
            },
            "nodes": {
                str(place): {
                    "dataset": name,
                    "selected_classes": classes,
                    "use_cls_token_only": flag,
                    "diffusion_type": "flux",
                }
                for place, ((name, classes), flag) in enumerate(zip(nodes, cls, strict=True))
            },
            "model": {"backbone": "a2v"},
            "dataset": {"name": "VEGAS"},
            "wandb": {"disabled": True},
        }
        (self.folder / "config.json").write_text(json.dumps(config))

    def run(self, **options):
        """Run the code base in a process. Return what it counted."""
        (self.folder / "run.json").write_text(json.dumps(options))
        environment = {
            **os.environ,
            "HF_HOME": str(self.base / "home"),
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'integrations'}",
        }
        command = [sys.executable, "-m", "tests.fl.fedgfe", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        (self.folder / "log").write_text(done.stderr)
        assert done.returncode == 0, done.stderr[-6000:]
        found = json.loads(done.stdout.splitlines()[-1])
        for stage, counts in found["counts"].items():
            print(
                f"{stage:16} {counts['calls']:3} calls, {counts['decoded']:4} clips decoded, {counts['ast']:4} to AST"
            )
        return found


def nodes_of(name):
    return [(name, classes) for classes in NODES[name]]


TOKENS = {"whole": (False, False, False), "cls": (True, True, True), "mixed": (False, True, False)}
EVERYTHING = {"generators": True, "global_images": True}


def check_results(found):
    """Check that each stage ran, and gave what the code base makes of it."""
    assert {"setup", "training", "metrics", "images", "generators", "global images", "saving"} <= {*found["counts"]}
    assert all(one["calls"] for stage, one in found["counts"].items() if stage != "outside")
    assert all(all(one.values()) for one in found["images"].values())
    assert found["global"]
    assert all(loss > 0 for loss in found["generators"])
    assert found["in_memory"] == [0, 0, 0]


def check_stored(found, cls):
    """Check a run whose embeddings were stored before."""
    counts = found["counts"]
    assert [counts[name]["ast"] for name in ("setup", "training", "metrics", "saving")] == [0, 0, 0, 0]
    assert [counts[name]["decoded"] for name in ("setup", "training", "saving")] == [0, 0, 0]
    assert found["missing"] == [0, 0, 0]
    assert found["shapes"] == [[1 if one else 1214, 768] for one in cls]
    assert found["cls"] == list(cls)
    check_results(found)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", ["VEGAS", "ESC50", "VGGSound"])
def test_two_runs_with_the_one_call(name, tokens, base, tmp_path):
    runs = Runs(base, tmp_path, one_call=True)
    runs.configure(nodes_of(name), cls=TOKENS[tokens])
    first = runs.run(**EVERYTHING)
    assert first["counts"]["setup"]["ast"] > 0
    check_results(first)
    check_stored(runs.run(**EVERYTHING), TOKENS[tokens])


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", ["VEGAS", "ESC50", "VGGSound"])
def test_two_runs_with_the_original_lines(name, tokens, base, tmp_path):
    """The first run stores samples for training and testing. It never reads those for validation before it saves."""
    runs = Runs(base, tmp_path)
    runs.configure(nodes_of(name), cls=TOKENS[tokens])
    first = runs.run(**EVERYTHING)
    assert first["counts"]["metrics"]["ast"] + first["counts"]["training"]["ast"] > 0
    check_results(first)
    second = runs.run(**EVERYTHING)
    assert second["counts"]["training"]["ast"] == second["counts"]["training"]["decoded"] == 0
    assert second["counts"]["metrics"]["ast"] <= sum(second["missing"])
    check_results(second)


def test_one_run_of_all_data_sets(base, tmp_path):
    runs = Runs(base, tmp_path, one_call=True)
    runs.configure([nodes_of(name)[0] for name in NODES], cls=TOKENS["mixed"])
    runs.run(generators=True)
    found = runs.run(generators=True)
    assert [found["counts"][name]["ast"] for name in ("setup", "training", "metrics")] == [0, 0, 0]
    assert found["missing"] == [0, 0, 0]


def test_both_fallbacks(base, tmp_path):
    """Without stores, the first client reads the legacy file, and the others get its embeddings."""
    runs = Runs(base, tmp_path)
    runs.configure(nodes_of("VEGAS"), rounds=1)
    first = runs.run(**EVERYTHING)
    shutil.rmtree(tmp_path / "data" / "VEGAS.cache")
    found = runs.run(**EVERYTHING)
    assert found["counts"]["training"]["ast"] == found["counts"]["training"]["decoded"] == 0
    assert found["missing"] == first["missing"]
    check_results({**found, "in_memory": [0, 0, 0]})


def test_peak_memory(base, tmp_path):
    """Anonymous memory through round 2, AST loaded in both, beside a run that keeps no embedding anywhere."""
    runs = Runs(base, tmp_path, one_call=True)
    runs.configure(nodes_of("VEGAS"))
    runs.run()
    stored = runs.run()
    shutil.rmtree(tmp_path / "data" / "VEGAS.cache")
    (tmp_path / "legacy.pt").unlink()
    never = Runs(base, tmp_path / "never")
    never.configure(nodes_of("VEGAS"), store_audio_embeddings=False)
    kept_nothing = never.run(keep_nothing=True)
    assert kept_nothing["counts"]["training"]["ast"] > 0
    print(f"peak: {stored['peak'] / 1e6:.0f} MB stored, {kept_nothing['peak'] / 1e6:.0f} MB never stored")
    assert stored["peak"] - kept_nothing["peak"] < 100 * 2**20
