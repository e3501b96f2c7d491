"""A pretrained model at work: loading it, preparing samples, the forward pass.

What it is and what of its outputs is wanted, `pretrained` says. torch and transformers are imported here, by the
functions that need them.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from embstore.encoders import weights
from embstore.encoders.audio import AudioSettings, decode_audio
from embstore.encoders.families import Family, TextLimits, conv_frames, least_samples
from embstore.encoders.image import decode_image
from embstore.encoders.outputs import LAST, SENTENCE, Output, Pass, SentenceHead, rows
from embstore.encoders.text import decode_text
from embstore.errors import ConfigError, DecodeError, MissingWeightsError, WeightsChangedError

__all__ = ["Plan", "Runner", "imported"]

_LOADING: Final = threading.Lock()
"""How much transformers says is a setting of the process: two that change it at once would not restore it."""

_INPUTS: Final = {"ast": "input_values", "conv": "input_values", "patches": "pixel_values"}
"""What models call the input that isn't text, where it isn't `input_features`."""


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


def imported(name: str, extra: str) -> Any:
    """Import a library that comes with an extra.

    Raises
    ------
    ImportError
        It is not installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is needed for this model: pip install 'embstore[{extra}]'") from error


@contextmanager
def _loading(transformers: Any) -> Iterator[None]:
    """Keep transformers quiet, as long as it loads."""
    logging = transformers.utils.logging
    with _LOADING:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
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


class Runner:
    """A model and its processor, each loaded when it is first used, and shared by encoders of different fields."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._processor_lock, self._model_lock = threading.Lock(), threading.Lock()
        self._processor: Any = None
        self._tokenizing: Any = nullcontext()
        self._model: Any = None
        self._missing: tuple[str, ...] = ()
        self._dense: dict[str, dict[str, Any]] = {}

    @cached_property
    def device(self) -> str:
        """Where the model runs: as asked for, or else the best that there is."""
        if self.plan.device is not None:
            return self.plan.device
        torch = self._imported("torch")
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    def _imported(self, name: str) -> Any:
        return imported(name, self.plan.family.modality)

    def _check_files(self) -> None:
        if weights.stamps(self.plan.folder, self.plan.files) != self.plan.stamps:
            raise WeightsChangedError(self.plan.folder)

    # -- one sample ---------------------------------------------------------------------------

    @property
    def processor(self) -> Any:
        """The feature extractor, image processor or tokenizer."""
        with self._processor_lock:
            if self._processor is None:
                self._processor = self._load_processor()
            return self._processor

    def _load_processor(self) -> Any:
        transformers = self._imported("transformers")
        plan = self.plan
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._check_files()
        with _loading(transformers):
            if plan.family.modality == "audio":
                processor = transformers.AutoFeatureExtractor.from_pretrained(plan.transformer, **options)
            elif plan.family.modality == "image":
                # torchvision resizes to slightly other values, and is used if it happens to be installed.
                processor = transformers.AutoImageProcessor.from_pretrained(plan.transformer, backend="pil", **options)
            else:
                processor = self._prepared(transformers.AutoTokenizer.from_pretrained(plan.transformer, **options))
        self._check_files()
        return processor

    def _prepared(self, tokenizer: Any) -> Any:
        """Set a tokenizer up for use by several threads."""
        tokenizer.truncation_side = "right"
        if not tokenizer.is_fast:
            self._tokenizing = threading.Lock()
        elif self.plan.lower_case:
            from tokenizers import normalizers

            own = tokenizer.backend_tokenizer.normalizer
            lower = normalizers.Lowercase()
            tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([lower, own]) if own else lower
        # Its truncation is a state, set by the first call: set while another thread tokenizes, it fails.
        self._ids(tokenizer, "a")
        return tokenizer

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        limits = self.plan.text
        options = {"return_attention_mask": False, "return_token_type_ids": False}
        with self._tokenizing:
            found = tokenizer(text, truncation=True, max_length=limits and limits.max_tokens, padding=False, **options)
        return found["input_ids"]  # type: ignore[no-any-return]

    def prepare(self, content: Any) -> np.ndarray[Any, Any]:
        """Turn a sample's content into what the model takes of it.

        Returns
        -------
        ndarray
            Token ids ``(tokens,) int64``, or pixels, features or samples, float32.

        Raises
        ------
        DecodeError
        """
        plan = self.plan
        if plan.audio is not None:
            return self._features(decode_audio(content, plan.audio)[: plan.cut])
        if plan.text is None:
            pixels = self.processor(decode_image(content), return_tensors="np")["pixel_values"][0]
            return np.asarray(pixels, np.float32)
        text = (plan.head.prompt if plan.head is not None else "") + decode_text(content)
        if plan.lower_case and not self.processor.is_fast:
            text = text.lower()
        ids = np.array(self._ids(self.processor, text), np.int64)
        if not len(ids):
            raise DecodeError("a text without tokens")
        return ids

    def _features(self, wave: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        layout, rate = self.plan.family.layout, self.plan.audio.sample_rate  # type: ignore[union-attr]
        least = least_samples(self.plan.family, self.plan.settings)
        if len(wave) < least:
            raise DecodeError(f"{len(wave)} samples at {rate} Hz, and one frame takes {least}")
        options = {"padding": False, "return_attention_mask": False} if layout == "conv" else {}
        found = self.processor(wave, sampling_rate=rate, return_tensors="np", **options)
        return np.asarray(found[_INPUTS.get(layout, "input_features")][0], np.float32)

    def length(self, item: np.ndarray[Any, Any]) -> int:
        """Return how long a prepared sample is, if it would be padded to the longest of its batch; else 0."""
        padded = self.plan.text is not None and self.plan.text.padded
        fixed = self.plan.audio is not None and self.plan.audio.samples is not None
        return len(item) if item.ndim == 1 and not padded and not fixed else 0

    # -- the model ----------------------------------------------------------------------------

    def check(self, outputs: Mapping[str, Output]) -> None:
        """Refuse outputs that need weights which the checkpoint lacks, once it is loaded.

        Raises
        ------
        MissingWeightsError
        """
        family = self.plan.family
        pooler = tuple(key for key in self._missing if key.startswith(family.pooler))
        head = tuple(key for key in self._missing if key.startswith(f"{family.head}."))
        rest = tuple(key for key in self._missing if key not in (*pooler, *head))
        for lacking, layers in ((rest, None), (pooler, ("pooler_output", "embeds")), (head, ("embeds",))):
            fields = [name for name, output in outputs.items() if layers is None or output.layer in layers]
            if lacking and fields:
                raise MissingWeightsError(self.plan.name, lacking, fields)

    def _loaded(self) -> Any:
        with self._model_lock:
            if self._model is None:
                self._model = self._load_model()
            return self._model

    def _load_model(self) -> Any:
        torch, transformers = self._imported("torch"), self._imported("transformers")
        plan, family = self.plan, self.plan.family
        self._check_files()
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
        for step in plan.head.steps if plan.head is not None else ():
            if step is not None:
                self._dense[step.folder] = self._load_dense(plan.folder / step.folder)
        self._check_files()
        # Positions are counted anew where an old checkpoint does not list them.
        missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
        self._missing = tuple(sorted(key for key in missing if not key.startswith(family.ignored)))
        try:
            return model.eval().requires_grad_(False).to(self.device)
        except (RuntimeError, AssertionError) as error:
            if self.plan.device is None or _reachable(self.device):
                raise
            reason = str(error).partition("\n")[0]
            raise ConfigError("device", self.device, f"torch can't use it here ({reason})") from error

    def _load_dense(self, folder: Path) -> dict[str, Any]:
        torch = self._imported("torch")
        path = folder / "model.safetensors"
        if path.exists():
            found = self._imported("safetensors.torch").load_file(path)
        else:
            found = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {name: value.float().to(self.device) for name, value in found.items()}

    # -- the forward pass ---------------------------------------------------------------------

    def encode(self, items: Sequence[np.ndarray[Any, Any]], outputs: Mapping[str, Output]) -> dict[str, Any]:
        """Return rows on the CPU: for each field ``(n, *shape)``, or a list of ``(length, dim)`` if it is ragged.

        Raises
        ------
        MissingWeightsError, WeightsChangedError
        ValueError
            There is no sample.
        """
        if not items:
            raise ValueError("expected at least one sample")
        self._loaded()
        self.check(outputs)
        torch = self._imported("torch")
        found: dict[str, list[Any]] = {name: [] for name in outputs}
        order: list[int] = []
        for places in self._groups(items):
            with torch.inference_mode():
                done = self._pass([items[place] for place in places], list(outputs.values()))
                for name, output in outputs.items():
                    found[name].append(rows(output, done, getattr(torch, output.spec.dtype)))
            order += places
        return {name: _in_order(parts, order, torch.stack) for name, parts in found.items()}

    def _groups(self, items: Sequence[np.ndarray[Any, Any]]) -> list[list[int]]:
        """Split a batch into those that may be padded to one length without changing each other's values."""
        plan = self.plan
        # A group norm runs over the padding too, and without a mask it is attended to: only like lengths go together.
        apart = plan.family.layout == "conv" and (
            not plan.attention_mask or plan.settings["feat_extract_norm"] == "group"
        )
        if not apart:
            return [list(range(len(items)))]
        groups: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(len(item), []).append(place)
        return list(groups.values())

    def _pass(self, items: Sequence[np.ndarray[Any, Any]], outputs: Sequence[Output]) -> Pass:
        torch = self._imported("torch")
        plan, family, model = self.plan, self.plan.family, self._model
        inputs, done = self._collate(items)
        layers = {output.layer for output in outputs}
        numbers = {output.layer: output.number for output in outputs if output.number is not None}
        body = model if family.body is None else getattr(model, family.body)
        kind, dtype = torch.device(self.device).type, getattr(torch, plan.compute_dtype)
        with torch.autocast(kind, dtype=dtype) if dtype != torch.float32 else nullcontext():
            found = body(**inputs, output_hidden_states=bool(numbers), return_dict=True)
            if "embeds" in layers and family.head is not None:
                done.vectors["embeds"] = getattr(model, family.head)(found.pooler_output)
        if "pooler_output" in layers:
            done.vectors["pooler_output"] = found.pooler_output
        if LAST in layers or SENTENCE in layers:
            done.layers[LAST] = found.last_hidden_state
        for layer, number in numbers.items():
            done.layers[layer] = found.hidden_states[number]
        if SENTENCE in layers and plan.head is not None:
            done.vectors[SENTENCE] = plan.head.apply(done.layers[LAST], done.mask, self._dense)
        return done

    def _collate(self, items: Sequence[np.ndarray[Any, Any]]) -> tuple[dict[str, Any], Pass]:
        """Put samples into one array, padded at the end, and say what of it is padding."""
        torch = self._imported("torch")
        plan, family = self.plan, self.plan.family
        if plan.text is not None:
            size = plan.text.max_tokens if plan.text.padded else None
            pad = self.processor.pad_token_id
            ids, mask = _padded(items, size, plan.settings["pad_token_id"] if pad is None else pad)
            inputs = {"input_ids": ids, **({"attention_mask": mask.astype(np.int64)} if plan.attention_mask else {})}
            done = Pass(mask=mask, lengths=[len(item) for item in items])
        elif family.layout == "conv":
            waves, real = _padded(items, None, self.processor.padding_value)
            masked = plan.attention_mask and not real.all()
            inputs = {_INPUTS["conv"]: waves, **({"attention_mask": real.astype(np.int64)} if masked else {})}
            lengths = [conv_frames(plan.settings, len(item)) for item in items]
            done = Pass(mask=np.arange(max(lengths)) < np.array(lengths)[:, None], lengths=lengths)
        else:
            inputs = {_INPUTS.get(family.layout, "input_features"): np.stack(items)}
            if family.layout == "pooled":
                # No clip is longer than the model takes: each was cut. Its extractor would say so of one at random.
                inputs["is_longer"] = np.zeros((len(items), 1), bool)
            done = Pass()
        if done.mask is not None:
            done.mask = torch.from_numpy(done.mask).to(self.device)
        return {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}, done


def _in_order(parts: list[Any], order: list[int], stack: Callable[[list[Any]], Any]) -> Any:
    """Join the rows of several passes, each at its sample's place."""
    if len(parts) == 1:  # one pass has them all in order
        return parts[0]
    rows = [row for part in parts for row in part]
    placed = [rows[place] for place in sorted(range(len(order)), key=order.__getitem__)]
    return placed if isinstance(parts[0], list) else stack(placed)


def _padded(
    items: Sequence[np.ndarray[Any, Any]], size: int | None, value: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return items as rows of one length, and which of the values are theirs."""
    lengths = np.array([len(item) for item in items])
    array = np.full((len(items), size or int(lengths.max())), value, items[0].dtype)
    for row, item in zip(array, items, strict=True):
        row[: len(item)] = item
    return array, np.arange(array.shape[1]) < lengths[:, None]
