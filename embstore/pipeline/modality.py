"""The modality of samples: a text encoder must not read recordings, nor store a broken one as a text."""

from __future__ import annotations

from embstore.encoders.families import Modality
from embstore.encoders.kinds import fits, kind_of_file
from embstore.errors import ModalityError
from embstore.pipeline.run import Samples
from embstore.sources.base import AnySample, FileSample
from embstore.sources.items import LoadedSample


def _kind(sample: AnySample) -> str | None:
    """Return the kind of a sample, of a file by its suffix. None if unknown."""
    if isinstance(sample, FileSample):
        return kind_of_file(sample.path)
    return sample.kind if isinstance(sample, LoadedSample) else None


def misfit(sample: AnySample, modality: Modality | None) -> str:
    """Return the reason why an encoder can't take a sample, or "" if it may."""
    kind = _kind(sample)
    if fits(kind, modality):
        return ""
    return f"expected {modality} for this encoder, found {kind}" + (
        " by its suffix" if isinstance(sample, FileSample) else ""
    )


def refuse_other_modality(samples: Samples, modality: Modality | None) -> None:
    """Check that an encoder can take a source.

    Raises
    ------
    ModalityError
        The first sample is of another modality, and no other sample fits.
    """
    first = next(iter(samples.values()), None)
    if first is None or modality is None or not misfit(first, modality):
        return
    if all(misfit(sample, modality) for sample in samples.values()):
        found = str(_kind(first))
        hint = f"no other sample fits: use an encoder for {found}, or another source"
        raise ModalityError(first.where, expected=modality, found=found, hint=hint)
