"""The audio-to-visual code base itself, beside the project: its server and clients, edited as the page says.

Skipped where the code is not present: ``EMBSTORE_FEDGFE`` names a folder with a checkout of lucapalazzo/fedgfe. Each
run is a process, in which `tests.fl.fedgfe` counts decoded clips and clips that AST got, for each stage.
"""

import json
import multiprocessing
import os
import shutil
import tempfile
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


class Base:
    """A folder with data in the layout of all three data sets, texts and a small AST, and processes for the runs.

    The processes are forked from one that has imported torch and transformers, which takes longer than a run.
    """

    def __init__(self, folder):
        self.data, self.home = folder / "data", folder / "home"
        layouts.vegas(self.data / "VEGAS", dict.fromkeys(VEGAS, 10), beside=("img", "videos", "info"))
        layouts.esc50_folders(self.data / "ESC-50", ESC50, each=2)
        layouts.vggsound(self.data / "Audio" / "vggsound", each=9)
        names = {"vegas_text_embeddings.pt": VEGAS, "esc50_text_embeddings.pt": ESC50}
        names["Audio/vggsound_text_embs_dict.pt"] = [name.lower().replace(" ", "_") for name in layouts.VGGSOUND]
        for file, classes in names.items():
            flux = {"prompt_embeds": torch.ones(1, 17, 4096), "pooled_prompt_embeds": torch.ones(1, 768)}
            torch.save({name: {"flux": flux} for name in classes}, self.data / file)
        fedgfe.make_ast(self.home)
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["tests.fl.fedgfe_imports"])


ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),  # else a third of the time goes into page faults
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fedgfe")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "HF_HOME": str(folder / "home")}.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", "/tmp")  # multiprocessing removes its folder after the tests' has gone
        yield Base(folder)


NODES = {
    "VEGAS": [["dog", "drum"], ["drum", "snoring"], ["dog", "snoring"]],
    "ESC50": [["dog", "rooster"], ["rooster", "rain"], ["rain", "crow"]],
    "VGGSound": [[0, 1], [1, 2], [0, 2]],
}


OWN_FOLDERS = {  # the defaults of the code base's own data sets
    "Audio/VEGAS": "/data/VEGAS",
    "Audio/vegas_text_embs_dict.pt": "/data/vegas_text_embeddings.pt",
    "Audio/esc50-v2.0.0-full": "/data/ESC-50",
    "Audio/esc50_text_embs_dict.pt": "/data/esc50_text_embeddings.pt",
}


class Runs:
    """A copy of the code base and of the data, for one or more runs."""

    def __init__(self, base, folder, **edits):
        self.base, self.folder = base, folder
        folder.mkdir(exist_ok=True)
        skipped = shutil.ignore_patterns("wandb", "*.pt", "*.ipynb", "*.out")
        shutil.copytree(Path(CODE) / "system", folder / "system", symlinks=True, ignore=skipped)
        shutil.copytree(base.data, folder / "data")
        (folder / "work").mkdir()
        folders = {f"/home/lpala/fedgfe/dataset/{name}": path for name, path in OWN_FOLDERS.items()}
        folders |= {"/home/lpala/fedgfe/dataset": "/data", '"/data/': f'"{folder}/data/'}
        fedgfe.edit(folder / "system", PAGE, folders, **edits)
        # At 8caee12 the function takes the length of a NodeData, which has none, with any data set.
        server = (folder / "system/flcore/servers/serverA2V.py").read_text()
        self.global_images = "fed_dataset = self.federation_val_data" not in server

    def configure(self, nodes, *, cls=(False,) * 3, rounds=2, options=({},) * 3, federation=(), **more):
        """Write the configuration of a run. `nodes` has a data set and classes for each node, `options` the rest."""
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
                **dict(federation),
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
                    **other,
                }
                for place, ((name, classes), flag, other) in enumerate(zip(nodes, cls, options, strict=True))
            },
            "model": {"backbone": "a2v"},
            "dataset": {"name": "VEGAS"},
            "wandb": {"disabled": True},
        }
        (self.folder / "config.json").write_text(json.dumps(config))

    def run(self, **options):
        """Run the code base in a process. Return what it counted."""
        options["global_images"] = options.get("global_images", False) and self.global_images
        (self.folder / "run.json").write_text(json.dumps(options))
        process = self.base.processes.Process(target=fedgfe.main, args=(self.folder,))
        process.start()
        process.join()
        assert process.exitcode == 0, (self.folder / "log").read_text()[-6000:]
        found = json.loads((self.folder / "found.json").read_text())
        assert bool(found["global"]) == options["global_images"]
        for stage, counts in found["counts"].items():
            done = "{calls:3} calls, {decoded:4} clips decoded, {ast:4} to AST, {seconds:.1f} s".format(**counts)
            print(f"{stage:16} {done}")
        return found


def nodes_of(name):
    return [(name, classes) for classes in NODES[name]]


TOKENS = {"whole": (False, False, False), "cls": (True, True, True), "mixed": (False, True, False)}
EVERYTHING = {"generators": True, "global_images": True}


def check_results(found):
    """Check that each stage ran, and gave what the code base makes of it."""
    stages = {"setup", "training", "metrics", "images", "generators", "saving"}
    assert stages <= {*found["counts"]}
    assert all(one["calls"] for stage, one in found["counts"].items() if stage != "outside")
    assert all(all(one.values()) for one in found["images"].values())
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


SAVED = {f"{kind}_save_checkpoint": True for kind in ("adapter", "generator")}
SETTINGS = {
    "own VEGAS": ("VEGAS", {"own_sets": True}, {"cls": TOKENS["mixed"]}),
    "own ESC-50": ("ESC50", {"own_sets": True}, {}),
    "few samples": (
        "VEGAS",
        {},
        {"options": [{"num_samples_per_class": 5}, *({"samples_per_node": 5, "node_split_id": n} for n in (0, 1))]},
    ),
    "nothing for testing": ("VEGAS", {}, {"options": ({"train_ratio": 0.9, "val_ratio": 0.1},) * 3}),
    "conditioned": ("VEGAS", {}, {"use_conditioned_vae": True, "generator_granularity": "unified"}),
    "checkpoints": ("VEGAS", {}, {**SAVED, "adapter_checkpoint_frequency": 1, "generator_checkpoint_frequency": 1}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_other_settings_and_data_sets(setting, base, tmp_path):
    name, edits, options = SETTINGS[setting]
    runs = Runs(base, tmp_path, one_call=True, **edits)
    runs.configure(nodes_of(name), **options)
    first = runs.run(generators=True)
    assert first["counts"]["setup"]["ast"] > 0
    found = runs.run(generators=True)
    assert [found["counts"][name]["ast"] for name in ("setup", "training", "metrics", "saving")] == [0, 0, 0, 0]
    assert [found["counts"][name]["decoded"] for name in ("setup", "training", "saving")] == [0, 0, 0]
    assert "outside" not in found["counts"]
    assert found["missing"] == found["in_memory"] == [0, 0, 0]
    assert all(loss > 0 for loss in found["generators"])


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
