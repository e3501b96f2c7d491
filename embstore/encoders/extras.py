"""The libraries that come with an extra: each is imported where it is first needed, or asked for by the extra's name.

Those that decode samples say themselves what they are for: see `audiofiles`, `audio` and `image`.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["imported"]


def imported(name: str, extra: str) -> Any:
    """Import a library that comes with an extra.

    Parameters
    ----------
    name : str
        The library's module.
    extra : str
        The extra of embstore's that installs it.

    Raises
    ------
    ImportError
        It is not installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is needed for this model: pip install 'embstore[{extra}]'") from error
