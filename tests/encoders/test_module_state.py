"""Digests of modules in memory: of their tensors, and of all else that their outputs depend on."""

import collections
import copy
import ctypes
import functools
import io
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import types
import weakref
from pathlib import Path

import numpy as np
import pytest

from embstore import errors
from embstore.encoders.module_state import digest_module, digest_structure
from embstore.encoders.modules import ModuleEncoder

torch = pytest.importorskip("torch")


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def test_modules_of_equal_state_have_one_digest():
    assert digest_module(net()) == digest_module(net())
    assert len(digest_module(net())) == 32
    assert digest_module(net()) != digest_module(net(1))
    module = torch.nn.Module()
    module.register_buffer("x", torch.tensor([float("nan")]))
    assert digest_module(module) == digest_module(module)  # by its bits: NaN is unequal to itself


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked", "2.weight"])
def test_one_changed_value_is_another_digest(name):
    module = net()
    before = digest_module(module)
    value = module.state_dict()[name].view(-1)
    value[-1] = value[-1] + 1
    assert digest_module(module) != before


def test_names_shapes_and_dtypes_count():
    zeros = torch.zeros(4)
    digests = set()
    for name, value in [
        ("a", zeros),
        ("b", zeros),
        ("a", zeros.view(2, 2)),
        ("a", zeros.view(4, 1)),
        ("a", zeros.to(torch.int32)),
        ("a", torch.zeros(0)),
        ("a", torch.zeros(0, 3)),
        ("a", torch.tensor(0.0)),
        ("a", -zeros),
    ]:
        module = torch.nn.Module()
        module.register_buffer(name, value)
        digests.add(digest_module(module))
    assert len(digests) == 9


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn"]
)
def test_every_dtype_is_digested_by_its_bits(dtype):
    bits = torch.arange(64, dtype=torch.uint8)
    values = (bits % 2) if dtype == "bool" else bits
    module = torch.nn.Module()
    module.register_buffer("x", values.view(getattr(torch, dtype)))
    before = digest_module(module)
    other = values.clone()
    other[0] ^= 1
    module.x = other.view(getattr(torch, dtype))
    assert digest_module(module) != before


def test_the_layout_in_memory_does_not_count():
    values = torch.arange(12.0).reshape(3, 4)
    digests = set()
    for same in (values, values.t().contiguous().t(), torch.cat([values, values])[3:], values[:, :]):
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(same)
        digests.add(digest_module(module))
    assert len(digests) == 1
    conjugate = torch.nn.Module()
    conjugate.register_buffer("x", torch.tensor([1 + 2j]).conj())
    plain = torch.nn.Module()
    plain.register_buffer("x", torch.tensor([1 - 2j]))
    assert digest_module(conjugate) == digest_module(plain)


def test_tied_weights_and_modes_do_not_count():
    tied, untied = net(), net()
    tied.add_module("3", tied[0])
    untied.add_module("3", torch.nn.Linear(3, 4))
    untied[3].load_state_dict(untied[0].state_dict())
    assert digest_module(tied) == digest_module(untied)
    assert digest_module(net().eval().requires_grad_(False)) == digest_module(net())
    with torch.inference_mode():
        assert digest_module(net()) == digest_module(net())


def test_state_that_is_not_plain_tensors_is_refused():
    sparse = torch.nn.Module()
    sparse.register_buffer("x", torch.eye(3).to_sparse())
    for module, words in [
        (torch.nn.Linear(2, 2, device="meta"), "weight|bias"),
        (sparse, "'x'.*sparse"),
    ]:
        with pytest.raises(TypeError, match=words):
            digest_module(module)


def test_a_saved_module_has_the_digest_of_the_one_in_memory(tmp_path):
    module = net()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    other = net(1)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert digest_module(other) == digest_module(module)
    array = next(other.parameters()).detach().numpy()
    array[0, 0] = np.nextafter(array[0, 0], np.float32(9))
    assert digest_module(other) != digest_module(module)


# -- all else ---------------------------------------------------------------------------------

IN, OUT = 4, 4
SCALE = 2.0


def helper(x):
    return x * 2


class Module(torch.nn.Module):
    """A module of one layer, whose attributes are given."""

    def __init__(self, **attributes):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(IN, OUT)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.layer(x)


class Attribute(Module):
    def forward(self, x):
        value = self.value
        for _ in range(2):
            value = next(iter(value.values())) if isinstance(value, dict) else value
            value = value[0] if isinstance(value, list | tuple) else value
            value = getattr(value, "scale", value)
        return self.layer(x) * value


class Settings:
    def __init__(self, scale):
        self.scale = scale


class Tagged(torch.Tensor):
    pass


class Sparse:
    def __init__(self, tensor):
        self.tensor = tensor

    @property
    def scale(self):
        return self.tensor.to_dense().diagonal()


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


class Applied(Module):
    def forward(self, x):
        return self.function(self.layer(x))


class Listed(Module):
    def forward(self, x):
        return self.parts[0](self.layer(x))


def linear(seed, **options):
    torch.manual_seed(seed)
    return torch.nn.Linear(OUT, OUT, **options)


def buffer(value, persistent):
    class Buffered(Module):
        def forward(self, x):
            return self.layer(x) * self.scale

    module = Buffered()
    module.register_buffer("scale", torch.tensor(value), persistent=persistent)
    return module


def hooked(kind, hook):
    module = Module()
    getattr(module, f"register_forward{kind}_hook")(hook)
    return module


def inner_hook(factor):
    module = torch.nn.Sequential(Module(), torch.nn.Identity())
    module[1].register_forward_hook(lambda module, inputs, output: output * factor)
    return module


def named_net(body):
    """A class of one name, with another `forward`."""

    class Net(Module):
        forward = body

    return Net()


def method_of(value):
    class Net(Module):
        def forward(self, x):
            return self.pool(self.layer(x))

        if value:

            def pool(self, x):
                return x.mean(1)
        else:

            def pool(self, x):
                return x.amax(1)

    return Net()


def method_of_a_part(value):
    class Part(Module):
        def pool(self, x):
            return self.layer(x) * value

    class Net(Module):
        def __init__(self):
            super().__init__()
            self.part = Part()

        def forward(self, x):
            return self.part.pool(x)

    return Net()


def method_of_an_object(value):
    class Pooling:
        def apply(self, x):
            return x * value

    class Net(Module):
        def forward(self, x):
            return self.pooling.apply(self.layer(x))

    return Net(pooling=Pooling())


def class_value(value):
    class Net(Module):
        factor = value

        def forward(self, x):
            return self.layer(x) * self.factor

    return Net()


def prop(value):
    class Net(Module):
        @property
        def factor(self):
            return value

        def forward(self, x):
            return self.layer(x) * self.factor

    return Net()


def inherited(value):
    class Base(Module):
        def forward(self, x):
            return self.layer(x) * value

    class Net(Base):
        def forward(self, x):
            return super().forward(x)

    return Net()


def decorated(value):
    class Net(Module):
        @torch.no_grad()
        def forward(self, x):
            return self.layer(x) * value

    return Net()


def made_of_text(body):
    """A class without a file, as it is typed in."""
    scope = {"Module": Module, "__name__": "__main__"}
    exec(
        textwrap.dedent(f"""
        class Net(Module):
            def forward(self, x):
                return {body}
    """),
        scope,
    )
    return scope["Net"]()


def replaced(value):
    module = Module()
    module.forward = types.MethodType(lambda self, x: self.layer(x) * value, module)
    return module


def transformer(**options):
    torch.manual_seed(0)
    return torch.nn.TransformerEncoderLayer(OUT, options.pop("nhead", 2), 8, batch_first=True, **options)


def read(get, *values):
    """A module that multiplies by a number that it gets from one of two objects."""

    class Reading(Module):
        def forward(self, x):
            return self.layer(x) * get(self.value)

    return lambda v: Reading(value=values[v])


def of_class(**members):
    """A module of a class with more members. They are read at the value 0 or 1."""

    def make(v):
        return type("Net", (Module,), {name: member(v) for name, member in members.items()})()

    return make


def from_text(lines):
    """A module whose `forward` was made by `exec`, as by a library that writes code."""

    def make(v):
        made = {"torch": torch}
        exec(lines.format(v=v, name=["relu", "tanh"][v]), made)
        return of_class(forward=lambda v: made["forward"])(v)

    return make


def described(v):
    class Descriptor:
        def __get__(self, owner, kind=None):
            return 1.0 + v

    return of_class(scale=lambda v: Descriptor(), forward=lambda v: lambda self, x: self.layer(x) * self.scale)(v)


def parametrized(v):
    class Times(Attribute):
        def forward(self, x):
            return x * self.value

    module = torch.nn.Sequential(linear(0))
    torch.nn.utils.parametrize.register_parametrization(module[0], "weight", Times(value=1.0 + v))
    return module


class Scripted(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(IN, OUT)
        self.scale = float(scale)

    def forward(self, x):
        return self.layer(x) * self.scale


class Attention(torch.nn.Module):
    def __init__(self, heads):
        super().__init__()
        torch.manual_seed(0)
        self.attention = torch.nn.MultiheadAttention(OUT, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


SETTINGS = (Settings(1.0), Settings(2.0))
PAIRS = {
    "a buffer that is not persistent": lambda v: buffer(1.0 + v, persistent=False),
    "a persistent buffer": lambda v: buffer(1.0 + v, persistent=True),
    "a tensor as an attribute": lambda v: Attribute(value=torch.tensor(1.0 + v)),
    "a tensor in a list": lambda v: Attribute(value=[torch.tensor(1.0 + v)]),
    "an array as an attribute": lambda v: Attribute(value=torch.from_numpy(np.full(OUT, 1.0 + v, np.float32))),
    "a sparse tensor": lambda v: Attribute(value=[Sparse((torch.eye(OUT) * (1 + v)).to_sparse())]),
    "a tensor of another class": lambda v: Attribute(value=torch.full((OUT,), 1.0 + v).as_subclass(Tagged)),
    "a number": lambda v: Attribute(value=1 + v),
    "a number in a dictionary": lambda v: Attribute(value={"scale": 1 + v}),
    "a number in lists": lambda v: Attribute(value=[(1.0 + v,)]),
    "a number in an object": lambda v: Attribute(value=Settings(1 + v)),
    "a number in an object with slots": lambda v: Attribute(value=[Slotted(1 + v)]),
    "a module in a list": lambda v: Listed(parts=[linear(v)]),
    "a module in a dictionary": lambda v: Listed(parts={0: linear(v)}),
    "a function": lambda v: Applied(function=[torch.relu, torch.tanh][v]),
    "a lambda": lambda v: Applied(function=[lambda x: x + 1, lambda x: x + 2][v]),
    "a partial": lambda v: Applied(function=functools.partial(torch.add, other=v)),
    "a function of a module": lambda v: Applied(function=linear(v).forward),
    "hyperparameters of a library's layer": lambda v: Applied(function=torch.nn.LeakyReLU(0.1 + v)),
    "attention heads": lambda v: Attention([2, 4][v]),
    "nhead": lambda v: transformer(nhead=[2, 4][v]),
    "norm_first": lambda v: transformer(norm_first=bool(v)),
    "activation": lambda v: transformer(activation=["relu", "gelu"][v]),
    "a forward hook": lambda v: hooked("", [lambda m, i, o: o + 1, lambda m, i, o: o + 2][v]),
    "a forward hook or none": lambda v: hooked("", lambda m, i, o: o + 1) if v else Module(),
    "a forward pre-hook": lambda v: hooked("_pre", [lambda m, i: (i[0] + 1,), lambda m, i: (i[0] + 2,)][v]),
    "the closure of a hook in a submodule": inner_hook,
    "forward of a class of one name": lambda v: named_net(
        [lambda self, x: self.layer(x), lambda self, x: self.layer(x) * 2][v]
    ),
    "a method that forward calls": method_of,
    "a method of a submodule": lambda v: method_of_a_part(1 + v),
    "a method of an object": lambda v: method_of_an_object(1 + v),
    "a value of the class": lambda v: class_value(1 + v),
    "a property": lambda v: prop(1 + v),
    "forward of a base class": lambda v: inherited(1 + v),
    "a decorated forward": lambda v: decorated(1 + v),
    "forward of a class that was typed in": lambda v: made_of_text(["self.layer(x)", "self.layer(x) - 1"][v]),
    "forward of one instance": lambda v: replaced(1 + v),
    "a number of NumPy": read(float, np.float32(1), np.float32(2)),
    "an integer of NumPy": read(int, np.int64(1), np.int64(2)),
    "a date of NumPy": read(lambda value: value.astype(int), np.datetime64(1, "s"), np.datetime64(2, "s")),
    "bytes of a view": read(lambda value: value[0], memoryview(b"\1"), memoryview(b"\2")),
    "a file in memory": read(lambda value: value.getvalue()[0], io.BytesIO(b"\1"), io.BytesIO(b"\2")),
    "an array of C": read(lambda value: value[0], (ctypes.c_float * 1)(1), (ctypes.c_float * 1)(2)),
    "a long pattern": read(lambda value: len(value.pattern), re.compile("a" * 300), re.compile("a" * 301)),
    "a seeded generator": read(
        lambda value: torch.rand(1, generator=value.clone_state()),
        *(torch.Generator().manual_seed(seed) for seed in (0, 1)),
    ),
    "a weak reference": read(lambda value: value().scale, *map(weakref.ref, SETTINGS)),
    "the default of a dictionary": read(
        lambda value: value["x"], *(collections.defaultdict(functools.partial(float, v)) for v in (1, 2))
    ),
    "a descriptor": described,
    "a member by its name as text": of_class(
        one=lambda v: lambda self, x: x * (1 + v),
        forward=lambda v: lambda self, x: getattr(self, "one")(self.layer(x)),  # noqa: B009
    ),
    "a constant of code without source": from_text("def forward(self, x): return self.layer(x) * {v}"),
    "a name in code without source": from_text("def forward(self, x): return torch.{name}(self.layer(x))"),
    "a function in code without source": from_text("def forward(self, x): return (lambda y: y + {v})(self.layer(x))"),
    "a parametrisation": parametrized,
    "an attribute of TorchScript": lambda v: torch.jit.script(Scripted(1 + v)),
    "a constant of a trace": lambda v: torch.jit.trace(Scripted(1 + v), torch.ones(2, IN)),
    "the order of modules": lambda v: torch.nn.Sequential(*[torch.nn.Sigmoid(), torch.nn.Tanh()][:: 1 - 2 * v]),
}
"""Modules of equal names and shapes, by 0 and 1, whose outputs differ."""


def config_of(module):
    return ModuleEncoder(module, collate=lambda items: torch.stack(items), id="net").config


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", PAIRS)
def test_modules_of_other_outputs_have_other_configs(kind):
    first, second = (PAIRS[kind](value).eval() for value in (0, 1))
    x = torch.linspace(-2, 3, 3 * IN).reshape(1, 3, IN)
    with torch.inference_mode():
        assert not torch.equal(first(x), second(x))  # or the case tests nothing
    assert config_of(first) != config_of(second)
    assert config_of(PAIRS[kind](0)) == config_of(first)


def test_a_module_that_keeps_its_training_mode():
    """Its batch norm uses the statistics of each batch."""
    kept = of_class(train=lambda v: lambda self, mode=True: Module.train(self, True))(0)
    assert config_of(kept) != config_of(of_class()(0))


def test_helpers_and_globals_that_forward_reads(monkeypatch):
    class Net(Module):
        def forward(self, x):
            return helper(self.layer(x)) * SCALE

    digests = {digest_structure(Net())}
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    digests.add(digest_structure(Net()))
    monkeypatch.setitem(globals(), "helper", lambda x: x - 1)
    digests.add(digest_structure(Net()))
    assert len(digests) == 3


def test_a_function_that_is_called_in_place_of_the_module():
    def net(value):
        class Net(Module):
            def pool(self, x):
                return self.layer(x) * value

            def training_step(self, batch):
                return batch * value

        return Net()

    def config(value, forward):
        return ModuleEncoder(net(value), collate=torch.stack, forward=forward).config

    def twice(module, x):
        return 2 * module.layer(x)

    assert config(1, lambda module, x: module.pool(x)) != config(2, lambda module, x: module.pool(x))
    assert config(1, twice) != config(1, lambda module, x: module.layer(x))
    assert config(1, twice) == config(2, twice)  # nothing reads the value
    assert config(1, None) == config(2, None)


class Keeps(Module):
    """It keeps results, as modules for analysis do."""

    def __init__(self):
        super().__init__()
        self.last, self.maps, self.by_length = None, [], {}

    def forward(self, x):
        self.last = self.layer(x)
        self.maps.append(self.last)
        self.by_length[len(x)] = self.maps
        self.new = (self.last, [self.last])
        return self.last


SAME = {
    "a copy": copy.deepcopy,
    "a pickled copy": lambda module: pickle.loads(pickle.dumps(module)),
    "evaluation mode": lambda module: module.eval(),
    "no gradients": lambda module: module.requires_grad_(False),
    "a state that was loaded": lambda module: (module.load_state_dict(module.state_dict()), module)[1],
    "a backward hook": lambda module: (module.register_full_backward_hook(print), module)[1],
    "a hook that was removed": lambda module: (module.register_forward_hook(print).remove(), module)[1],
    "a pass": lambda module: (config_of(module), module(torch.ones(2, IN)), module)[2],
    "a pass of inference": lambda module: (encoded(module), module)[1],
    "another device": lambda module: module.to("cpu"),
}


def encoded(module):
    return ModuleEncoder(module, collate=torch.stack, id="net").encode([torch.ones(IN), torch.zeros(IN)])


@pytest.mark.parametrize("module", [Keeps, Module, lambda: Attribute(value=torch.tensor(2.0)), lambda: Attention(2)])
@pytest.mark.parametrize("change", SAME)
def test_facts_that_no_output_depends_on(module, change):
    before = config_of(module())
    assert config_of(SAME[change](module())) == before


def test_attributes_that_contain_themselves():
    def made():
        items = [1]
        items.append(items)
        module = Module(items=items)
        module.parts = [module]
        module.layer.parent = [module]
        return module

    assert digest_structure(made()) == digest_structure(made())


def test_names_of_devices_do_not_count():
    digests = {digest_structure(Module(device=device)) for device in ("cpu", "cuda", "cuda:1", torch.device("cpu"))}
    assert len(digests) <= 2  # one of names, one of torch's own class
    assert len({digest_structure(Module(device=torch.device(device))) for device in ("cpu", "cuda:1", "meta")}) == 1


PROGRAM = """
import sys, torch, json
from tests.encoders.test_module_state import PAIRS, digest_module, digest_structure
print(json.dumps({kind: [digest_structure(make(0)), digest_module(make(0))] for kind, make in PAIRS.items()}))
"""


def test_another_process_finds_the_same_digests():
    found = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_content_that_cant_be_read_is_refused():
    script = torch.jit.script(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="can't be digested"):
        digest_structure(Module(value=script._c))
    with pytest.raises(TypeError, match="a tensor among the attributes"):
        digest_structure(Module(value=torch.empty(2, device="meta")))
    assert len({digest_structure(torch.jit.script(part)) for part in (torch.nn.ReLU(), torch.nn.Tanh())}) == 2


CHANGES = {
    "a number": lambda module: setattr(module, "value", 3.0),
    "a number in a dictionary": lambda module: module.settings.update(scale=3),
    "an item of a list": lambda module: module.parts.append(3),
    "a new attribute": lambda module: setattr(module, "more", 3),
    "a hook": lambda module: module.layer.register_forward_hook(lambda m, i, o: o + 1),
    "forward of the instance": lambda module: setattr(module, "forward", lambda x: x),
    "another class": lambda module: setattr(module, "__class__", Applied),
    "a buffer that is not persistent": lambda module: module.hidden.add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_changed_since_its_config_was_taken_is_not_encoded_with(change):
    module = Module(value=1.0, settings={"scale": 2}, parts=[1, 2])
    module.register_buffer("hidden", torch.ones(()), persistent=False)
    encoder = ModuleEncoder(module, collate=torch.stack)
    encoder.encode([torch.ones(IN)])
    CHANGES[change](module)
    for _ in range(2):
        with pytest.raises(errors.WeightsChangedError):
            encoder.encode([torch.ones(IN)])
    assert ModuleEncoder(module, collate=torch.stack).config != encoder.config


def test_a_module_may_keep_counts_and_results():
    class Counts(Keeps):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    encoder = ModuleEncoder(Counts(), collate=torch.stack)
    rows = [encoder.encode([torch.ones(IN)])["embedding"] for _ in range(3)]
    assert torch.equal(rows[0], rows[2])
