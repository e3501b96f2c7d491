"""The fixtures of the tests of caches."""

from tests.cache.conftest import cache, log, no_hook_is_left, root

__all__ = ["cache", "log", "no_hook_is_left", "root"]
