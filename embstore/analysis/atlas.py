"""Show a view in the program embedding-atlas: write a Parquet file, and start the program."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from embstore._engine.rng import Rng
from embstore._outputs.projection import Method
from embstore.errors import EmptyViewError, MissingLibraryError
from embstore.store.as_view import as_view
from embstore.store.embedding_store import EmbeddingStore, View

logger = logging.getLogger("embstore")

_PROGRAM = "embedding-atlas"


class Exploration:
    """A running embedding-atlas and its file. A context manager, whose exit ends the program and removes the file.

    Parameters
    ----------
    view : View or EmbeddingStore
    field : str, optional
    method : {"pca", "umap"}
        The projection, which is computed here and not by embedding-atlas.
    options : sequence of str
        More options of its command line, such as ``["--port", "5056"]``.
    rng : int or numpy.random.Generator, optional
        By default each call uses seed 0.

    Attributes
    ----------
    path : Path
        The Parquet file, in a temporary folder.
    process : subprocess.Popen

    Raises
    ------
    MissingLibraryError
        embedding-atlas is not installed.
    EmptyViewError, NonFiniteError, ShapeError
    """

    def __init__(
        self,
        view: View | EmbeddingStore,
        *,
        field: str | None = None,
        method: Method = "pca",
        options: Sequence[str] = (),
        rng: Rng | None = None,
    ) -> None:
        view = as_view(view)
        program = _installed()
        if not len(view):
            raise EmptyViewError(view.store.path, "explore")
        self._folder = tempfile.TemporaryDirectory(prefix="embstore-")
        try:
            file = Path(self._folder.name) / "view.parquet"
            self.path = view.to_parquet(file, field=field, projection=method, rng=rng)
            columns = ["--vector", "vector", "--x", "x", "--y", "y"]
            self.process = subprocess.Popen([program, str(self.path), *columns, *options])
        except BaseException:
            self._folder.cleanup()
            raise
        logger.info("%s shows %d rows of %s", _PROGRAM, len(view), view.store.path)

    def wait(self) -> int:
        """Wait until the program ends, and return its exit status."""
        return self.process.wait()

    def close(self) -> None:
        """End the program, and remove its file."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Exploration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def explore(
    view: View | EmbeddingStore,
    *,
    field: str | None = None,
    method: Method = "pca",
    options: Sequence[str] = (),
    rng: Rng | None = None,
) -> int:
    """Show a view in embedding-atlas, and wait until the program ends or Ctrl-C is pressed.

    The parameters are those of `Exploration`, which does not wait.

    Returns
    -------
    int
        The exit status of the program, or 0 after Ctrl-C.

    Raises
    ------
    MissingLibraryError
        embedding-atlas is not installed.
    EmptyViewError, NonFiniteError, ShapeError
    """
    with Exploration(view, field=field, method=method, options=options, rng=rng) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:
            return 0


def _installed() -> str:
    """Return the path of the program, beside this interpreter or in the PATH."""
    for folder in (str(Path(sys.executable).parent), None):
        if found := shutil.which(_PROGRAM, path=folder):
            return found
    raise MissingLibraryError(_PROGRAM, "atlas", "to explore rows in the browser")
