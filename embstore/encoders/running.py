"""Run a pretrained model: prepare samples, pad them into batches, and put each batch through one forward pass.

`pretrained` creates the `Runner`, `loading` loads the model, `outputs` and `sentence` pool its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

import numpy as np

from embstore._engine.io.threads import ThreadLock
from embstore._engine.lazy import cached_property
from embstore.encoders.audio import decode_audio
from embstore.encoders.image import decode_image
from embstore.encoders.loading import Loaded, Plan, load_model, load_processor, token_ids
from embstore.encoders.model_shapes import conv_frames, least_samples
from embstore.encoders.outputs import LAST, SENTENCE, Output, Pass, rows
from embstore.encoders.precision import autocast
from embstore.encoders.text import decode_text
from embstore.errors import DecodeError, MissingWeightsError

_INPUTS: Final = {"ast": "input_values", "conv": "input_values", "patches": "pixel_values"}
"""Names of the models' inputs for sound and images. Other layouts call it `input_features`."""


class Runner:
    """A model and its processor. Each is loaded at its first use, and encoders of different fields share them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._processor_lock, self._tokenizer_lock, self._model_lock = (ThreadLock() for _ in range(3))
        self._processor: Any = None
        self._loaded: Loaded | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the plan. The copy loads its own model at its first use."""
        return type(self), (self.plan,)

    @cached_property
    def device(self) -> str:
        """The device of the model: the caller's choice, or the first of "cuda", "mps" and "cpu" that exists."""
        if self.plan.device is not None:
            return self.plan.device
        torch = self.plan.imported("torch")
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    # -- one sample ---------------------------------------------------------------------------

    @property
    def processor(self) -> Any:
        """The feature extractor, image processor or tokenizer."""
        with self._processor_lock():
            if self._processor is None:
                self._processor = load_processor(self.plan)
            return self._processor

    def prepare(self, content: Any) -> np.ndarray[Any, Any]:
        """Decode a sample's content to an input of the model.

        Returns
        -------
        ndarray
            Token ids ``(tokens,) int64``, or pixels, features or samples, float32.

        Raises
        ------
        DecodeError
        """
        files, ready = self.plan.files, self.plan.ready
        if ready.audio is not None:
            return self._features(decode_audio(content, ready.audio)[: ready.cut], ready.audio.sample_rate)
        if ready.text is None:
            pixels = self.processor(decode_image(content), return_tensors="np")["pixel_values"][0]
            return np.asarray(pixels, np.float32)
        text = (files.head.prompt if files.head is not None else "") + decode_text(content)
        tokenizer = self.processor
        if files.lower_case and not tokenizer.is_fast:
            text = text.lower()
        with nullcontext() if tokenizer.is_fast else self._tokenizer_lock():
            ids = np.array(token_ids(tokenizer, text, ready.text), np.int64)
        if not len(ids):
            raise DecodeError("a text without tokens")
        return ids

    def _features(self, wave: np.ndarray[Any, Any], rate: int) -> np.ndarray[Any, Any]:
        layout = self.plan.files.family.layout
        least = least_samples(self.plan.files.family, self.plan.files.tower)
        if len(wave) < least:
            raise DecodeError(f"{len(wave)} samples at {rate} Hz, and one frame takes {least}")
        options = {"padding": False, "return_attention_mask": False} if layout == "conv" else {}
        found = self.processor(wave, sampling_rate=rate, return_tensors="np", **options)
        return np.asarray(found[_INPUTS.get(layout, "input_features")][0], np.float32)

    def length(self, item: np.ndarray[Any, Any]) -> int:
        """Return the length of a prepared sample, if it would be padded to the longest of its batch. 0 otherwise."""
        text, audio = self.plan.ready.text, self.plan.ready.audio
        fixed = (text is not None and text.padded) or (audio is not None and audio.samples is not None)
        return len(item) if item.ndim == 1 and not fixed else 0

    # -- the model ----------------------------------------------------------------------------

    def check(self, outputs: Mapping[str, Output]) -> None:
        """Raise MissingWeightsError if the model is loaded, and the checkpoint lacks weights for an output."""
        family, missing = self.plan.files.family, () if self._loaded is None else self._loaded.missing
        pooler = tuple(key for key in missing if key.startswith(family.pooler))
        head = tuple(key for key in missing if key.startswith(f"{family.head}."))
        rest = tuple(key for key in missing if key not in (*pooler, *head))
        for lacking, layers in ((rest, None), (pooler, ("pooler_output", "embeds")), (head, ("embeds",))):
            fields = [name for name, output in outputs.items() if layers is None or output.layer in layers]
            if lacking and fields:
                raise MissingWeightsError(self.plan.files.place.id, lacking, fields)

    def _load(self) -> Loaded:
        with self._model_lock():
            if self._loaded is None:
                self._loaded = load_model(self.plan, self.device)
            return self._loaded

    # -- the forward pass ---------------------------------------------------------------------

    def encode(self, items: Sequence[np.ndarray[Any, Any]], outputs: Mapping[str, Output]) -> dict[str, Any]:
        """Return rows on the CPU: for each field ``(n, *shape)``, or a list of ``(length, dim)`` for a ragged field.

        Raises
        ------
        MissingWeightsError, WeightsChangedError
        ValueError
            `items` is empty.
        """
        if not items:
            raise ValueError("expected at least one sample")
        loaded = self._load()
        self.check(outputs)
        import torch

        found: dict[str, list[Any]] = {name: [] for name in outputs}
        order: list[int] = []
        for places in self._groups(items):
            with torch.inference_mode():
                done = self._pass(loaded, [items[place] for place in places], list(outputs.values()))
                for name, output in outputs.items():
                    found[name].append(rows(output, done, getattr(torch, output.spec.dtype)))
            order += places
        return {name: _in_order(parts, order, torch.stack) for name, parts in found.items()}

    def _groups(self, items: Sequence[np.ndarray[Any, Any]]) -> list[list[int]]:
        """Split a batch into groups. Padding a group to one length does not change the values of its samples."""
        files, masked = self.plan.files, self.plan.ready.attention_mask
        # A group norm runs over the padding too, and without a mask the model attends to it: group equal lengths.
        if files.family.layout != "conv" or (masked and files.tower["feat_extract_norm"] != "group"):
            return [list(range(len(items)))]
        groups: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(len(item), []).append(place)
        return list(groups.values())

    def _pass(self, loaded: Loaded, items: Sequence[np.ndarray[Any, Any]], outputs: Sequence[Output]) -> Pass:
        family, head = self.plan.files.family, self.plan.files.head
        from torch.nn.functional import normalize

        inputs, done = self._collate(items)
        layers = {output.layer for output in outputs}
        numbers = {output.layer: output.number for output in outputs if output.number is not None}
        body = loaded.model if family.body is None else getattr(loaded.model, family.body)
        with autocast(self.device, self.plan.compute_dtype):
            found = body(**inputs, output_hidden_states=bool(numbers), return_dict=True)
            if "embeds" in layers and family.head is not None:
                embeds = getattr(loaded.model, family.head)(found.pooler_output)
                done.vectors["embeds"] = normalize(embeds.float(), dim=-1) if family.normalized else embeds
        if "pooler_output" in layers:
            done.vectors["pooler_output"] = found.pooler_output
        if LAST in layers or SENTENCE in layers:
            done.layers[LAST] = found.last_hidden_state
        for layer, number in numbers.items():
            done.layers[layer] = found.hidden_states[number]
        if SENTENCE in layers and head is not None:
            done.vectors[SENTENCE] = head.apply(done.layers[LAST], done.mask, loaded.dense)
        return done

    def _collate(self, items: Sequence[np.ndarray[Any, Any]]) -> tuple[dict[str, Any], Pass]:
        """Return the model's inputs, padded at the end, and a `Pass` with the mask of the padding."""
        import torch

        family, said, ready = self.plan.files.family, self.plan.files.tower, self.plan.ready
        if ready.text is not None:
            size = ready.text.max_tokens if ready.text.padded else None
            pad = self.processor.pad_token_id
            ids, mask = _padded(items, size, said["pad_token_id"] if pad is None else pad)
            inputs = {"input_ids": ids, **({"attention_mask": mask.astype(np.int64)} if ready.attention_mask else {})}
            done = Pass(mask=mask, lengths=[len(item) for item in items])
        elif family.layout == "conv":
            waves, real = _padded(items, None, self.processor.padding_value)
            masked = ready.attention_mask and not real.all()
            inputs = {_INPUTS["conv"]: waves, **({"attention_mask": real.astype(np.int64)} if masked else {})}
            lengths = [conv_frames(said, len(item)) for item in items]
            done = Pass(mask=np.arange(max(lengths)) < np.array(lengths)[:, None], lengths=lengths)
        else:
            inputs = {_INPUTS.get(family.layout, "input_features"): np.stack(items)}
            if family.layout == "pooled":
                # Each clip was cut, so no clip is too long. CLAP's extractor would mark a random clip as too long.
                inputs["is_longer"] = np.zeros((len(items), 1), bool)
            done = Pass()
        if done.mask is not None:
            done.mask = torch.from_numpy(done.mask).to(self.device)
        return {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}, done


def _in_order(parts: list[Any], order: list[int], stack: Callable[[list[Any]], Any]) -> Any:
    """Join the rows of several passes in the order of the samples."""
    if len(parts) == 1:  # one pass has all rows in order
        return parts[0]
    rows = [row for part in parts for row in part]
    placed = [rows[place] for place in sorted(range(len(order)), key=order.__getitem__)]
    return placed if isinstance(parts[0], list) else stack(placed)


def _padded(
    items: Sequence[np.ndarray[Any, Any]], size: int | None, value: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return items as rows of one length, and a mask that is False at padding."""
    lengths = np.array([len(item) for item in items])
    array = np.full((len(items), size or int(lengths.max())), value, items[0].dtype)
    for row, item in zip(array, items, strict=True):
        row[: len(item)] = item
    return array, np.arange(array.shape[1]) < lengths[:, None]
