"""Lets a mix-in replace methods that a class defines itself."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal

logger = logging.getLogger("embstore")


class MixIn:
    """Base of mix-ins whose methods replace those of a code base with the same names.

    A method in a class's own body has precedence over any base class. A class that inherits from a mix-in and keeps
    its own methods therefore behaves as before, which is logged. With ``existing="replace"`` in the class statement
    its own methods are removed, and nothing else in the class has to change::

        class clientA2V(A2VClient, Client, existing="replace"): ...
    """

    provides: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, existing: Literal["keep", "replace"] = "keep", **options: Any) -> None:
        super().__init_subclass__(**options)
        if existing not in ("keep", "replace"):
            raise ValueError(f"expected existing 'keep' or 'replace', found {existing!r}")
        if cls.__module__.startswith("embstore_fl."):
            return
        own = [name for base in cls.__mro__[1:] for name in base.__dict__.get("provides", ()) if name in cls.__dict__]
        for name in own if existing == "replace" else ():
            delattr(cls, name)
        if own:
            what = "are replaced by embstore_fl's" if existing == "replace" else "override embstore_fl's"
            logger.info("%s: its own %s %s", cls.__qualname__, ", ".join(own), what)
