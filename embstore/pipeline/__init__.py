"""The pipeline from samples to rows in a store."""

from embstore.pipeline.embed import part_path

__all__ = ["part_path"]
