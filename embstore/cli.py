"""The command `embstore`: embed, why, check and merge, each a thin layer over the function of that name."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embstore.errors import EmbstoreError

if TYPE_CHECKING:
    from embstore.encoders.base import BaseEncoder
    from embstore.sources.base import Source

__all__ = ["main"]

_OK, _FAILED, _REFUSED = 0, 1, 2
_OF_FOLDERS = ("pattern", "suffix")
_OF_TABLES = ("path_column", "text_column", "class_column", "id_column", "root")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    0: all that was asked for is done. 1: some samples failed, a lookup missed, or a canary differs. 2: refused, with
    the reason on standard error.
    """
    options = _parser().parse_args(arguments)
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(options.verbose, 2)]
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("embstore").setLevel(level)
    try:
        status: int = options.run(options)
        return status
    except (EmbstoreError, OSError, ValueError, ImportError) as error:
        if options.verbose:
            logging.getLogger("embstore").exception("refused")
        print(f"embstore: {error}", file=sys.stderr)
        return _REFUSED
    except KeyboardInterrupt:
        print("embstore: interrupted; what was encoded is stored, the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="embstore", description="Run a frozen encoder once, and keep its embeddings.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice for all of it")
        return added

    embed = command("embed", _embed, "Encode the samples that a cache does not have, or has of other content.")
    _add_what(embed)
    embed.add_argument("--batch-size", type=int, default=32, metavar="N")
    embed.add_argument("--workers", type=int, metavar="N", help="threads that read and decode")
    embed.add_argument("--shard", type=_shard, metavar="I/N", help="only part I (from 0) of N, into a store of its own")
    embed.add_argument("--delete-vanished", action="store_true", help="delete rows whose sample is gone")
    embed.add_argument("-q", "--quiet", action="store_true", help="no progress bar")

    why = command("why", _why, "Say why a lookup misses, attribute by attribute.")
    _add_what(why)

    check = command("check", _check, "Encode a few stored samples again, and report the largest difference.")
    _add_what(check)
    check.add_argument("-n", type=int, default=8, help="how many samples (default: 8)")
    check.add_argument("--tolerance", type=float, help="largest difference relative to the largest number of a row")

    merge = command("merge", _merge, "Put the rows of several stores of one config into one, in one commit.")
    merge.add_argument("dest", type=Path)
    merge.add_argument("parts", type=Path, nargs="+")
    merge.add_argument("--if-exists", choices=["error", "skip", "replace"], default="error")
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which encoder, which samples and which cache."""
    parser.add_argument("source", type=Path, help="a folder, or a table: .csv, .tsv or .parquet")
    parser.add_argument("--name", required=True, help="name of the data set; part of what rows are found by")
    parser.add_argument("--model", required=True, help="a model's folder, or its id on the hub")
    parser.add_argument("--cache", required=True, type=Path, help="folder of the stores")
    source = parser.add_argument_group("samples")
    source.add_argument("--pattern", help="layout of a folder: '{class}_*.flac' (default: a sub-folder a class)")
    source.add_argument("--suffix", action="append", metavar=".EXT", help="only files of this suffix; may be repeated")
    source.add_argument("--path-column", metavar="NAME", help="of a table: names of files")
    source.add_argument("--text-column", metavar="NAME", help="of a table: texts")
    source.add_argument("--class-column", metavar="NAME", help="of a table: classes")
    source.add_argument("--id-column", metavar="NAME", help="of a table: what stands before the class in a key")
    source.add_argument("--root", type=Path, help="folder that a table's files are relative to")
    model = parser.add_argument_group("encoder")
    model.add_argument("--revision", help="of a model on the hub")
    model.add_argument("--id", help="name of the model in the config (default: its id, or its folder's name)")
    model.add_argument("--fields", type=_names, help="such as mean,layer_6.mean (default: the model's own)")
    model.add_argument("--dtype", default="float32", help="that is stored: float32, float16 or bfloat16")
    model.add_argument("--duration", type=float, metavar="SECONDS", help="clips are cut, or padded with zeros")
    model.add_argument("--max-tokens", type=int, metavar="N", help="texts are cut")
    model.add_argument("--modality", choices=["audio", "image", "text"], help="of a model of two")
    model.add_argument("--compute-dtype", default="float32", help="float32, or bfloat16 or float16 by autocast")
    model.add_argument("--preprocess-version", type=int, default=1, metavar="N", help="raise it to encode anew")
    model.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    return int(index), int(count)


def _source(options: argparse.Namespace) -> Source:
    from embstore.sources import Folder, Table

    table = options.source.suffix.lower() in (".csv", ".tsv", ".parquet")
    for name in _OF_FOLDERS if table else _OF_TABLES:
        if getattr(options, name) is not None:
            found, wanted = ("a table", "a folder") if table else ("a folder", "a table")
            raise ValueError(f"--{name.replace('_', '-')} is for {wanted}, and {options.source} is taken for {found}")
    if table:
        return Table(
            options.source,
            name=options.name,
            path=options.path_column,
            text=options.text_column,
            class_name=options.class_column,
            file_id=options.id_column,
            root=options.root,
        )
    return Folder(options.source, name=options.name, pattern=options.pattern, suffixes=options.suffix)


def _encoder(options: argparse.Namespace) -> BaseEncoder:
    from embstore.encoders import from_pretrained

    return from_pretrained(
        options.model,
        revision=options.revision,
        id=options.id,
        fields=options.fields,
        dtype=options.dtype,
        duration=options.duration,
        max_tokens=options.max_tokens,
        modality=options.modality,
        compute_dtype=options.compute_dtype,
        preprocess_version=options.preprocess_version,
        device=options.device,
    )


def _embed(options: argparse.Namespace) -> int:
    from embstore.pipeline import embed

    result = embed(
        _source(options),
        _encoder(options),
        options.cache,
        batch_size=options.batch_size,
        workers=options.workers,
        shard=options.shard,
        vanished="delete" if options.delete_vanished else "report",
        progress=not options.quiet and sys.stderr.isatty() and find_spec("tqdm") is not None,
    )
    print(result.reason)
    print(result)
    return _OK if result.ok else _FAILED


def _why(options: argparse.Namespace) -> int:
    from embstore.explanation import why

    encoder = _encoder(options)
    found = why({**encoder.config, "dataset": options.name}, options.cache, fields=encoder.fields)
    print(found)
    return _OK if found.hit else _FAILED


def _check(options: argparse.Namespace) -> int:
    from embstore.cache import Cache
    from embstore.canary import check

    encoder = _encoder(options)
    with Cache(options.cache).open({**encoder.config, "dataset": options.name}) as store:
        report = check(store, encoder, _source(options), n=options.n, tolerance=options.tolerance)
    print(report)
    return _OK if report.ok else _FAILED


def _merge(options: argparse.Namespace) -> int:
    from embstore.merging import merge

    result = merge(options.dest, *options.parts, if_exists=options.if_exists)
    print(f"{options.dest}: {result.appended:,} rows added, {result.skipped:,} skipped")
    return _OK
