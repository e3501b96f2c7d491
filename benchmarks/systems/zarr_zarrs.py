"""zarr-python with the codec pipeline of zarrs, in Rust.

https://pypi.org/project/zarrs/: it is set in zarr's configuration. It reads slices; for lists of rows it falls back to
zarr-python's own, as its page says.
"""

from __future__ import annotations

from typing import Any

import zarr
import zarrs  # noqa: F401, to fail here if it is absent

from benchmarks.systems.zarr_python import ZarrPython


class ZarrWithZarrs(ZarrPython):
    def _configured(self) -> Any:
        return zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


SYSTEMS = [ZarrWithZarrs("zarr with zarrs", best=True)]
