"""Buckets in memory for tests in one process: conditional writes as on S3, and the names of what is stored."""

import obstore
import pytest
from obstore.store import MemoryStore

from embstore._engine.io import object_store


@pytest.fixture
def buckets(monkeypatch):
    """Make every ``s3://`` URL lead to a bucket in memory. Return the buckets by name."""
    made = {}

    def found(kind, url, options):
        bucket, _, prefix = url.partition("://")[2].partition("/")
        prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        return made.setdefault(bucket, MemoryStore()), prefix

    monkeypatch.setattr(object_store, "_made", found)
    return made


def objects(store):
    """Return the names of the objects of a bucket."""
    return [one["path"] for page in obstore.list(store) for one in page]
