"""Files under a folder, sorted, with keys from their paths."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

from embstore._engine.format.arguments import function_of, text_list
from embstore._engine.format.keys import Key
from embstore._engine.format.record import Origin
from embstore._engine.io.urls import local_path
from embstore.errors import EmptySourceError, KeyFormatError
from embstore.sources.base import FileSample, checked_name, distinct, file_sample

logger = logging.getLogger("embstore")

_TOKEN: Final = re.compile(r"(\{[^{}]*\}|(?<![^/])\*\*/|\*\*?)")

_MEANINGS: Final = {
    "{class}": "(?P<class>[^/]+?)",  # lazy: as short as possible on both sides
    "{file_id}": "(?P<file_id>.+)",
    "**/": "(?:.*/)?",
    "**": ".*",
    "*": "[^/]*",
}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return a template over relative POSIX paths as a regular expression for `fullmatch`.

    Raises
    ------
    ValueError
        A word in braces is unknown or occurs twice.

    Examples
    --------
    >>> compile_pattern("{class}_*.flac").fullmatch("tabla_dhec.flac")["class"]
    'tabla'
    """
    if not isinstance(pattern, str):
        raise TypeError(f"expected a pattern as text, found {pattern!r:.200}")
    parts = _TOKEN.split(pattern)
    for token in parts[1::2]:
        if token not in _MEANINGS:
            raise ValueError(f"pattern {pattern!r}: there is no {token}, only {{class}} and {{file_id}}")
        if token[0] == "{" and parts.count(token) > 1:
            raise ValueError(f"pattern {pattern!r}: {token} stands in it twice")
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = map(_MEANINGS.__getitem__, parts[1::2])
    return re.compile("".join(parts), re.DOTALL)  # a file's name may hold a line break


_BY_CLASS: Final = compile_pattern("{class}/**")
_UNLABELLED: Final = compile_pattern("**")


def without_suffix(path: str) -> str:
    """Return a POSIX path without its last suffix."""
    return posixpath.splitext(path)[0]


class Folder:
    """The files under a folder, sorted by their relative paths. Each iteration lists the folder again.

    Hidden files and folders (with a leading dot) are left out. Links are followed, except to a folder that contains
    the link. A broken link is a sample that can't be read, so a run reports it.

    Parameters
    ----------
    path : path_like
    name : str
        Name of the data set.
    pattern : str, optional
        Template of relative POSIX paths. ``{class}`` matches a class (within one part, as short as possible),
        ``{file_id}`` a file_id (may span parts), ``*`` any text within one part, ``**`` any text, and ``**/`` zero or
        more folders. All other characters match themselves. Files that don't match are left out, and their number is
        logged. Without ``{class}``, samples have no class, and bare file_ids as keys.

        By default each first folder is a class, and files beside these folders are left out, with a logged warning.
        If the folder has no subfolders with files, samples have no class.
    suffixes : iterable of str, optional
        Suffixes of files to take, such as ``(".flac", ".wav")``, in any case.
    exclude : iterable of str
        Templates, as for `pattern`, of relative paths to leave out, such as ``("tmp", "**.txt")``: of files, or of
        folders with all that is in them.
    file_id : callable, optional
        Function from the relative path (a `PurePosixPath`) to the file_id. The default removes the last suffix.

    Attributes
    ----------
    name : str
    root : Path
        The folder, absolute; links are not resolved.
    whole : bool
        True: it lists all samples of the data set.
    origin : Origin

    Raises
    ------
    ValueError
        A pattern has an unknown word or one word twice. Both ``{file_id}`` and `file_id` are given. A suffix lacks
        its dot.
    EmptySourceError
        On iteration: the folder does not exist, or no file is to be taken.
    SourceError
        On iteration: folders can't be listed, or names of files make no keys: a class with a colon, or a name that is
        not UTF-8. The error names all of them. Else a run would take the rows of these samples for outdated.
    DuplicateKeysError
        On iteration: two files have one key, such as ``a.wav`` and ``a.flac``.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "dog").mkdir()
    >>> _ = (root / "dog" / "001.wav").write_bytes(b"")
    >>> [str(sample.key) for sample in Folder(root, name="pets", suffixes=[".wav"])]
    ['dog/001:dog']
    """

    whole = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        pattern: str | None = None,
        suffixes: Iterable[str] | None = None,
        exclude: Iterable[str] = ("lost+found",),
        file_id: Callable[[PurePosixPath], str] | None = None,
    ) -> None:
        self.name = checked_name(name)
        self.root = local_path(path).absolute()
        self.origin = Origin(kind="folder", root=str(self.root))
        self._pattern = pattern
        self._layout = None if pattern is None else compile_pattern(pattern)
        self._suffixes = None if suffixes is None else _checked_suffixes(suffixes)
        self._exclude = [compile_pattern(template) for template in _list_of("templates", exclude)]
        self._file_id = None if file_id is None else function_of("file_id", file_id)
        if file_id is not None and self._layout is not None and "file_id" in self._layout.groupindex:
            raise ValueError(f"pattern {pattern!r} gives the file_id already: leave out file_id=")

    def __iter__(self) -> Iterator[FileSample]:
        return distinct(
            self._found(),
            empty="there are no files in it",
            path=self.root,
            hint="rename them, make them readable, or leave them out with exclude=",
            twice="take files of one kind, as with suffixes=['.wav'], or keep the suffix with file_id=str",
        )

    def _found(self) -> Iterator[tuple[str, Callable[..., tuple[Key, FileSample]], tuple[Any, ...]]]:
        refused: list[tuple[str, str]] = []
        for fit, entry in self._chosen(refused):
            yield entry.path, self._sample, (fit, entry)
        for folder, reason in refused:
            yield folder, _refuse, (folder, reason)

    def _sample(self, fit: re.Match[str], entry: os.DirEntry[str]) -> tuple[Key, FileSample]:
        words, relative = fit.groupdict(), fit.string
        if (file_id := words.get("file_id")) is None:
            file_id = self._file_id(PurePosixPath(relative)) if self._file_id else without_suffix(relative)
        key = Key.parse(Key(file_id, words.get("class")))
        return key, file_sample(key, Path(entry.path), entry.stat, root=self.root)

    def _chosen(self, refused: list[tuple[str, str]]) -> list[tuple[re.Match[str], os.DirEntry[str]]]:
        """Return the match of the relative path and the entry of each file to take, sorted."""
        files = self._files(refused)
        layout = self._layout or (_BY_CLASS if any("/" in relative for relative, _ in files) else _UNLABELLED)
        chosen = [(fit, entry) for relative, entry in files if (fit := layout.fullmatch(relative))]
        if self._layout is not None:
            self._tell(len(files), len(chosen), f"fit {self._pattern!r}")
        elif beside := len(files) - len(chosen):
            logger.warning("%s: %d file(s) beside the folders of the classes are left out", self.root, beside)
        return chosen

    def _files(self, refused: list[tuple[str, str]]) -> list[tuple[str, os.DirEntry[str]]]:
        """Return the files that have one of the suffixes. Add the folders that can't be listed to `refused`."""
        if not self.root.is_dir():
            raise EmptySourceError(self.root, "it is a file" if self.root.exists() else "there is no such folder")
        files = sorted(self._walk(refused), key=lambda file: file[0])
        if self._suffixes is None:
            return files
        chosen = [(relative, entry) for relative, entry in files if entry.name.lower().endswith(self._suffixes)]
        self._tell(len(files), len(chosen), f"end in {' or '.join(self._suffixes)}")
        return chosen

    def _walk(self, refused: list[tuple[str, str]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield the relative path and entry of each file, unsorted. Only links are looked up with a call of `stat`."""
        above: frozenset[tuple[int, int]] = frozenset()
        folders = [(str(self.root), "", above)]
        while folders:
            folder, prefix, above = folders.pop()
            try:
                found = os.stat(folder)
                with os.scandir(folder) as listed:
                    entries = list(listed)
            except OSError as error:
                refused.append((folder, error.strerror or str(error)))
                continue
            if (found.st_dev, found.st_ino) in above:  # a link to a folder that contains it
                continue
            above |= {(found.st_dev, found.st_ino)}
            for entry in entries:
                relative = prefix + entry.name
                if entry.name.startswith(".") or any(left_out.fullmatch(relative) for left_out in self._exclude):
                    continue
                if _is_folder(entry):
                    folders.append((entry.path, relative + "/", above))
                elif _is_file(entry):
                    yield relative, entry

    def _tell(self, files: int, chosen: int, what: str) -> None:
        """Log the number of files that were left out. Raise EmptySourceError if no file is left."""
        if files and not chosen:
            raise EmptySourceError(self.root, f"none of its {files:,} file(s) is one of those that {what}")
        if chosen < files:
            logger.info("%s: %d of %d file(s) are left out: they don't %s", self.root, files - chosen, files, what)

    def __repr__(self) -> str:
        pattern = f", {self._pattern!r}" if self._pattern is not None else ""
        return f"<Folder {self.name!r}: {str(self.root)!r}{pattern}>"


def _list_of(what: str, texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str):
        raise TypeError(f"expected a list of {what}, found one: {texts!r}")
    return text_list(what, texts, in_order=False)


def _checked_suffixes(suffixes: Iterable[str]) -> tuple[str, ...]:
    lowered = tuple(suffix.lower() for suffix in _list_of("suffixes", suffixes))
    for suffix in lowered:
        if not suffix.startswith("."):
            raise ValueError(f"expected suffixes such as '.wav', found {suffix!r}")
    return lowered


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example. Reading it fails.
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return True for files and broken links, and False for pipes and devices, whose reading might never end."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _refuse(folder: str, reason: str) -> NoReturn:
    raise KeyFormatError(folder, reason)
