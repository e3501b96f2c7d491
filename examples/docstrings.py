"""Texts with classes, from the docstrings of the standard library, which every Python has.

The source files are parsed, and never imported.
"""

import ast
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import embstore

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "turtledemo"}


class Docstrings:
    """The docstrings of the standard library's top-level modules that `wanted` accepts.

    ``file_id`` is the qualified name (``json.decoder.JSONDecoder``), the class is the top-level module (``json``).
    """

    name = "standard-library-docstrings"

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self.wanted = wanted

    def __iter__(self) -> Iterator[embstore.Sample]:
        texts = dict(self._texts())
        for key, text in sorted(texts.items(), key=lambda item: len(item[1])):  # like lengths pad less
            yield embstore.Sample(key, lambda text=text: text, embstore.digest_of(text))

    def _texts(self) -> Iterator[tuple[embstore.Key, str]]:
        root = Path(sysconfig.get_path("stdlib"))
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if SKIPPED & set(parts) or not self.wanted(parts[0]) or parts[0].startswith("_"):
                continue
            module = ".".join(parts).removesuffix(".__init__")
            for name, text in _docstrings(ast.parse(file.read_bytes()), module):
                yield embstore.Key(name, parts[0]), text


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield name, text
    for child in ast.iter_child_nodes(node):
        inner = getattr(child, "name", "") if isinstance(child, ast.ClassDef | ast.FunctionDef) else ""
        yield from _docstrings(child, f"{name}.{inner}" if inner else name)


if __name__ == "__main__":
    print(sum(1 for _ in Docstrings(lambda module: True)))
