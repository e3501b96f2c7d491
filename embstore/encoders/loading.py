"""Load a pretrained model: its processor or tokenizer, its weights, and the names of weights that it lacks.

Loading fails if the files changed since the fingerprint was taken. `pretrained` makes the `Plan`, which lists the
files to load. `running` decides when to load, and runs the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from embstore._engine.io.threads import ThreadLock
from embstore._engine.lazy import imported
from embstore.encoders import weights
from embstore.encoders.ignored import check_tokenizer, check_unknown, check_weights
from embstore.encoders.model_files import ModelFiles, read_json
from embstore.encoders.model_shapes import TextLimits
from embstore.encoders.preprocessing import Preprocessing
from embstore.errors import ConfigError, IgnoredPartsError, ModelFilesError, WeightsChangedError

_LOADING: Final = ThreadLock()
"""The verbosity of transformers is a setting of the process: two threads that change it would not restore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The files to load, and the settings to run the model with.

    Attributes
    ----------
    files : ModelFiles
    ready : Preprocessing
    digests : mapping of str to str
        Digests of all files that values depend on, by name, when the fingerprint was taken.
    device : str or None
        The device that the caller chose.
    compute_dtype : str
    """

    files: ModelFiles
    ready: Preprocessing
    digests: Mapping[str, str]
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
        Names of weights that outputs may need and the checkpoint lacks.
    dense : dict of str to dict of str to tensor
        Weights of the linear layers of sentence-transformers, float32, by folder.
    """

    model: Any
    missing: tuple[str, ...]
    dense: dict[str, dict[str, Any]]


def load_processor(plan: Plan) -> Any:
    """Return the feature extractor, image processor or tokenizer of a model. A tokenizer is set up for several threads.

    Raises
    ------
    WeightsChangedError
        The model's files changed since the fingerprint was taken.
    ModelFilesError
        A weight has another shape than config.json states.
    IgnoredPartsError
        The installed transformers ignores a setting or a weight that values may depend on.
    ImportError
        transformers is not installed.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    folder, modality = plan.files.transformer, plan.files.family.modality
    with _loading(plan, plan.digests.keys() - {*plan.files.weights}) as transformers:
        if modality == "text":
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            except (TypeError, ValueError, LookupError) as error:
                raise ModelFilesError(folder, f"files of one tokenizer, but transformers fails: {error}") from error
            if tokenizer.is_fast and (folder / "tokenizer.json").exists():
                said = read_json(folder / "tokenizer_config.json") or {}
                check_tokenizer(plan.files.place.id, tokenizer, folder / "tokenizer.json", said)
            return _prepared(tokenizer, plan)
        if modality == "audio":
            processor = transformers.AutoFeatureExtractor.from_pretrained(folder, **options)
        else:
            # By default, transformers uses torchvision if it is installed, which resizes to slightly other values.
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        check_unknown(plan.files.place.id, plan.ready.processor or {}, processor, type(processor))
        return processor


def _prepared(tokenizer: Any, plan: Plan) -> Any:
    """Set a tokenizer up for use by several threads."""
    tokenizer.truncation_side = "right"
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None  # of training: it splits words at random places
    if tokenizer.is_fast and plan.files.lower_case:
        from tokenizers import normalizers

        own = tokenizer.backend_tokenizer.normalizer
        lower = normalizers.Lowercase()
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([lower, own]) if own else lower
    # The first call sets the truncation, which is a state. Setting it while another thread tokenizes fails.
    token_ids(tokenizer, "a", plan.ready.text)
    return tokenizer


def token_ids(tokenizer: Any, text: str, limits: TextLimits | None) -> list[int]:
    """Return the token ids of a text, cut at the limit, without padding.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Several threads may call a fast tokenizer at once. A slow tokenizer needs a lock.
    text : str
    limits : TextLimits or None
    """
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    found = tokenizer(text, truncation=True, max_length=limits and limits.max_tokens, padding=False, **options)
    return found["input_ids"]  # type: ignore[no-any-return]


def load_model(plan: Plan, device: str) -> Loaded:
    """Load a model, and the linear layers of sentence-transformers, to a device.

    Parameters
    ----------
    plan : Plan
    device : str
        The device to run on: `plan.device`, or the default.

    Raises
    ------
    WeightsChangedError
        The model's files changed since the fingerprint was taken.
    ModelFilesError
        A weight has another shape than config.json states.
    IgnoredPartsError
        The installed transformers ignores a setting or a weight that values may depend on.
    ConfigError
        torch does not have the device that the caller chose.
    ImportError
        torch or transformers is not installed.
    """
    torch, files, family = plan.imported("torch"), plan.files, plan.files.family
    with _loading(plan, plan.digests) as transformers:
        whole = config = transformers.AutoConfig.from_pretrained(files.transformer, trust_remote_code=False)
        if family.section is not None:
            config = getattr(whole, family.section)
            if hasattr(whole, "projection_dim"):  # transformers ignores the towers' own numbers, which may be wrong
                config.projection_dim = whole.projection_dim
        model, info = getattr(transformers, family.model).from_pretrained(
            files.transformer,
            config=config,
            dtype=torch.float32,
            use_safetensors=files.safetensors,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # its own error names no weight
            output_loading_info=True,
        )
        if others := sorted(name for name, *_ in info["mismatched_keys"] if not name.startswith(family.ignored)):
            raise ModelFilesError(files.transformer, f"weights of the shapes that config.json states: {others[0]!r}")
        for said, used in ((files.settings, whole), (files.tower, config)):
            check_unknown(files.place.id, said, used, type(model))
        check_weights(files.place.id, info["unexpected_keys"], family, model)
        steps = files.head.steps if files.head is not None else ()
        dense = {step.folder: _load_dense(plan, step.folder) for step in steps if step is not None}
        # They are views of the mapped files, and a file that is rewritten in place would change them.
        for tensor in (*model.parameters(), *model.buffers(), *(v for own in dense.values() for v in own.values())):
            tensor.data = tensor.data.clone()
    # Position ids are computed if an old checkpoint does not list them.
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


def _load_dense(plan: Plan, name: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    folder = plan.files.place.folder / name
    path = folder / "model.safetensors"
    if path.exists():
        found = load_file(path)
    else:
        found = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    if "linear.weight" not in found:
        raise ModelFilesError(folder, "linear.weight in its weights")
    if more := found.keys() - {"linear.weight", "linear.bias"}:
        raise IgnoredPartsError(plan.files.place.id, "weights", sorted(more))
    return {name: value.float() for name, value in found.items()}


@contextmanager
def _loading(plan: Plan, names: Collection[str]) -> Iterator[Any]:
    """Yield transformers with its messages turned off. The bytes of the files must be those of the fingerprint.

    They are digested before, and their identities are compared after: a file that was replaced by one of equal size
    and mtime, as `cp -p` makes it, is not loaded.

    Parameters
    ----------
    plan : Plan
    names : collection of str
        The files that are read in the meantime.
    """
    transformers = plan.imported("transformers")
    folder = plan.files.place.folder
    before = weights.identities(folder, names)
    if weights.digest_files(folder, names, recall=False).items() - plan.digests.items():
        raise WeightsChangedError(folder)
    logging = transformers.utils.logging
    with _LOADING():
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                # AST warns about its own filter bank in each process that loads it. The settings are the model's.
                warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
                yield transformers
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
    if weights.identities(folder, names) != before:
        raise WeightsChangedError(folder)


def _reachable(device: str) -> bool:
    """Return whether torch has a device. A device with full memory counts."""
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        return False
    return kind != "cuda" or (torch.cuda.is_available() and (index or 0) < torch.cuda.device_count())
