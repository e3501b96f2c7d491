"""Clips as a tensor of known shape that is decoded on first use. Importing this module imports torch."""

from __future__ import annotations

from pathlib import Path
from types import GetSetDescriptorType
from typing import Any, Final, Self

from embstore._engine.io.stamps import UNKNOWN
from embstore.encoders import AudioSettings
from embstore.errors import MissingLibraryError
from embstore.sources import FileSample
from embstore_fl.datasets.clips import decode_clip

try:
    import torch
    from torch.utils._pytree import tree_map_only
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError as error:
    raise MissingLibraryError("torch", "fl", "for FLDataset") from error

Clip = tuple[str, str, AudioSettings]
"""Key and path of a clip, and the form of its samples."""

_Tensor = torch.Tensor
_KEPT: Final = {_Tensor.to, _Tensor.cpu, _Tensor.cuda, _Tensor.detach, _Tensor.pin_memory, _Tensor.contiguous}
_VALUES: Final = {"data", "T", "mT", "H", "mH", "real", "imag"}
_ABOUT: Final = {  # with new attributes of torch: a report on memory asks for many
    *(
        getattr(_Tensor, name).__get__
        for name, kind in vars(torch._C.TensorBase).items()
        if isinstance(kind, GetSetDescriptorType) and name not in _VALUES
    ),
    *(getattr(_Tensor, name) for name in ("size", "dim", "numel", "nelement", "is_floating_point", "is_complex")),
    *(getattr(_Tensor, name) for name in ("element_size", "stride", "storage_offset", "get_device", "is_pinned")),
    *(getattr(_Tensor, name) for name in ("is_contiguous", "is_signed", "__len__", "__hash__")),
}
_STORAGE: Final = {_Tensor.storage, _Tensor.untyped_storage}


class LazyClips(torch.Tensor):
    """One clip ``(samples,) float32``, or a stack of n clips ``(n, samples)``, decoded when its values are needed.

    The training loop wants the audio of each sample, and does not use it where the sample has an embedding. `to`,
    `cpu`, `detach`, `pin_memory` and `stack`, the default collate and the way from a worker of a `DataLoader` keep the
    clips lazy, and so do questions about shape, dtype, device and memory: clips that are not decoded have an empty
    storage. Any other operation decodes all clips, once.

    Parameters
    ----------
    clips : sequence of Clip
        Each with a fixed duration. All clips have equally many samples.
    stacked : bool
        False: one clip without an axis of its own.
    device : torch.device
        Device of the decoded clips.
    dtype : torch.dtype

    Raises
    ------
    DecodeError, SampleError
        On the first use of the values, with the clip's path.
    """

    clips: tuple[Clip, ...]
    stacked: bool
    _decoded: torch.Tensor | None

    @staticmethod
    def __new__(
        cls: type[Self],
        clips: tuple[Clip, ...],
        stacked: bool = False,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Make a tensor without storage."""
        length = clips[0][2].samples or 0
        shape = (len(clips), length) if stacked else (length,)
        made: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made.clips, made.stacked, made._decoded = clips, stacked, None
        return made

    def decoded(self) -> torch.Tensor:
        """Return the clips as an ordinary tensor."""
        if self._decoded is None:
            found = [decode_clip(FileSample(key, Path(path), UNKNOWN), form) for key, path, form in self.clips]
            self._decoded = torch.stack(found) if self.stacked else found[0]
            self._decoded = self._decoded.to(self.device, self.dtype)
        return self._decoded

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _KEPT and isinstance(args[0], cls) and args[0]._decoded is None:
            return args[0]._moved(func, args[1:], kwargs)
        if func in _STORAGE:
            held = args[0]._decoded
            return func(torch.empty(0, dtype=args[0].dtype) if held is None else held)
        if func is torch.stack and not kwargs and len(args) == 1 and _alike(args[0]):
            first = args[0][0]
            return cls(tuple(clip for one in args[0] for clip in one.clips), True, first.device, first.dtype)
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(LazyClips, LazyClips.decoded, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _moved(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the clips for another device or dtype, as the function asks for it."""
        empty = func(torch.empty(0, dtype=self.dtype, device=self.device), *args, **kwargs)
        if (empty.device, empty.dtype) == (self.device, self.dtype):
            return self
        return type(self)(self.clips, self.stacked, empty.device, empty.dtype)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self), (self.clips, self.stacked, self.device, self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"<LazyClips {tuple(self.shape)} of {', '.join(path for _, path, _ in self.clips)}>"


def _alike(tensors: Any) -> bool:
    """Return whether all are single clips that are not decoded yet, of equal length, device and dtype."""
    return all(
        isinstance(one, LazyClips)
        and not one.stacked
        and one._decoded is None
        and (one.shape, one.device, one.dtype) == (tensors[0].shape, tensors[0].device, tensors[0].dtype)
        for one in tensors
    )


def _stacked(batch: Any, *, collate_fn_map: Any = None) -> Any:
    return torch.stack(batch)


# The default collate dispatches on the type of a batch's first sample. Its own function for tensors copies into shared
# memory in a worker, which a tensor without storage does not have.
default_collate_fn_map[LazyClips] = _stacked
