"""``audio`` of a sample that has its embedding: any function that reads it works, and most decode nothing."""

import copy
import operator
import pickle
from types import GetSetDescriptorType

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore_fl.datasets import VEGAS, VGGSound
from embstore_fl.datasets.esc50 import ESC50
from tests.fl import layouts
from tests.fl.conftest import Counting
from tests.fl.test_a2v import OldDataset

torch = pytest.importorskip("torch")

from torch.utils.data import ConcatDataset, DataLoader, Subset  # noqa: E402

from embstore_fl.a2v import ESC50Dataset, VEGASDataset, VGGSoundDataset  # noqa: E402
from embstore_fl.datasets import lazy_clips  # noqa: E402
from embstore_fl.datasets.lazy_clips import LazyClips  # noqa: E402

LAZY = {
    "to": lambda audio: audio.to("cpu"),
    "to_dtype": lambda audio: audio.to(torch.float64),
    "to_device": lambda audio: audio.to(device="meta"),
    "cpu": lambda audio: audio.cpu(),
    "detach": lambda audio: audio.detach(),
    "contiguous": lambda audio: audio.contiguous(),
    "stack": lambda audio: torch.stack([audio[0], audio[1]]) if audio.ndim > 1 else torch.stack([audio, audio]),
    "pickle": lambda audio: pickle.loads(pickle.dumps(audio)),
}
ABOUT = {
    "shape": lambda audio: tuple(audio.shape),
    "len": len,
    "size": lambda audio: audio.size(0),
    "dim": lambda audio: (audio.ndim, audio.dim()),
    "numel": lambda audio: audio.numel(),
    "dtype": lambda audio: audio.dtype,
    "device": lambda audio: (audio.device, audio.is_cuda),
    "stride": lambda audio: (audio.stride(), audio.storage_offset(), audio.get_device()),
    "type": lambda audio: isinstance(audio, torch.Tensor),
}
ATTRIBUTES = [
    name
    for name, kind in vars(torch._C.TensorBase).items()
    if isinstance(kind, GetSetDescriptorType) and name[0] != "_" and name not in ("volatile", *lazy_clips._VALUES)
]
ABOUT |= {name: operator.attrgetter(name) for name in ATTRIBUTES}
READS = {
    "data": lambda audio: audio.data,
    "numpy": lambda audio: audio.cpu().numpy(),
    "asarray": np.asarray,
    "as_tensor": lambda audio: torch.as_tensor(audio),
    "item": lambda audio: audio.max().item(),
    "index": lambda audio: audio[..., 3:9],
    "list": lambda audio: audio.tolist(),
    "arithmetic": lambda audio: 2 * audio + 1,
    "compare": lambda audio: audio > 0.1,
    "cat": lambda audio: torch.cat([audio, audio]),
    "mixed_stack": lambda audio: torch.stack([audio, torch.zeros(audio.shape)]),
    "pad": lambda audio: torch.nn.functional.pad(audio, (0, 3)),
    "module": lambda audio: torch.nn.Conv1d(1, 1, 3, bias=False)(audio.reshape(1, 1, -1)).shape,
    "view": lambda audio: audio.reshape(-1),
    "clone": lambda audio: audio.clone(),
    "deepcopy": copy.deepcopy,
    "double": lambda audio: audio.double(),
    "in_place": lambda audio: audio.mul_(2),
    "copy_into": lambda audio: torch.zeros(audio.shape).copy_(audio),
    "iterate": lambda audio: [float(one.sum()) for one in audio],
}


@pytest.fixture
def decoded(monkeypatch):
    """Return the number of clips that were decoded so far."""
    clips = []
    decode = lazy_clips.decode_clip

    def counted(file, settings):
        clips.append(file.path)
        return decode(file, settings)

    monkeypatch.setattr(lazy_clips, "decode_clip", counted)
    return lambda: len(clips)


@pytest.fixture
def dataset(vegas, cache, log):
    embstore.embed(VEGAS(vegas), Counting(log), cache)
    made = VEGASDataset(root_dir=vegas, ast_cache_dir=cache, selected_classes=["dog"])
    made.load_ast_embeddings_from_cache()
    return made


@pytest.fixture
def real(dataset):
    """The decoded clips of the data set."""
    return [dataset._load_audio(one["audio_path"]).numpy() for one in dataset.samples[:4]]


@pytest.mark.parametrize("name", LAZY)
def test_what_a_training_loop_does_with_audio_that_it_does_not_need_decodes_nothing(name, dataset, decoded):
    found = LAZY[name](dataset[0]["audio"])
    assert isinstance(found, LazyClips)
    assert found.shape[-1] == 80_000
    assert decoded() == 0


@pytest.mark.parametrize("name", ABOUT)
def test_questions_about_audio_decode_nothing_and_are_answered_as_by_the_decoded_clip(name, dataset, real, decoded):
    before = decoded()
    clips = torch.stack([dataset[place]["audio"] for place in range(4)])
    for audio, values in ((dataset[0]["audio"], real[0]), (clips, np.stack(real))):
        assert ABOUT[name](audio) == ABOUT[name](torch.from_numpy(values))
    assert decoded() == before


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_report_on_the_memory_of_all_tensors_decodes_nothing(dataset, decoded):
    """As `MemReporter` of the A2V code makes it, at the end of a run."""
    before, audio = decoded(), dataset[0]["audio"]
    for one in (audio, torch.stack([audio, audio])):
        assert not one.is_sparse
        assert one.storage().size() == one.storage().data_ptr() == one.untyped_storage().nbytes() == 0
    assert decoded() == before
    assert audio.any()
    assert audio.untyped_storage().nbytes() == audio.nbytes


@pytest.mark.parametrize("name", READS)
def test_any_other_use_reads_the_decoded_clip(name, dataset, real, decoded):
    torch.manual_seed(0)
    expected = READS[name](torch.from_numpy(real[0].copy()))
    torch.manual_seed(0)
    before = decoded()
    audio = dataset[0]["audio"]
    found = READS[name](audio)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    READS[name](audio)
    assert decoded() - before == 1  # and once only


def test_a_batch_of_clips_is_read_in_order_on_its_device_and_in_its_dtype(dataset, real):
    clips = torch.stack([dataset[place]["audio"] for place in (2, 0)]).to(torch.float64)
    found = clips.detach().cpu().numpy()
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.stack([real[2], real[0]]))
    np.testing.assert_array_equal(clips[1].numpy(), real[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [None, "own"])
def test_collating_keeps_clips_lazy_here_and_in_workers(collate, workers, dataset, decoded, real):
    options = {"batch_size": 4, "num_workers": workers}
    if collate:
        options["collate_fn"] = dataset.get_collate_fn()
    batch = next(iter(DataLoader(dataset, **options)))
    assert isinstance(batch["audio"], LazyClips)
    assert decoded() == 4  # by the fixture
    np.testing.assert_array_equal(batch["audio"].numpy(), np.stack(real))


def test_a_failure_names_the_clip(dataset, vegas):
    sample = dataset[3]
    path = vegas / "dog" / "audios" / "video_00003.wav"
    path.write_bytes(b"nothing")
    with pytest.raises(errors.DecodeError, match=r"video_00003\.wav"):
        sample["audio"].cpu().numpy()
    path.unlink()
    with pytest.raises(errors.SampleError, match=r"video_00003\.wav"):
        torch.stack([dataset[2]["audio"], dataset[3]["audio"]]).numpy()


# -- a data set that is stored in part ---------------------------------------------------------


def esc50(tmp_path):
    return ESC50(layouts.esc50_official(tmp_path / "ESC-50", ["dog", "rain"])), ESC50Dataset


def vggsound(tmp_path):
    return VGGSound(layouts.vggsound(tmp_path / "VGGSound", each=9)), VGGSoundDataset


def vegas_layout(tmp_path):
    return VEGAS(layouts.vegas(tmp_path / "V", {"dog": 10, "drum": 10})), VEGASDataset


def own_class(tmp_path):
    source, _ = vegas_layout(tmp_path)
    return source, lambda root_dir, ast_cache_dir: OldDataset(root_dir, ["dog", "drum"], ast_cache_dir)


@pytest.mark.parametrize("kind", [vegas_layout, esc50, vggsound, own_class])
@pytest.mark.parametrize("first_is_stored", [True, False])
def test_a_batch_that_is_stored_in_part_has_its_audio_and_no_embedding(kind, first_is_stored, tmp_path, cache, log):
    source, make = kind(tmp_path)
    duration = 10.0 if kind is vggsound else 5.0
    keys = [str(sample.key) for sample in source]
    stored = [sample for sample in source if (keys.index(str(sample.key)) % 2 == 0) == first_is_stored]
    part = type("Part", (), {"name": source.name, "__iter__": lambda self: iter(stored)})()
    embstore.embed(part, Counting(log, duration=duration), cache)
    dataset = make(root_dir=source.root, ast_cache_dir=cache)
    dataset.load_ast_embeddings_from_cache()
    assert 0 < len(dataset.ast_missing) < len(dataset)
    own = dataset.get_collate_fn() if hasattr(dataset, "get_collate_fn") else None
    for part, collate_fn in (
        (dataset, None),
        (dataset, own),
        (dataset.train, own),
        (Subset(dataset, range(len(dataset))), None),
        (ConcatDataset([dataset, dataset.val]), None),
    ):
        (batch,) = DataLoader(part, batch_size=len(part), collate_fn=collate_fn)
        assert "audio_emb" not in batch
        assert batch["audio"].shape == (len(part), int(16_000 * duration))
        assert bool(batch["audio"].any())
