"""Digests of modules in memory."""

import numpy as np
import pytest

from embstore.encoders.module_state import digest_module

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
    class Extra(torch.nn.Module):
        def get_extra_state(self):
            return {"step": 3}

    sparse = torch.nn.Module()
    sparse.register_buffer("x", torch.eye(3).to_sparse())
    for module, words in [
        (torch.nn.Linear(2, 2, device="meta"), "weight|bias"),
        (Extra(), "_extra_state.*dict"),
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
