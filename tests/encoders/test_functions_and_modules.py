"""Encoders around functions and modules: the same values as a direct call, and a config that matches them."""

import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.record import FieldSpec
from embstore.encoders import module_state
from embstore.encoders.functions import FunctionEncoder
from embstore.encoders.modules import ModuleEncoder
from embstore.sources import Items

try:
    import torch
except ImportError:
    torch = None

with_torch = pytest.mark.skipif(torch is None, reason="needs embstore[torch]")
with_transformers = pytest.mark.skipif(
    torch is None or not find_spec("transformers"), reason="needs embstore[torch] and transformers"
)

CONFIG = {"encoder": "lengths", "version": 1}
FIELDS = {"size": FieldSpec(shape=(1,)), "twice": FieldSpec(shape=(1,))}


def sizes(items):
    assert isinstance(items, list)
    found = np.array([[len(item)] for item in items], np.float32)
    return {"size": found, "twice": 2 * found, "more": found}


# -- functions --------------------------------------------------------------------------------


def test_a_function():
    encoder = FunctionEncoder(lambda items: sizes(items)["size"], config=CONFIG)
    assert encoder.config == CONFIG
    assert encoder.fields is None
    assert encoder.provenance == {}
    assert (encoder.modality, encoder.in_memory) == (None, True)
    assert encoder.decode(b"bark") == b"bark"
    assert encoder.length(b"bark") == 0
    assert encoder.encode((b"bark", b"meow!")).tolist() == [[4], [5]]


def test_a_function_with_everything():
    encoder = FunctionEncoder(
        sizes, config=CONFIG, fields=FIELDS, decode=bytes.decode, length=len, provenance={"library": "1.0"}
    )
    assert encoder.fields == FIELDS
    assert encoder.provenance == {"library": "1.0"}
    assert encoder.decode(b"bark") == "bark"
    assert encoder.length("bark") == 4
    found = encoder.encode(["bark"])
    assert {name: rows.tolist() for name, rows in found.items()} == {"size": [[4]], "twice": [[8]]}


def test_some_of_the_fields():
    encoder = FunctionEncoder(sizes, config=CONFIG, fields=FIELDS)
    narrowed = encoder.with_fields(["twice", "twice"])
    assert list(narrowed.fields) == list(narrowed.encode(["bark"])) == ["twice"]
    assert list(narrowed.with_fields(["size"]).encode(["bark"])) == ["size"]
    assert list(encoder.fields) == ["size", "twice"]
    assert narrowed.config == encoder.config
    with pytest.raises(errors.UnknownFieldError) as caught:
        encoder.with_fields(["more"])
    assert caught.value.available == ("size", "twice")
    with pytest.raises(errors.UnknownFieldError):
        FunctionEncoder(sizes, config=CONFIG).with_fields(["size"])


def test_rows_without_a_name_are_those_of_the_one_field():
    one = FunctionEncoder(lambda items: sizes(items)["size"], config=CONFIG, fields={"size": FIELDS["size"]})
    assert one.encode(["bark"])["size"].tolist() == [[4]]
    two = FunctionEncoder(lambda items: sizes(items)["size"], config=CONFIG, fields=FIELDS)
    for encoder in (two, two.with_fields(["twice"])):
        with pytest.raises(TypeError, match="expected a mapping with size, twice, found ndarray"):
            encoder.encode(["bark"])


def test_a_field_that_the_function_did_not_return():
    encoder = FunctionEncoder(lambda items: {"other": 1}, config=CONFIG, fields=FIELDS)
    with pytest.raises(errors.UnknownFieldError, match=r"no field 'size'.*other"):
        encoder.encode(["bark"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"config": {}}, errors.ConfigError),
        ({"config": {"rate": float("nan")}}, errors.ConfigError),
        ({"config": {"path": Path("model")}}, errors.ConfigError),
        ({"config": CONFIG, "fields": {}}, errors.ConfigError),
        ({"config": CONFIG, "fields": {"a:b": FieldSpec(shape=(1,))}}, errors.NameRefusedError),
        ({"config": CONFIG, "fields": {"a": (1,)}}, TypeError),
    ],
)
def test_options_that_are_refused(options, error):
    with pytest.raises(error):
        FunctionEncoder(sizes, **options)


def test_the_config_can_not_be_changed_from_outside():
    config = {"encoder": {"id": "sizes"}}
    encoder = FunctionEncoder(sizes, config=config, fields=FIELDS)
    config["encoder"]["id"] = "other"
    encoder.config["encoder"]["id"] = "other"
    assert encoder.config == {"encoder": {"id": "sizes"}}
    encoder.fields.clear()
    assert encoder.fields == FIELDS


@pytest.mark.parametrize(
    "wrong",
    [FunctionEncoder, object(), None, "sentence-transformers/all-MiniLM-L6-v2", sizes, embstore.from_pretrained, {}],
)
def test_an_object_that_is_no_encoder(tmp_path, wrong):
    source = Items({"a": b"bark"}, name="sounds")
    encoder = FunctionEncoder(sizes, config=CONFIG)
    store = embstore.embed(source, encoder, tmp_path / "cache").store
    uses = [lambda: embstore.embed(source, wrong, tmp_path / "cache"), lambda: embstore.check(store, wrong, source)]
    for use in uses:
        with pytest.raises(TypeError, match=r"expected an encoder.*embstore\.from_pretrained"):
            use()


@with_transformers
def test_a_model_is_no_encoder(tmp_path):
    from transformers import AutoModel, BertConfig, BertModel

    model = BertModel(BertConfig(num_hidden_layers=0, hidden_size=12, vocab_size=2))  # it has a `config`
    for wrong in (AutoModel, BertModel, model, net()):
        with pytest.raises(TypeError, match=r"expected an encoder.*ModuleEncoder"):
            embstore.embed(Items({"a": b"bark"}, name="sounds"), wrong, tmp_path / "cache")


# -- modules ----------------------------------------------------------------------------------


def net(seed=0, last=None):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 16), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(16), last or torch.nn.Linear(16, 4)
    )


def stacked(items):
    return torch.from_numpy(np.stack(items).astype(np.float32))


def direct(module, items):
    was = module.training
    with torch.no_grad():
        found = module.eval()(stacked(items))
    module.train(was)
    return found


@pytest.fixture
def items(rng):
    return list(rng.standard_normal((5, 3)))


@with_torch
@pytest.mark.parametrize("count", [1, 5])
def test_a_module_gives_what_a_direct_call_gives(items, count):
    module = net()
    found = ModuleEncoder(module, collate=stacked).encode(items[:count])
    assert list(found) == ["embedding"]
    assert torch.equal(found["embedding"], direct(module, items[:count]))
    assert not found["embedding"].requires_grad
    assert found["embedding"].is_contiguous()
    assert found["embedding"].numpy().shape == (count, 4)


@with_torch
def test_the_config_of_a_module():
    module = net()
    config = ModuleEncoder(module, collate=stacked).config
    assert list(config) == ["encoder", "compute_dtype"]
    assert config["encoder"]["id"] == "Sequential"
    assert config["encoder"]["weights"] == module_state.digest_module(module)
    assert config["compute_dtype"] == "float32"
    assert ModuleEncoder(net(), collate=stacked).config == config
    assert ModuleEncoder(net(), collate=stacked).in_memory
    named = ModuleEncoder(module, collate=stacked, id="lab/net", config={"sample_rate": 16_000}).config
    assert [str(difference) for difference in config.diff(named)] == [
        "encoder.id: expected 'Sequential', found 'lab/net'",
        "sample_rate: expected (absent), found 16000",
    ]


@with_torch
def test_what_the_values_depend_on_is_in_the_config():
    encoders = [
        ModuleEncoder(net(), collate=stacked),
        ModuleEncoder(net(1), collate=stacked),
        ModuleEncoder(net(last=torch.nn.ReLU()), collate=stacked),
        ModuleEncoder(net(last=torch.nn.GELU()), collate=stacked),  # of the very same weights
        ModuleEncoder(net(last=torch.nn.GELU("tanh")), collate=stacked),
        ModuleEncoder(net(), collate=stacked, compute_dtype="bfloat16"),
        ModuleEncoder(net().bfloat16(), collate=stacked),
        ModuleEncoder(net(), collate=stacked, id="other"),
        ModuleEncoder(net(), collate=stacked, config={"frames": 3}),
    ]
    assert len({encoder.config.fingerprint for encoder in encoders}) == len(encoders)


@with_torch
def test_addresses_in_a_repr_do_not_count():
    class Named(torch.nn.Identity):
        def __init__(self):
            super().__init__()
            self.function = object()

        def extra_repr(self):
            return repr(self.function)

    assert ModuleEncoder(Named(), collate=stacked).config == ModuleEncoder(Named(), collate=stacked).config


@with_torch
@pytest.mark.parametrize("config", [{"encoder": "mine"}, {"compute_dtype": "float64"}, {"rate": float("nan")}])
def test_a_config_that_contradicts_the_module_is_refused(config):
    with pytest.raises(errors.ConfigError):
        ModuleEncoder(net(), collate=stacked, config=config)


@with_torch
def test_each_part_of_a_module_gets_its_mode_back(items):
    module = net().train()
    module[1].eval()
    ModuleEncoder(module, collate=stacked).encode(items)
    assert [part.training for part in module.modules()] == [True, True, False, True, True]

    def broken(module, inputs):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        ModuleEncoder(module, collate=stacked, forward=broken).encode(items)
    assert [part.training for part in module.modules()] == [True, True, False, True, True]
    ModuleEncoder(module.eval(), collate=stacked).encode(items)
    assert not any(part.training for part in module.modules())


@with_torch
def test_inputs_of_each_kind(items):
    class Affine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x, shift=0.0, *, on=True):
            if isinstance(x, list):
                x = torch.stack(x)
            return x * self.scale + shift if on else x

    expected = direct(torch.nn.Identity(), items) * 2
    for collate, shift in [
        (stacked, 0),
        (lambda items: (stacked(items),), 0),
        (lambda items: (stacked(items), 3.0), 3),
        (lambda items: {"x": stacked(items), "shift": torch.tensor(1.0), "on": True}, 1),
        (lambda items: list(stacked(items)), 0),
    ]:
        found = ModuleEncoder(Affine(), collate=collate).encode(items)["embedding"]
        assert torch.equal(found, expected + shift)


@with_torch
def test_packed_sequences(rng):
    from torch.nn.utils.rnn import pack_sequence

    class Last(torch.nn.GRU):
        def forward(self, packed):
            return super().forward(packed)[1][0]

    torch.manual_seed(0)
    module = Last(3, 4, batch_first=True)
    items = [rng.standard_normal((n, 3)).astype(np.float32) for n in (2, 5, 3)]
    encoder = ModuleEncoder(
        module,
        collate=lambda items: pack_sequence([torch.from_numpy(item) for item in items], enforce_sorted=False),
        length=len,
    )
    found = encoder.encode(items)["embedding"]
    for row, item in zip(found, items, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(row, torch.nn.GRU.forward(module, torch.from_numpy(item[None]))[1][0, 0])
    assert encoder.length(items[1]) == 5


@with_torch
def test_fields_of_a_module(items):
    module = net()
    fields = {
        "half": FieldSpec(shape=(4,), dtype="float16"),
        "place": FieldSpec(shape=(), dtype="int64"),
        "tokens": FieldSpec(shape=(4,), ragged=True),
    }

    def forward(module, inputs):
        rows = module(inputs)
        return {
            "half": rows,
            "place": rows.argmax(1),
            "tokens": [row.expand(i + 1, 4) for i, row in enumerate(rows)],
            "unused": "not a tensor",
        }

    encoder = ModuleEncoder(module, collate=stacked, forward=forward, fields=fields)
    found = encoder.encode(items)
    rows = direct(module, items)
    assert list(found) == ["half", "place", "tokens"]
    assert torch.equal(found["half"], rows.half())
    assert torch.equal(found["place"], rows.argmax(1))
    assert [row.shape for row in found["tokens"]] == [(i + 1, 4) for i in range(5)]
    assert torch.equal(found["tokens"][4][3], rows[4])
    narrowed = encoder.with_fields(["place"])
    assert list(narrowed.encode(items)) == ["place"]
    assert narrowed.config == encoder.config


@with_torch
def test_outputs_that_are_not_tensors(items):
    fields = {"a": FieldSpec(shape=(4,))}
    for returned, declared in [
        ((1, 2), None),
        ({"a": "text"}, None),
        ({"a": (torch.zeros(5, 4),) * 5}, None),
        ({"a": (torch.zeros(5, 4),) * 5}, fields),
        ([torch.zeros(4)] * 5, fields),
        (None, None),
    ]:
        encoder = ModuleEncoder(
            net(), collate=stacked, forward=lambda module, inputs, found=returned: found, fields=declared
        )
        with pytest.raises(TypeError, match="pass a function forward="):
            encoder.encode(items)
    encoder = ModuleEncoder(net(), collate=stacked, forward=lambda module, inputs: {"b": inputs}, fields=fields)
    with pytest.raises(errors.UnknownFieldError):
        encoder.encode(items)


@with_transformers
def test_a_model_of_transformers():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16}
    model = BertModel(BertConfig(vocab_size=20, hidden_size=8, **sizes))

    def collate(items):
        return {"input_ids": torch.tensor(items)}

    items = [[1, 2, 3], [4, 5, 6]]
    found = ModuleEncoder(model, collate=collate).encode(items)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(items))
    assert list(found) == ["last_hidden_state", "pooler_output"]
    assert torch.equal(found["pooler_output"], expected.pooler_output)
    pooled = ModuleEncoder(
        model, collate=collate, forward=lambda model, inputs: model(**inputs).last_hidden_state[:, 0]
    ).encode(items)["embedding"]
    assert torch.equal(pooled, expected.last_hidden_state[:, 0])
    assert pooled.is_contiguous()


# -- dtypes and devices -----------------------------------------------------------------------


@with_torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(items, dtype):
    module = net()
    found = ModuleEncoder(module, collate=stacked, compute_dtype=dtype).encode(items)["embedding"]
    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        expected = direct(module, items)
    assert found.dtype == getattr(torch, dtype)
    assert torch.equal(found, expected)
    wide = ModuleEncoder(module, collate=stacked, compute_dtype=dtype, fields={"vector": FieldSpec(shape=(4,))})
    assert torch.equal(wide.encode(items)["vector"], expected.float())


@with_torch
def test_float32_is_float32_whatever_the_caller_is_in(items):
    module = net()
    encoder = ModuleEncoder(module, collate=stacked)
    expected = direct(module, items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(items)["embedding"], expected)


@with_torch
@pytest.mark.parametrize("dtype", ["float64", "int8", "half", "", None])
def test_a_compute_dtype_that_is_none(dtype):
    with pytest.raises(errors.ConfigError) as caught:
        ModuleEncoder(net(), collate=stacked, compute_dtype=dtype)
    assert caught.value.attribute == "compute_dtype"


@with_torch
def test_a_compute_dtype_that_the_device_lacks(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # as where autocast warns and does nothing
    with pytest.raises(errors.ConfigError, match="autocast has on cpu"):
        ModuleEncoder(net(), collate=stacked, compute_dtype="float16")


@with_torch
def test_provenance_and_the_device(items):
    module = net()
    encoder = ModuleEncoder(module, collate=stacked, device="cpu")
    assert encoder.provenance == {"device": "cpu", "torch": str(torch.__version__)}
    assert torch.equal(encoder.encode(items)["embedding"], direct(module, items))
    assert ModuleEncoder(torch.nn.Identity(), collate=stacked).provenance["device"] == "cpu"  # it has no tensors


@with_torch
@pytest.mark.skipif(torch is None or not torch.cuda.is_available(), reason="needs a GPU")
def test_a_module_on_a_gpu(items):
    module = net()
    expected = direct(module, items)
    encoder = ModuleEncoder(module, collate=stacked)
    config = encoder.config
    module.to("cuda")  # the same weights elsewhere
    found = encoder.encode(items)["embedding"]
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected)
    assert ModuleEncoder(module, collate=stacked).config == config
    assert encoder.provenance["device"] == torch.cuda.get_device_name()
    for dtype in ("bfloat16", "float16"):
        half = ModuleEncoder(module, collate=stacked, compute_dtype=dtype).encode(items)["embedding"]
        torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


# -- weights that change ----------------------------------------------------------------------


def replace_weight(module, change):
    module[0].weight = torch.nn.Parameter(change(module[0].weight.detach()))


def replace_after_freeing(module):
    values = module[0].weight.detach().numpy().copy() + 1
    del module[0].weight
    module[0].register_parameter("weight", torch.nn.Parameter(torch.from_numpy(values)))


def train(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(torch.ones(4, 3)).sum().backward()
    optimizer.step()


CHANGES = {
    "in place": lambda module: module[0].weight.detach().add_(1),
    "one value": lambda module: module.state_dict()["3.bias"][:1].add_(1),
    "replaced": lambda module: replace_weight(module, lambda weight: weight + 1),
    "replaced after freeing": replace_after_freeing,
    "data replaced": lambda module: setattr(module[0].weight, "data", module[0].weight.data + 1),
    "loaded": lambda module: module.load_state_dict(net(1).state_dict()),
    "buffer": lambda module: module[2].running_mean.fill_(3),
    "trained": train,
    # After these the module can't be called with the same items.
    "halved": lambda module: module.half(),
    "grown": lambda module: module.add_module("more", torch.nn.Linear(4, 4)),
    "tied": lambda module: replace_weight(module, lambda _: module[3].weight.detach()[:3].t()),
}


@with_torch
@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_changed_are_not_encoded_with(items, change):
    module = net()
    encoder = ModuleEncoder(module, collate=stacked, id="lab/net")
    encoder.encode(items)
    CHANGES[change](module)
    for _ in range(2):
        with pytest.raises(errors.WeightsChangedError, match="lab/net") as caught:
            encoder.encode(items)
    assert caught.value.path == Path("lab/net")
    assert "make a new ModuleEncoder" in caught.value.__notes__[0]
    if change not in ("halved", "grown", "tied"):
        assert ModuleEncoder(module, collate=stacked).encode(items)["embedding"].shape == (5, 4)


@with_torch
def test_other_weights_never_come_to_lie_where_the_old_ones_were():
    for _ in range(8):  # memory that is given back is used again in about half of the cases
        module = torch.nn.Linear(2048, 2048, bias=False)
        encoder = ModuleEncoder(module, collate=stacked)
        address, shape = module.weight.data_ptr(), module.weight.shape
        del module.weight
        others = [torch.empty(shape) for _ in range(20)]
        assert address not in [other.data_ptr() for other in others]
        assert encoder.config["encoder"]["id"] == "Linear"


@with_torch
def test_what_leaves_the_weights_as_they_are_is_no_change(items):
    module = net()
    encoder = ModuleEncoder(module, collate=stacked)
    expected = encoder.encode(items)["embedding"]
    for change in (
        lambda: module.load_state_dict(net().state_dict()),
        lambda: module.requires_grad_(False).train(),
        lambda: setattr(module[0], "weight", torch.nn.Parameter(module[0].weight.detach().clone())),
        lambda: module.double().float(),
        lambda: module.to("cpu"),
    ):
        change()
        assert torch.equal(encoder.encode(items)["embedding"], expected)


@with_torch
def test_unchanged_weights_are_digested_once(items, monkeypatch):
    digested = []
    digest = module_state.digest_module
    monkeypatch.setattr(module_state, "digest_module", lambda module: digested.append(1) or digest(module))
    module = net()
    encoder = ModuleEncoder(module, collate=stacked)
    for _ in range(3):
        encoder.encode(items)
    assert len(digested) == 1
    module.load_state_dict(net().state_dict())
    for _ in range(3):
        encoder.encode(items)
    assert len(digested) == 2


@with_torch
def test_a_module_that_writes_to_its_own_state_is_not_frozen(items):
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x + self.calls

    with pytest.raises(errors.WeightsChangedError):
        ModuleEncoder(Counting(), collate=stacked).encode(items)


@with_torch
def test_a_module_made_for_inference_alone(items):
    with torch.inference_mode():
        module = net()
    encoder = ModuleEncoder(module, collate=stacked)  # changes of its tensors are not counted
    assert encoder.encode(items)["embedding"].shape == (5, 4)
    with torch.inference_mode():
        module[0].weight.add_(1)
    with pytest.raises(errors.WeightsChangedError):
        encoder.encode(items)


@with_torch
def test_a_pickled_encoder_is_the_same(items):
    encoder = ModuleEncoder(net(), collate=stacked, config={"frames": 3})
    other = pickle.loads(pickle.dumps(encoder))
    assert other.config == encoder.config
    assert torch.equal(other.encode(items)["embedding"], encoder.encode(items)["embedding"])


# -- through the loop -------------------------------------------------------------------------


class Source:
    name = "numbers"

    def __iter__(self):
        for i in range(7):
            yield embstore.Sample(f"{i}", lambda i=i: np.array([i, i, 1.0]), embstore.digest_of(str(i)))


@with_torch
def test_a_module_is_run_once(tmp_path):
    module = net()
    encoder = ModuleEncoder(module, collate=stacked, fields={"vector": FieldSpec(shape=(4,))})
    cache = embstore.Cache(tmp_path / "cache")
    assert embstore.embed(Source(), encoder, cache, batch_size=3).encoded == 7
    again = embstore.embed(Source(), ModuleEncoder(net(), collate=stacked), cache, batch_size=3)
    assert (again.encoded, again.hits) == (0, 7)
    with cache.open(again.config) as store:
        row = store.fetch(["3"], "vector")
    assert np.allclose(row, direct(module, [np.array([3, 3, 1.0])]).numpy(), atol=1e-6)


OVERFLOWS = {
    "a function": lambda: FunctionEncoder(
        lambda items: np.stack(items).astype(np.float16) * np.float16(60_000),
        config=CONFIG,
        fields={"vector": FieldSpec(shape=(3,), dtype="float16")},
    ),
    "a module": lambda: ModuleEncoder(
        torch.nn.Identity(),
        collate=lambda items: stacked(items) * 60_000,
        fields={"vector": FieldSpec(shape=(3,), dtype="float16")},
    ),
    "tokens": lambda: ModuleEncoder(
        torch.nn.Identity(),
        collate=lambda items: stacked(items)[:, :, None] * 60_000,
        forward=lambda module, inputs: {"vector": list(inputs)},
        fields={"vector": FieldSpec(shape=(1,), dtype="float16", ragged=True)},
    ),
}


@with_torch
@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("kind", OVERFLOWS)
def test_numbers_that_are_too_large_for_the_stored_dtype_are_not_blamed_on_the_encoder(tmp_path, kind):
    result = embstore.embed(Source(), OVERFLOWS[kind](), tmp_path / "cache")
    assert [failure.key for failure in result.failed] == [f"{i}" for i in range(2, 7)]
    for failure in result.failed:
        assert failure.reason == (
            "infinity (vector): the largest number of float16 is 65,504: store the field as float32 or bfloat16"
        )
