"""The commands `embed`, `why` and `check`. They take an encoder, samples and a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from embstore.cli.exits import DONE, PARTLY
from embstore.cli.options import PLACE, command, quiet, to_json, verbose
from embstore.cli.output import print_answer, print_result
from embstore.cli.sources import SOURCE, is_part, name_of, names, source_of

if TYPE_CHECKING:
    from embstore import Difference
    from embstore.encoders import BaseEncoder


def _shard(text: str) -> tuple[int, int]:
    """Split ``I/N`` at the slash."""
    index, _, count = text.partition("/")
    try:
        return int(index), int(count)
    except ValueError:
        raise click.BadParameter(f"expected I/N, such as 0/4, found {text!r}") from None


_WHAT: Final = (
    *SOURCE,
    click.option("--model", required=True, help="Folder of the model, or its id on the hub."),
    click.option("--cache", required=True, type=PLACE, help="Folder of the stores, or a URL in a bucket."),
    click.option("--revision", help="Revision of a model on the hub."),
    click.option("--id", help="Name of the model in the config (default: its own id)."),
    click.option("--fields", type=names, metavar="NAMES", help="mean,layer_6.mean, … (default: those of the model)."),
    click.option("--dtype", default="float32", help="Stored dtype: float32, float16 or bfloat16."),
    click.option("--duration", type=float, metavar="SECONDS", help="Length to cut clips to, or to pad with zeros."),
    click.option("--max-tokens", type=int, metavar="N", help="Texts are cut to N tokens."),
    click.option("--modality", type=click.Choice(["audio", "image", "text"]), help="Modality of a model with two."),
    click.option("--compute-dtype", default="float32", help="float32, or bfloat16 or float16 by autocast."),
    click.option("--preprocess-version", type=int, default=1, metavar="N", help="Increase it to encode all again."),
    click.option("--device", help="cpu, cuda, cuda:1 or mps (default: the fastest that is available)."),
)


def _what(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the encoder, the samples and the cache."""
    for option in reversed(_WHAT):
        function = option(function)
    return function


def _encoder(given: dict[str, Any]) -> BaseEncoder:
    from embstore.encoders import from_pretrained

    own = ("revision", "id", "fields", "dtype", "duration", "max_tokens", "modality", "compute_dtype")
    return from_pretrained(given["model"], **{name: given[name] for name in (*own, "preprocess_version", "device")})


@command("embed")
@_what
@click.option("--batch-size", type=int, default=32, metavar="N", help="Samples that are encoded at once.")
@click.option("--workers", type=int, metavar="N", help="Number of threads that read and decode.")
@click.option("--shard", type=_shard, metavar="I/N", help="Encode only part I (from 0) of N, into its own store.")
@click.option("--compare", type=click.Choice(["stamp", "content"]), default="stamp", help="content reads all files.")
@click.option("--delete-vanished", is_flag=True, help="Delete rows whose sample is not in the source.")
@click.option("--force", is_flag=True, help="Replace rows from another folder, and delete most rows if need be.")
@quiet
@to_json
def embed(
    batch_size: int,
    workers: int | None,
    shard: tuple[int, int] | None,
    compare: Literal["stamp", "content"],
    delete_vanished: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Encode the samples that a cache lacks, and those whose content has changed.

    SOURCE is a folder, or a table (.csv, .tsv or .parquet). With --dataset it is the root folder of the data set.
    """
    from embstore import embed

    source, encoder = source_of(given), _encoder(given)
    if delete_vanished and is_part(given):
        raise ValueError(
            "--delete-vanished would delete all rows outside this part of the data set; drop one of the options"
        )
    result = embed(
        source,
        encoder,
        given["cache"],
        batch_size=batch_size,
        workers=workers,
        shard=shard,
        compare=compare,
        vanished="delete" if delete_vanished else "ignore" if is_part(given) else "report",
        force=force,
        progress=False if quiet else None,
    )
    return print_result(as_json, result, f"{result.reason}\n{result}")


@command("why")
@_what
@to_json
def why(as_json: bool, **given: Any) -> int:
    """Show why a lookup misses, attribute by attribute.

    Differences of settings that are at their defaults on both sides are left out. -v shows all.
    """
    from embstore import why

    encoder = _encoder(given)
    config = {**encoder.config, "dataset": name_of(given)}
    found = why(config, given["cache"], fields=encoder.fields, settings="all" if verbose() else "notable")
    lookup = found.lookup
    answer = {"hit": found.hit, "path": lookup.path, "missing_fields": found.missing_fields}
    answer["nearest"] = None if lookup.nearest is None else lookup.nearest.path
    answer["differences"] = [_sides(difference) for difference in lookup.differences]
    print_answer(as_json, answer, str(found))
    return DONE if found.hit else PARTLY


def _sides(difference: Difference) -> dict[str, Any]:
    """Return the wanted and the stored value. A side without the attribute is left out."""
    from embstore._engine.format.config import ABSENT

    sides = {"wanted": difference.expected, "stored": difference.found}
    return {"name": difference.name, **{side: value for side, value in sides.items() if value is not ABSENT}}


@command("check")
@_what
@click.option("-n", "n", type=int, default=8, metavar="N", show_default=True, help="Number of samples.")
@click.option("--tolerance", type=float, help="Largest accepted difference, relative to the largest number of a row.")
@to_json
def check(n: int, tolerance: float | None, as_json: bool, **given: Any) -> int:
    """Encode a few stored samples again, and report the largest difference."""
    from embstore import Cache, check

    encoder = _encoder(given)
    with Cache(given["cache"]).open({**encoder.config, "dataset": name_of(given)}) as store:
        report = check(store, encoder, source_of(given), n=n, tolerance=tolerance)
    return print_result(as_json, report)
