"""A pretrained model from its files to memory: its processor or tokenizer, its weights, and which of them it lacks.

It is loaded from the files that the fingerprint was taken of, or not at all. A `Plan`, which `pretrained` makes, says
what there is to load; when it is loaded, and what is then done with it, is `running`'s.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from embstore._engine.lazy import imported
from embstore.encoders import weights
from embstore.encoders.model_files import ModelFiles
from embstore.encoders.model_shapes import TextLimits
from embstore.encoders.preprocessing import Preprocessing
from embstore.errors import ConfigError, WeightsChangedError

_LOADING: Final = threading.Lock()
"""How much transformers says is a setting of the process: two that change it at once would not restore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What there is to load, and how it is to be run.

    Attributes
    ----------
    files : ModelFiles
    ready : Preprocessing
    stamps : tuple
        All files that values depend on, with their stamps when the fingerprint was taken.
    device : str or None
        As asked for.
    compute_dtype : str
    """

    files: ModelFiles
    ready: Preprocessing
    stamps: tuple[tuple[str, int, int], ...]
    device: str | None
    compute_dtype: str

    def imported(self, name: str) -> Any:
        """Import a library that the model needs."""
        return imported(name, self.files.family.modality, "for this model")


class Loaded(NamedTuple):
    """A model in memory.

    Attributes
    ----------
    model : torch.nn.Module
        In evaluation mode, on its device.
    missing : tuple of str
        Names of weights that outputs may need, and that the checkpoint lacks.
    dense : dict of str to dict of str to tensor
        Weights of the linear layers of sentence-transformers, float32, by their folders.
    """

    model: Any
    missing: tuple[str, ...]
    dense: dict[str, dict[str, Any]]


def load_processor(plan: Plan) -> Any:
    """Return the feature extractor, image processor or tokenizer of a model; a tokenizer is ready for several threads.

    Raises
    ------
    WeightsChangedError
        The model's files changed since the fingerprint was taken.
    ImportError
        transformers is not installed.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    folder, modality = plan.files.transformer, plan.files.family.modality
    with _loading(plan) as transformers:
        if modality == "audio":
            return transformers.AutoFeatureExtractor.from_pretrained(folder, **options)
        if modality == "image":
            # torchvision resizes to slightly other values, and is used if it happens to be installed.
            return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        return _prepared(transformers.AutoTokenizer.from_pretrained(folder, **options), plan)


def _prepared(tokenizer: Any, plan: Plan) -> Any:
    """Set a tokenizer up for use by several threads."""
    tokenizer.truncation_side = "right"
    if tokenizer.is_fast and plan.files.lower_case:
        from tokenizers import normalizers

        own = tokenizer.backend_tokenizer.normalizer
        lower = normalizers.Lowercase()
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([lower, own]) if own else lower
    # Its truncation is a state, set by the first call: set while another thread tokenizes, it fails.
    token_ids(tokenizer, "a", plan.ready.text)
    return tokenizer


def token_ids(tokenizer: Any, text: str, limits: TextLimits | None) -> list[int]:
    """Return the numbers of a text's tokens, as many as it may have; they are not padded.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Several threads may call a fast one at once, and another only in turn.
    text : str
    limits : TextLimits or None
    """
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    found = tokenizer(text, truncation=True, max_length=limits and limits.max_tokens, padding=False, **options)
    return found["input_ids"]  # type: ignore[no-any-return]


def load_model(plan: Plan, device: str) -> Loaded:
    """Load a model, and what sentence-transformers puts on it, to a device.

    Parameters
    ----------
    plan : Plan
    device : str
        Where it is to run; `plan.device`, or what stands in for none.

    Raises
    ------
    WeightsChangedError
        The model's files changed since the fingerprint was taken.
    ConfigError
        torch does not have the device that was asked for.
    ImportError
        torch or transformers is not installed.
    """
    torch, files, family = plan.imported("torch"), plan.files, plan.files.family
    with _loading(plan) as transformers:
        config = transformers.AutoConfig.from_pretrained(files.transformer, trust_remote_code=False)
        if family.section is not None:
            tower = getattr(config, family.section)
            if hasattr(config, "projection_dim"):  # the towers' own numbers may be wrong, and go unused otherwise
                tower.projection_dim = config.projection_dim
            config = tower
        model, info = getattr(transformers, family.model).from_pretrained(
            files.transformer,
            config=config,
            dtype=torch.float32,
            use_safetensors=files.safetensors,
            local_files_only=True,
            output_loading_info=True,
        )
        steps = files.head.steps if files.head is not None else ()
        dense = {step.folder: _load_dense(files.place.folder / step.folder) for step in steps if step is not None}
    # Positions are counted anew where an old checkpoint does not list them.
    missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
    missing = sorted(key for key in missing if not key.startswith(family.ignored))
    try:
        model = model.eval().requires_grad_(False).to(device)
        dense = {folder: {name: value.to(device) for name, value in own.items()} for folder, own in dense.items()}
    except (RuntimeError, AssertionError) as error:
        if plan.device is None or _reachable(device):
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError("device", device, f"torch can't use it here ({reason})") from error
    return Loaded(model, tuple(missing), dense)


def _load_dense(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if path.exists():
        found = load_file(path)
    else:
        found = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: value.float() for name, value in found.items()}


def _check_files(plan: Plan) -> None:
    folder = plan.files.place.folder
    if weights.stamps(folder, [name for name, _, _ in plan.stamps]) != plan.stamps:
        raise WeightsChangedError(folder)


@contextmanager
def _loading(plan: Plan) -> Iterator[Any]:
    """Yield transformers, and keep it quiet. Check before and after that the files are those of the fingerprint."""
    transformers = plan.imported("transformers")
    _check_files(plan)
    logging = transformers.utils.logging
    with _LOADING:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                # Of AST's own filter bank, in each process that loads it: its settings are the model's.
                warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
                yield transformers
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
    _check_files(plan)


def _reachable(device: str) -> bool:
    """Tell whether torch has a device at all: one that is full is there."""
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        return False
    return kind != "cuda" or (torch.cuda.is_available() and (index or 0) < torch.cuda.device_count())
