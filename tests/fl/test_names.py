"""The modules and the errors of `embstore_fl`."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import embstore_fl
from embstore_fl import errors

ROOT = Path(embstore_fl.__file__).parent


def modules():
    """Return the syntax tree of each module, by its name; the packages themselves, which import all lazily, aside."""
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    return {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): ast.parse(path.read_text()) for path in paths
    }


def imports(tree):
    """Return the modules and names that a module imports: at the top, in functions, and for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_module_is_in_a_circle_of_imports():
    known = modules()
    order = [*TopologicalSorter({name: imports(tree) & known.keys() for name, tree in known.items()}).static_order()]
    assert set(order) == set(known)
    assert order.index("embstore_fl.datasets.selection") < order.index("embstore_fl.datasets.base")


def test_every_error_is_one_of_embstores_and_in_the_tree():
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), embstore_fl.errors.EmbstoreError)
        assert f"-- {name} (" in errors.__doc__


PUBLIC = {"embstore"} | {
    f"embstore.{room}" for room in ("analysis", "cache", "encoders", "exchange", "pipeline", "sources", "store")
}
PRIVATE = {
    # leaves, and the rules of keys and files
    "embstore._engine.format.keys",
    "embstore._engine.io.durable",
    "embstore._engine.io.filesystem",
    "embstore._engine.io.urls",
    "embstore._engine.lazy",
    "embstore._engine.sizes",
    # columns on the content of rows, and rows whose key changed
    "embstore._engine.format.source_columns",
    "embstore.exchange.npy",
    "embstore.store.embedding_store",
    "embstore.store.same_content",
    # rows as tensors over the store's map, for `stores` and `clientdata`
    "embstore._engine.format.record",
    "embstore._engine.io.mapping",
    "embstore._engine.read.dtypes",
    "embstore._engine.read.snapshot",
    "embstore._outputs.tensors",
    # files that become samples, and their stamps, for `datasets` and `a2v`
    "embstore._engine.io.stamps",
    "embstore._engine.io.threads",
    "embstore.encoders.audio",
    "embstore.pipeline.freshness",
    "embstore.sources.base",
    # the cache and the files of the audio-to-visual code base, for `a2v`
    "embstore.cache.coverage",
    "embstore.cache.prune",
    "embstore.cache.usage",
    "embstore.encoders.base",
    "embstore.exchange.import_options",
    "embstore.exchange.naming",
    "embstore.exchange.pt",
    "embstore.exchange.store_metadata",
    "embstore.exchange.memory_file",
    "embstore.pipeline.decode_ahead",
}


def test_what_it_uses_of_embstore_is_public_or_has_no_public_equivalent():
    used = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module.partition(".")[0] != "embstore":
                continue
            if node.module in PUBLIC:
                public = importlib.import_module(node.module).__all__
                used |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public}
            elif node.module not in ("embstore.errors", "embstore.torch"):  # public whole
                used.add(node.module)
    assert used == PRIVATE
