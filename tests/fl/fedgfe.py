"""Runs lucapalazzo/fedgfe's own server and clients, edited as docs/federated-learning.md says, with stand-ins.

``python -m tests.fl.fedgfe FOLDER`` reads ``run.json`` in the folder, and writes the counts of each stage into
``found.json``. The folder has the edited code in ``system``. Stand-ins exist for libraries that the project does not
need (diffusers, torchvision, wandb, …), for the author's adapters, which are not in the code base, and for weights.
"""

import importlib.abc
import importlib.machinery
import json
import os
import re
import runpy
import sys
import threading
import time
import types
import warnings
from collections import defaultdict
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

MISSING = re.compile(
    r"(SimpleITK|calmsize|cupy|cv2|cvxpy|diffusers|medpy|ml_collections|monai|opacus|tensorboardX|tensorflow|timm"
    r"|torchaudio|torchinfo|torchmetrics|torchtext|torchvision|torchviz|ujson|wandb)(\.|$)"
)
OTHERS = re.compile(  # main.py imports the models and servers of its other algorithms as well
    r"flcore\.servers\.(?!server(A2V|rewind|base)$)|flcore\.trainmodel\.(?!generators$|downstream(sinestesia|$))"
    r"|datautils\.dataset_generate$|utils\.(ballooning|result_utils)$"
)
AUTHORS = "flcore.trainmodel.Audio2Visual_NoData"
AST = "MIT/ast-finetuned-audioset-10-10-0.4593"


# -- the edits of the page -----------------------------------------------------------------------


def blocks(page):
    """Return the code blocks of the page's section on changes, in order."""
    section = page.split("\n## Changes in the code base\n")[1].split("\n## ")[0]
    return re.findall(r"```(?:python|py|diff|sh)\n(.*?)```", section, re.DOTALL)


def replaced(text, pattern, by, count=1):
    found, times = re.subn(pattern, lambda match: by, text, flags=re.MULTILINE)
    if times < count:
        raise ValueError(f"no {pattern!r} in the code base: the page does not fit it")
    return found


def edit(system, page, folders, *, one_call=False, own_sets=False):
    """Apply the edits that the page names to a copy of the code base, and nothing else.

    Parameters
    ----------
    system : Path
    page : str
    folders : mapping
        Folder on this machine for each folder in the page's examples, and in the code base.
    one_call : bool
        Apply the last edit, too: one call in place of the lines that load embeddings.
    own_sets : bool
        Give the code base's own data sets a base class, in place of an import of other ones.
    """
    sets, client_and_server, base, call, flag, condition, shape = blocks(page)
    server, client = system / "flcore/servers/serverA2V.py", system / "flcore/clients/clientA2V.py"
    imports, *classes = client_and_server.strip().split("\n\n\n")
    of_client, of_server = (one.removesuffix(" ...") for one in classes)
    text = server.read_text()
    if own_sets:
        sets = ""
        for name in ("VEGAS", "ESC50", "VGGSound"):
            path = system / f"datautils/dataset_{name.lower()}.py"
            statement = base.strip().removesuffix(" ...").replace("VEGAS", name)
            own = replaced(path.read_text(), rf"^class {name}Dataset\(Dataset\):$", statement)
            for found, folder in folders.items():
                own = own.replace(found, str(folder))
            path.write_text(own)
    else:
        text = replaced(text, r"^from datautils\.dataset_(vegas|esc50|vggsound) import .*\n", "")
    text = replaced(text, r"^from torchinfo import summary$", f"from torchinfo import summary\n{sets}\n{imports}\n")
    text = replaced(text, r"^class FedA2V\(FedRewind\):$", of_server)
    text = replaced(text, r'if hasattr\(client, "server_synthetic_samples"\):$', condition.strip())
    if one_call:
        call = f"                {call.strip()}\n\n"
        start = text.index("                # Try to load AST embeddings from cache first")
        stop = text.index('            elif node_config.dataset == "ESC50":')
        text = text[:start] + call + text[stop:]
        for after in ('            elif node_config.dataset == "VGGSound":', "            if node_dataset is None:"):
            text = text.replace(after, call + after, 1)
    else:
        text = replaced(text, r"self\.use_saved_audio_embeddings = getattr\(args.*\)$", flag.strip())
    for found, folder in folders.items():
        text = text.replace(found, str(folder))
    server.write_text(text)
    text = client.read_text()
    text = replaced(text, r"^class clientA2V\(Client\):$", f"{imports}\n\n\n{of_client}")
    text = replaced(text, r"clip_embeddings\[idx\]\.detach\(\)\.cpu\(\)$", shape.strip())
    client.write_text(text)
    if sys.version_info < (3, 12):  # the code base is written for 3.12: a quote of the same kind inside an f-string
        for path in system.rglob("dataset_vegas.py"):
            path.write_text(path.read_text().replace("f'{sample['file_id']}:", 'f\'{sample["file_id"]}:'))


# -- stand-ins -----------------------------------------------------------------------------------


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of which every name is a mock."""

    def find_spec(self, name, path=None, target=None):
        if MISSING.match(name) or OTHERS.match(name):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _mock(spec.name, name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


def _mock(module, name):
    if name.startswith("__"):
        raise AttributeError(name)
    known = {"__init__": lambda self, *args, **options: None, "__getattr__": lambda self, name: _mock(module, name)}
    return type(name, (), known) if name[0].isupper() else MagicMock(name=f"{module}.{name}")


def spectrogram(waveform, window, *, frame_length, hop_length, fft_length, preemphasis, mel_filters, mel_floor, **more):
    """Return what transformers' function of this name does, from all frames at once."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, frame_length)[::hop_length].astype(np.float64)
    frames -= frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= preemphasis * frames[:, :-1].copy()
    frames[:, 0] *= 1 - preemphasis
    power = np.abs(np.fft.rfft(frames * window, fft_length)) ** 2
    return np.log(np.maximum(mel_floor, mel_filters.T @ power.T)).astype(np.float32)


def install_stand_ins():
    """Install the modules, and small adapters, a diffusion model and a classifier of images in them."""
    import torch
    import transformers.models.audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer as ast

    importlib.import_module("tests.fl.fedgfe_imports")  # before a stand-in of torchvision can confuse transformers
    sys.meta_path.insert(0, StandIns())
    ast.spectrogram = spectrogram

    class AdamW(torch.optim.AdamW):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, fused=True)  # ten times faster here

    torch.optim.AdamW = AdamW

    class Adapter(torch.nn.Module):
        def __init__(self, input_dim=768, hidden_dims=(), output_dim=768, **more):
            super().__init__()
            self.layer = torch.nn.Linear(input_dim, output_dim)

        def forward(self, x):
            return self.layer(x.mean(1, keepdim=True))

    class MAPBlock(torch.nn.Module):
        def __init__(self, n_latents=1, embed_dim=768, n_heads=8):
            super().__init__()
            self.latents = torch.nn.Parameter(torch.zeros(n_latents, embed_dim))

        def forward(self, x):
            return (x + self.latents).squeeze(1)

    class FluxPipeline:
        def set_progress_bar_config(self, **options):
            pass

        def to(self, device):
            return self

        @classmethod
        def from_pretrained(cls, name, torch_dtype=None):
            return cls()

        def __call__(self, prompt_embeds, pooled_prompt_embeds, **options):
            assert prompt_embeds.shape[1:] == (17, 4096), prompt_embeds.shape
            assert pooled_prompt_embeds.shape[1:] == (768,), pooled_prompt_embeds.shape
            return types.SimpleNamespace(images=torch.zeros(len(prompt_embeds), 3, 4, 4))

    class ToPILImage:
        def __call__(self, image):
            from PIL import Image

            return Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy())

    class Classifier:
        device = torch.device("cpu")
        model = torch.nn.Identity()

        def __call__(self, files, candidate_labels):
            assert all(os.path.exists(file) for file in files)
            return [[{"label": next(iter(candidate_labels)), "score": 1.0}] for _ in files]

    models = f"{AUTHORS}.src.models"
    for name, values in (
        (f"{models}.projection", {"Adapter": Adapter, "ASTAdapter": Adapter}),
        (f"{models}.multi_head_attention", {"MAPBlock": MAPBlock}),
        ("diffusers", {"FluxPipeline": FluxPipeline}),
        ("torchvision.transforms", {"ToPILImage": ToPILImage}),
    ):
        module = importlib.import_module(name)
        for key, value in values.items():
            setattr(module, key, value)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    import flcore.trainmodel.downstreamsinestesia as base

    base.pipeline = lambda *args, **options: Classifier()


def make_ast(home):
    """Put a small AST with random weights into a cache of Hugging Face, under the name of the real one."""
    import torch
    import transformers

    folder = home / "hub" / f"models--{AST.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=768, num_hidden_layers=0, num_attention_heads=4, intermediate_size=64, num_labels=2
    )
    transformers.ASTModel(config).eval().save_pretrained(folder / "snapshots" / ("0" * 40))
    warnings.filterwarnings("ignore", "At least one mel filter")  # AST's lowest are narrower than the spectrum's bins
    transformers.ASTFeatureExtractor().save_pretrained(folder / "snapshots" / ("0" * 40))


# -- counts --------------------------------------------------------------------------------------


class Counts:
    """Clips that were decoded, and clips that AST got, in each stage."""

    def __init__(self):
        self.stages = ["outside"]
        self.found = defaultdict(lambda: {"decoded": 0, "ast": 0, "calls": 0, "seconds": 0.0})
        self.peak = 0

    def add(self, name, number=1):
        self.found[self.stages[-1]][name] += number

    def stage(self, name, function):
        def within(*args, **options):
            self.stages.append(name)
            self.found[name]["calls"] += 1
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.stages.pop()
                self.found[name]["seconds"] += time.perf_counter() - started

        return within

    def watch(self, owner, methods):
        for method, name in methods.items():
            setattr(owner, method, self.stage(name, getattr(owner, method)))

    def measure(self):
        """Keep the peak of the anonymous memory, in a thread."""

        def look():
            while True:
                self.peak = max(self.peak, anonymous())
                time.sleep(0.002)

        threading.Thread(target=look, daemon=True).start()


def anonymous():
    """Return the bytes of anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise LookupError("RssAnon")


def watch(counts):
    import transformers
    from flcore.clients.clientA2V import clientA2V
    from flcore.servers.serverA2V import FedA2V
    from flcore.trainmodel.downstreamsinestesiaadapters import DownstreamSinestesiaAdapters

    import embstore.encoders.audio as audio

    forward, decode = transformers.ASTModel.forward, audio.decode_audio

    def counted_forward(self, *args, **options):
        counts.add("ast", len(args[0] if args else options["input_values"]))
        return forward(self, *args, **options)

    def counted_decode(*args, **options):
        counts.add("decoded")
        return decode(*args, **options)

    transformers.ASTModel.forward, audio.decode_audio = counted_forward, counted_decode
    counts.watch(
        FedA2V,
        {
            "create_clients": "setup",
            "save_audio_embeddings": "saving",
            "generate_global_images_with_aggregated_adapters": "global images",
        },
    )
    counts.watch(
        clientA2V,
        {
            "train_a2v": "training",
            "get_audio_embeddings_from_dataset": "images",
            "collect_embeddings_for_generator_training": "generators",
        },
    )
    counts.watch(DownstreamSinestesiaAdapters, {"train_metrics": "metrics"})
    return FedA2V, clientA2V


# -- a run ---------------------------------------------------------------------------------------


def run(folder, options):
    """Run main.py with a configuration, then generator training and the global images. Return what was counted."""
    os.chdir(folder / "work")
    sys.path.insert(0, str(folder / "system"))
    install_stand_ins()
    counts = Counts()
    server_class, client_class = watch(counts)
    if options.get("keep_nothing"):
        client_class.audio_embeddings_dataset_cache = lambda *args, **more: None
        client_class.store_audio_embeddings = lambda *args, **more: None
    servers = []
    init = server_class.__init__

    def remembered(self, *args, **more):
        servers.append(self)
        init(self, *args, **more)

    server_class.__init__ = remembered
    counts.measure()
    sys.argv = ["main.py", "--config", str(folder / "config.json")]
    runpy.run_path(str(folder / "system" / "main.py"), run_name="__main__")
    (server,) = servers
    peak = counts.peak
    images = {
        client.id: {split: len(client.generate_images(split=split)[f"on_{split}"] or ()) for split in ("val", "test")}
        for client in server.clients
    }
    common = server.generate_global_images_with_aggregated_adapters("val") if options.get("global_images") else None
    losses = [client.train_node_generator() for client in server.clients] if options.get("generators") else []
    datasets = [client.node_data.dataset for client in server.clients]
    return {
        "counts": counts.found,
        "peak": peak,
        "images": images,
        "global": None if common is None else len(common),
        "generators": losses,
        "missing": [len(dataset.ast_missing) for dataset in datasets],
        "in_memory": [len(dataset.audio_embs.written) for dataset in datasets],
        "samples": [len(dataset) for dataset in datasets],
        "shapes": [
            list(dataset.train[0]["audio_emb"].shape) if "audio_emb" in dataset.train[0] else None
            for dataset in datasets
        ],
        "cls": [client.use_cls_token_only for client in server.clients],
    }


def main(folder):
    """Do a run of a folder in this process. Write ``found.json`` and ``log``."""
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    found = run(folder, json.loads((folder / "run.json").read_text()))
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
