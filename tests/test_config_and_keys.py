"""Keys and configs: pure, and the same everywhere."""

import math
import pickle
import struct
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.config import ABSENT, Config, canonical_json
from embstore.errors import ConfigError, KeyFormatError
from embstore.keys import Key, hash_keys


@given(
    st.text(min_size=1).filter(lambda t: t.isprintable()),
    st.text(min_size=1).filter(lambda t: ":" not in t and t.isprintable()),
)
def test_a_key_is_split_as_it_was_joined(file_id, class_name):
    key = Key(file_id, class_name)
    assert Key.parse(str(key)) == key
    assert (hash_keys([key]) == hash_keys([str(key)])).all()


def test_the_hash_is_blake2b():
    digest = blake2b(b"video_00001:dog", digest_size=16).digest()
    assert hash_keys(["video_00001:dog"]).tolist() == [list(struct.unpack("<QQ", digest))]
    assert hash_keys([]).shape == (0, 2)


@pytest.mark.parametrize(
    "key", ["", ":", "a:", ":b", "ab", Key("a", "b:c"), Key("", "b"), None, b"a:b", "x" * 70_000 + ":b"]
)
def test_what_is_not_a_key(key):
    with pytest.raises(KeyFormatError) as caught:
        Key.parse(key)
    assert caught.value.key == key
    assert caught.value.reason


# RFC 8785, appendix B: IEEE 754 bits and how they are written.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "becbf647612f3696": "-0.0000033333333333333333",
}


@pytest.mark.parametrize("bits", NUMBERS)
def test_numbers_are_written_as_the_rfc_says(bits):
    assert canonical_json(struct.unpack(">d", bytes.fromhex(bits))[0]) == NUMBERS[bits]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(value):
    assert float(canonical_json(value)) == value


def test_names_go_by_utf16():
    """The example of RFC 8785, section 3.2.3: a surrogate pair comes before U+FB33."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    text = canonical_json(dict.fromkeys(names, 0))
    order = sorted(names, key=lambda name: text.index(canonical_json(name) + ":"))
    assert order == ["\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33"]


def test_numbers_are_compared_as_numbers():
    assert Config(a=5) == Config(a=5.0) == Config(a=np.int64(5)) == Config(a=np.float32(5)) == {"a": 5}
    assert Config(a=True) != Config(a=1)
    assert Config(a=-0.0).fingerprint == Config(a=0).fingerprint
    assert Config(a=(1, 2)) == Config(a=[1, 2])
    assert Config(a=0.1).fingerprint != Config(a=np.float32(0.1)).fingerprint
    assert len({Config(a=5), Config(a=5.0), Config(a=6)}) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53 + 1, b"x", {3: 1}, object(), {1, 2}, "\ud800", np.ones(3)])
def test_what_a_config_can_not_hold(value):
    with pytest.raises(ConfigError) as caught:
        Config(a={"b": value})
    assert caught.value.attribute.startswith("a")
    assert isinstance(caught.value, ValueError)


def test_deep_and_doubled_names_are_refused():
    deep = {}
    for _ in range(50):
        deep = {"a": deep}
    with pytest.raises(ConfigError):
        Config(deep)
    with pytest.raises(ConfigError):
        Config.from_json('{"a": 1, "a": 2}')
    assert Config.from_json('{"a": 5.0}') == {"a": 5}


def test_a_config_is_frozen():
    inside = {"b": [1]}
    config = Config(a=inside)
    inside["b"].append(2)
    config["a"]["b"].append(3)
    assert config == {"a": {"b": [1]}}
    with pytest.raises(TypeError):
        config["a"] = 1
    assert pickle.loads(pickle.dumps(config)) == config


def test_differences_are_named():
    wanted = Config(encoder={"id": "x", "weights": "1"}, rate=5)
    found = {
        d.name: (d.expected, d.found) for d in wanted.diff({"encoder": {"id": "x", "weights": "2"}, "extra": None})
    }
    assert found == {"encoder.weights": ("1", "2"), "rate": (5, ABSENT), "extra": (ABSENT, None)}
    assert wanted.diff(wanted) == ()
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
