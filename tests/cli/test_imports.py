"""What the command imports of the library, and that the library does not import the command."""

import ast
from pathlib import Path

import embstore

ROOT = Path(embstore.__file__).parent
PUBLIC = {"embstore", "embstore.errors", "embstore.torch"} | {
    f"embstore.{room}" for room in ("analysis", "cache", "encoders", "exchange", "pipeline", "sources", "store")
}
INSIDE = ("embstore.cli.", "embstore._engine.io.", "embstore._engine.format.")
LEAVES = {f"embstore._engine.{leaf}" for leaf in ("lazy", "progress", "sizes", "version")}
# The type of what `Cache.stats` returns has no public name.
TYPES = {("caches.py", "embstore.cache.prune")}


def imports(path):
    """Yield the modules that a module imports, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_command_uses_public_names_formats_files_and_leaves():
    found = {(path.name, name) for path in (ROOT / "cli").glob("*.py") for name in imports(path)}
    own = {(path, name) for path, name in found if name.partition(".")[0] in ("embstore", "embstore_fl")}
    private = {(path, name) for path, name in own if name not in PUBLIC | LEAVES and not name.startswith(INSIDE)}
    assert private == TYPES


def test_nothing_imports_the_command():
    paths = [path for path in ROOT.rglob("*.py") if path.parent.name != "cli" and path.name != "__main__.py"]
    assert len(paths) > 50
    assert [path for path in paths if any(name.startswith("embstore.cli") for name in imports(path))] == []
