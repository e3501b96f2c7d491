"""A pretrained model from its files to memory: its processor or tokenizer, its weights, and which of them it lacks.

It is loaded from the files that the fingerprint was taken of, or not at all. A `Plan`, which `pretrained` makes, says
what there is to load; when it is loaded, and what is then done with it, is `running`'s.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from embstore._engine.lazy import imported
from embstore.encoders import weights
from embstore.encoders.audio import AudioSettings
from embstore.encoders.families import Family
from embstore.encoders.model_shapes import TextLimits
from embstore.encoders.sentence import SentenceHead
from embstore.errors import ConfigError, WeightsChangedError

_LOADING: Final = threading.Lock()
"""How much transformers says is a setting of the process: two that change it at once would not restore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What there is to load, and how it is to be run.

    Attributes
    ----------
    name : str
        The model, for errors.
    folder, transformer : Path
        Where its files are; where transformers finds its part of them.
    files, stamps : tuple
        All files that values depend on, and what told them apart when the fingerprint was taken.
    safetensors : bool
        Whether the weights are of this kind.
    family : Family
    settings : mapping
        config.json, or its part about the tower, over the defaults.
    audio, text, head : optional
        What clips are made into; how long texts are; what sentence-transformers does to tokens.
    cut : int or None
        Samples of a clip that are used.
    lower_case : bool
        Whether texts are lowercased first.
    attention_mask : bool
        Whether the model is told what is padding.
    device : str or None
    compute_dtype : str
    """

    name: str
    folder: Path
    transformer: Path
    files: tuple[str, ...]
    stamps: tuple[Any, ...]
    safetensors: bool
    family: Family
    settings: Mapping[str, Any]
    audio: AudioSettings | None = None
    text: TextLimits | None = None
    head: SentenceHead | None = None
    cut: int | None = None
    lower_case: bool = False
    attention_mask: bool = True
    device: str | None = None
    compute_dtype: str = "float32"


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
    transformers = _imported("transformers", plan)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    _check_files(plan)
    with _loading(transformers):
        if plan.family.modality == "audio":
            processor = transformers.AutoFeatureExtractor.from_pretrained(plan.transformer, **options)
        elif plan.family.modality == "image":
            # torchvision resizes to slightly other values, and is used if it happens to be installed.
            processor = transformers.AutoImageProcessor.from_pretrained(plan.transformer, backend="pil", **options)
        else:
            processor = _prepared(transformers.AutoTokenizer.from_pretrained(plan.transformer, **options), plan)
    _check_files(plan)
    return processor


def _prepared(tokenizer: Any, plan: Plan) -> Any:
    """Set a tokenizer up for use by several threads."""
    tokenizer.truncation_side = "right"
    if tokenizer.is_fast and plan.lower_case:
        from tokenizers import normalizers

        own = tokenizer.backend_tokenizer.normalizer
        lower = normalizers.Lowercase()
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([lower, own]) if own else lower
    # Its truncation is a state, set by the first call: set while another thread tokenizes, it fails.
    token_ids(tokenizer, "a", plan.text)
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
    torch, transformers = _imported("torch", plan), _imported("transformers", plan)
    family = plan.family
    _check_files(plan)
    with _loading(transformers):
        config = transformers.AutoConfig.from_pretrained(plan.transformer, trust_remote_code=False)
        if family.section is not None:
            tower = getattr(config, family.section)
            if hasattr(config, "projection_dim"):  # the towers' own numbers may be wrong, and go unused otherwise
                tower.projection_dim = config.projection_dim
            config = tower
        model, info = getattr(transformers, family.model).from_pretrained(
            plan.transformer,
            config=config,
            dtype=torch.float32,
            use_safetensors=plan.safetensors,
            local_files_only=True,
            output_loading_info=True,
        )
    steps = plan.head.steps if plan.head is not None else ()
    dense = {step.folder: _load_dense(plan, plan.folder / step.folder) for step in steps if step is not None}
    _check_files(plan)
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


def _load_dense(plan: Plan, folder: Path) -> dict[str, Any]:
    torch = _imported("torch", plan)
    path = folder / "model.safetensors"
    if path.exists():
        found = _imported("safetensors.torch", plan).load_file(path)
    else:
        found = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return {name: value.float() for name, value in found.items()}


def _imported(name: str, plan: Plan) -> Any:
    return imported(name, plan.family.modality, "for this model")


def _check_files(plan: Plan) -> None:
    if weights.stamps(plan.folder, plan.files) != plan.stamps:
        raise WeightsChangedError(plan.folder)


@contextmanager
def _loading(transformers: Any) -> Iterator[None]:
    """Keep transformers quiet, as long as it loads."""
    logging = transformers.utils.logging
    with _LOADING:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                # Of AST's own filter bank, in each process that loads it: its settings are the model's.
                warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
                yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def _reachable(device: str) -> bool:
    """Tell whether torch has a device at all: one that is full is there."""
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        return False
    return kind != "cuda" or (torch.cuda.is_available() and (index or 0) < torch.cuda.device_count())
