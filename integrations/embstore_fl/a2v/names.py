"""Finds stores by the three attributes of the A2V code: sample rate, duration and model.

`embstore.from_pretrained` writes them as ``preprocessing.sample_rate``, ``preprocessing.duration`` and ``encoder.id``.
Stores that `A2VDataset` saves, and configs written by hand, have ``sample_rate``, ``duration`` and ``encoder``. The
A2V code's own files have ``model_name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from embstore import Cache, CacheEntry, Config, Difference
from embstore.errors import AmbiguousConfigError
from embstore_fl.overlay import is_cls

AST: Final = "MIT/ast-finetuned-audioset-10-10-0.4593"
"""The model that the A2V code calls "ast" and "ast-finetuned"."""

_ALIASES: Final = ("ast", "ast-finetuned", AST.rpartition("/")[2])
_ATTRIBUTES: Final = ("model_name", "sample_rate", "duration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Attributes of the wanted embeddings. None matches any value.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    sample_rate : int or None
        Hz.
    duration : float or None
        Seconds.
    model_name : str or None
        A model's id, its last part, or "ast" or "ast-finetuned" for `AST`.
    """

    dataset: str
    sample_rate: float | None = None
    duration: float | None = None
    model_name: str | None = None

    @property
    def model(self) -> str | None:
        """The model's name in full."""
        return AST if self.model_name in _ALIASES else self.model_name

    def is_model(self, name: object) -> bool:
        """Return whether a name is the model's full id, or the last part of it.

        Examples
        --------
        >>> wanted = Wanted(dataset="VEGAS", model_name="ast")
        >>> [wanted.is_model(name) for name in (AST, "ast-finetuned", "ast_2")]
        [True, True, False]
        """
        known = {self.model, self.model_name}
        if not isinstance(name, str):
            return False
        return name in known or _last(name) in known or (name in _ALIASES and self.model == AST)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that are not None, and the data set."""
        asked = {name: value for name in _ATTRIBUTES if (value := getattr(self, name)) is not None}
        return {"dataset": self.dataset, **asked}

    def __str__(self) -> str:
        return f"sample_rate {self.sample_rate}, duration {self.duration}, model_name {self.model_name!r}"


def config_of(wanted: Wanted, shape: tuple[int, ...]) -> Config:
    """Return the config of a store whose encoder is not known: the three attributes and the shape of its rows.

    Rows of the first token alone have ``tokens`` in it.
    """
    return Config(
        {"tokens": "cls"} if is_cls(shape) else {},
        encoder=wanted.model,
        sample_rate=wanted.sample_rate,
        duration=wanted.duration,
        embedding_shape=list(shape),
        dataset=wanted.dataset,
    )


def _rank(config: Mapping[str, Any]) -> int:
    """Return 0 for the config of an encoder, 1 for a training loop's, 2 for a training loop's rows of the CLS token."""
    return 0 if isinstance(config.get("encoder"), Mapping) else 2 if config.get("tokens") == "cls" else 1


def find_stores(cache: Cache, wanted: Wanted, *, cls: bool = False) -> list[CacheEntry]:
    """Return the stores with these attributes: first the store of an encoder, then one without an encoder's config.

    With `cls`, a store of rows of the first token alone comes last. It is left out otherwise.

    Raises
    ------
    AmbiguousConfigError
        Stores of several encoders match, or several stores without an encoder's config and none with one. The message
        lists the differences.
    """
    fitting = [entry for entry in cache.find(dataset=wanted.dataset) if not differences(wanted, entry.config)]
    found: list[CacheEntry] = []
    for rank in range(3 if cls else 2):
        same = [entry for entry in fitting if _rank(entry.config) == rank]
        if len(same) > 1 and not found:
            differing = sorted({d.name for entry in same[1:] for d in same[0].config.diff(entry.config)})
            raise AmbiguousConfigError(
                wanted.attributes,
                [entry.path for entry in same],
                f"{', '.join(differing)}; say which with dataset.ast_config = the config, or clear_ast_cache(...)",
            )
        found += same
    return found


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the three attributes of a config of any form."""
    encoder, preprocessing = config.get("encoder"), config.get("preprocessing")
    if isinstance(encoder, Mapping):
        said = preprocessing if isinstance(preprocessing, Mapping) else {}
        return {"model_name": encoder.get("id"), **{name: said.get(name) for name in ("sample_rate", "duration")}}
    return {
        "model_name": config.get("model_name", encoder),
        **{name: config.get(name) for name in ("sample_rate", "duration")},
    }


def differences(wanted: Wanted, config: Mapping[str, Any]) -> list[Difference]:
    """Return the wanted attributes that a config does not match."""
    found = described(config)
    expected = {name: getattr(wanted, name) for name in _ATTRIBUTES}
    if wanted.is_model(found["model_name"]):
        found["model_name"] = wanted.model_name
    return [
        Difference(name, expected[name], found[name])
        for name in _ATTRIBUTES
        if expected[name] is not None and Config(value=expected[name]) != Config(value=found[name])
    ]


def nearest(cache: Cache, wanted: Wanted) -> str:
    """Return a message: how the most similar store differs from the wanted one."""
    entries = [entry for entry in cache.entries() if entry.config.get("dataset") == wanted.dataset]
    if not entries:
        return f"no store of {wanted.dataset!r} in {cache.path}"
    entry = min(entries, key=lambda entry: len(differences(wanted, entry.config)))
    return f"the nearest, {entry.path.name}, differs in " + "; ".join(map(str, differences(wanted, entry.config)))
