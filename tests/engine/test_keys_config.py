"""Keys and configs: each refusal with its reason, and the published vectors of what they are built on."""

import enum
import json
import pickle
import struct
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore._engine.format.config import ABSENT, Config, Difference, canonical_json
from embstore._engine.format.keys import MAX_KEY_BYTES, UNLABELLED, Key, hash_keys
from embstore.errors import ConfigError, KeyFormatError

# -- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("video_00001:dog", ("video_00001", "dog")),
        ("s3://bucket/a.wav:dog", ("s3://bucket/a.wav", "dog")),
        ("::a", (":", "a")),
        ("a", ("a", UNLABELLED)),
        ("a/b c", ("a/b c", UNLABELLED)),
        ("s3://bucket/a.wav:_", ("s3://bucket/a.wav", UNLABELLED)),
        (":::_", ("::", UNLABELLED)),
        ("_", ("_", UNLABELLED)),
        (" : ", (" ", " ")),
        ("../../etc/passwd:x\x00y", ("../../etc/passwd", "x\x00y")),
        ("é日本😀:ß", ("é日本😀", "ß")),
        ("x" * (MAX_KEY_BYTES - 2) + ":c", ("x" * (MAX_KEY_BYTES - 2), "c")),
    ],
)
def test_a_key_is_split_at_its_last_colon(text, parts):
    key = Key.parse(text)
    assert key == parts
    assert str(key) == text
    assert Key.parse(key) == key
    assert Key(parts[0]).class_name == UNLABELLED
    assert Key(*parts) == pickle.loads(pickle.dumps(key)) == key


def test_a_key_without_a_class_has_one_identity_and_one_text():
    forms = [Key("P1"), Key("P1", None), Key("P1", UNLABELLED), Key.parse("P1"), Key.parse("P1:_")]
    assert len(set(forms)) == 1
    assert {str(key) for key in forms} == {"P1"}  # bare, where that parses back
    assert str(Key("a:b")) == "a:b:_"
    digest = blake2b(b"P1:_", digest_size=16).digest()  # the format's hash stays as it is
    assert {hashes.tobytes() for hashes in hash_keys([*forms, "P1", "P1:_"])} == {digest}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "file_id is empty"),
        (":b", "file_id is empty"),
        (":", "file_id is empty"),
        ("a:", "class is empty"),
        ("a::", "class is empty"),
        (Key("a", "b:c"), "colon in the class"),
        (Key("", "b"), "file_id is empty"),
        (Key("a", ""), "class is empty"),
        ("\ud800:b", "Unicode"),
        ("a:\udfff", "Unicode"),
        ("x" * (MAX_KEY_BYTES - 1) + ":c", "65,536 bytes"),
        ("é" * (MAX_KEY_BYTES // 2) + ":c", "bytes"),
        (None, "NoneType"),
        (3, "int"),
        (b"a:b", "bytes"),
        (("a", "b"), "tuple"),
        (Key(1, "b"), "int"),
        (Key("", None), "file_id is empty"),
        (Key("a", 1), "int"),
        ("x" * (MAX_KEY_BYTES - 1), "65,536 bytes"),
    ],
)
def test_a_key_is_refused_with_its_reason(key, reason):
    with pytest.raises(KeyFormatError) as caught:
        Key.parse(key)
    assert reason in caught.value.reason
    assert caught.value.key == key
    assert repr(key)[:50] in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_hashes_are_blake2b():
    # RFC 7693 gives BLAKE2b-512("abc"); hashlib is held to it, and the keys' hash to hashlib.
    assert blake2b(b"abc").hexdigest().startswith("ba80a53f981c4d0d6a2797b69f12f6e9")
    keys = ["video_00001:dog", "é日本😀:ß", "a:b"]
    digests = [blake2b(key.encode(), digest_size=16).digest() for key in keys]
    found = hash_keys(keys)
    assert found.dtype == np.uint64
    assert found.tolist() == [list(struct.unpack("<QQ", digest)) for digest in digests]
    assert found.astype("<u8").tobytes() == b"".join(digests)
    np.testing.assert_array_equal(hash_keys(map(Key.parse, keys)), found)
    np.testing.assert_array_equal(hash_keys(iter([*keys, *keys]))[3:], found)
    with pytest.raises(KeyFormatError):
        hash_keys(["\ud800:b"])
    with pytest.raises(KeyFormatError):
        hash_keys([b"a:b"])


@given(st.text())
def test_any_text_is_a_key_or_is_refused(text):
    file_id, colon, class_name = text.rpartition(":")
    file_id, class_name = (file_id, class_name) if colon else (text, "_")
    if file_id and class_name and not any("\ud800" <= c <= "\udfff" for c in text):
        assert Key.parse(text) == (file_id, class_name)
        assert str(Key.parse(text)) == (text.removesuffix(":_") if text.count(":") == 1 else text)
        assert Key.parse(str(Key.parse(text))) == Key.parse(text)
        assert (hash_keys([text]) == hash_keys([Key.parse(text)])).all()
    else:
        with pytest.raises(KeyFormatError) as caught:
            Key.parse(text)
        assert caught.value.key == text


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True, max_size=50))
def test_different_keys_have_different_hashes(texts):
    assert len(set(map(tuple, hash_keys(texts).tolist()))) == len({f"{t}:_" if ":" not in t else t for t in texts})


# -- canonical JSON ---------------------------------------------------------------------------


def test_the_example_of_the_rfc():
    """RFC 8785, 3.2.2 to 3.2.4."""
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_json(value) == expected


def test_names_are_sorted_by_utf16():
    """RFC 8785, 3.2.3: the order of code points would put the emoji last."""
    value = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    assert list(json.loads(canonical_json(value)).values()) == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_of_the_rfc(bits, text):
    """RFC 8785, appendix B."""
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(value) == text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not 2**53 < abs(x) < 1e21)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)
CONFIGS = st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=5)


@given(CONFIGS)
def test_a_config_survives_everything(values):
    config = Config(values)
    assert config == values
    assert json.loads(config.canonical, parse_int=float) == values
    shuffled = Config(dict(reversed(list(values.items()))))
    for same in (
        Config.from_json(config.canonical),
        Config.from_json(json.dumps(values)),
        pickle.loads(pickle.dumps(config)),
        Config(config.to_dict()),
        shuffled,
    ):
        assert same == config
        assert hash(same) == hash(config)
        assert same.fingerprint == config.fingerprint
        assert config.diff(same) == ()


@pytest.mark.parametrize("value", [2.0**53 + 2, -1e20])
def test_a_large_float_survives_as_well(value):
    """Its canonical form has no point: read back, it must not be taken for an integer that is not exact."""
    config = Config(a=value)
    assert pickle.loads(pickle.dumps(config)) == config
    assert Config.from_json(config.canonical) == config


@given(CONFIGS, CONFIGS)
def test_configs_are_equal_or_differ(a, b):
    a, b = Config(a), Config(b)
    assert (a == b) == (a.fingerprint == b.fingerprint) == (a.diff(b) == ())
    assert {d.name for d in a.diff(b)} == {d.name for d in b.diff(a)}


# -- configs ----------------------------------------------------------------------------------


class Rate(enum.IntEnum):
    HIGH = 16_000


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (5, 5.0),
        (0, -0.0),
        (5, np.int8(5)),
        (5, np.float64(5)),
        (0.5, np.float16(0.5)),
        (True, np.bool_(True)),
        ("x", np.str_("x")),
        (5, np.array(5)),
        (16_000, Rate.HIGH),
        ([1, [2]], (1, (2,))),
        ({"a": [1]}, {"a": (1.0,)}),
        (2**53, float(2**53)),
        (1e300, 10.0**300),
        (None, None),
    ],
)
def test_values_that_are_the_same(one, other):
    assert Config(a=one) == Config(a=other)
    assert Config(a=one).fingerprint == Config(a=other).fingerprint
    assert hash(Config(a=one)) == hash(Config(a=other))
    assert Config(a=[one]).diff(Config(a=[other])) == ()
    assert type(Config(a=other)["a"]) in (int, float, str, bool, list, dict, type(None))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, False),
        (0, None),
        ("5", 5),
        ("", None),
        ([1], 1),
        ([1, 2], [2, 1]),
        ({}, []),
        (0.1, np.float32(0.1)),
        (2**53, 2**53 - 1),
        ("é", "e\u0301"),
        ({"b": 1}, {"b": True}),
        ([0], [False]),
    ],
)
def test_values_that_differ(one, other):
    assert Config(a=one) != Config(a=other)
    assert Config(a=one).fingerprint != Config(a=other).fingerprint
    (difference,) = Config(a=one).diff(Config(a=other))
    assert difference.name in ("a", "a.b")


@pytest.mark.parametrize(
    ("value", "attribute"),
    [
        (float("nan"), "a"),
        (float("inf"), "a"),
        (np.float32("-inf"), "a"),
        (2**53 + 1, "a"),
        (-(10**400), "a"),
        (b"x", "a"),
        (bytearray(b"x"), "a"),
        ({3: 1}, "a"),
        ({None: 1}, "a"),
        ({"b": {"c": [0, float("nan")]}}, "a.b.c[1]"),
        ({"b": {1, 2}}, "a.b"),
        (object(), "a"),
        (1j, "a"),
        ("\ud800", "a"),
        (np.zeros(2), "a"),
        (np.datetime64("2020"), "a"),
    ],
    ids=lambda value: type(value).__name__ if type(value) is object else repr(value),
)
def test_what_is_refused(value, attribute):
    with pytest.raises(ConfigError) as caught:
        Config(a=value)
    assert caught.value.attribute == attribute
    assert caught.value.reason
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"x": {"a": 1, "b": 2, "a": 3}}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 9007199254740993}',
        '{"a": "\\ud800"}',
        '{"\\ud800": 1}',
        "[1]",
        "3",
        '{"a": ' * 40 + "1" + "}" * 40,
    ],
)
def test_json_that_is_refused(text):
    with pytest.raises(ConfigError):
        Config.from_json(text)


def test_a_name_that_occurs_twice_is_said():
    with pytest.raises(ConfigError) as caught:
        Config.from_json('{"x": {"b": 1, "a": 1, "c": 2, "a": 3}}')
    assert caught.value.attribute == "a"


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "{" + '"a":[' * 100_000])
def test_text_that_is_not_json(text):
    with pytest.raises((ConfigError, ValueError)):
        Config.from_json(text)


def test_what_holds_itself_is_refused():
    values = {"a": []}
    values["a"].append(values)
    with pytest.raises(ConfigError, match="deep"):
        Config(values)


def test_what_is_handed_out_is_a_copy():
    inner = [1, {"b": 2}]
    config = Config(a=inner, c=3)
    fingerprint = config.fingerprint
    inner.append(4)
    config["a"].append(5)
    config["a"][1]["b"] = 6
    config.to_dict()["a"].clear()
    next(iter(config.values())).clear()
    dict(config.items())["a"].clear()
    for change in (lambda: config.__setitem__("a", 1), lambda: config.__delitem__("a"), lambda: config.update(a=1)):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert config == {"a": [1, {"b": 2}], "c": 3}
    assert Config(config).fingerprint == fingerprint == blake2b(config.canonical.encode(), digest_size=32).hexdigest()
    assert config.diff({"a": [1, {"b": 2}], "c": 3.0}) == ()


def test_what_a_difference_hands_out_is_a_copy():
    config = Config(a=[1], b=1)
    for difference in config.diff({"a": [2], "b": 1}):
        difference.expected.append(9)
    assert config == {"a": [1], "b": 1}


def test_differences_name_what_is_nested():
    config = Config(encoder={"id": "x", "opts": {"fp16": True}}, rate=5, dims=[1, 2], gone=None)
    found = config.diff({"encoder": {"id": "x", "opts": {"fp16": 1}, "new": 0}, "rate": 5.0, "dims": [2, 1]})
    assert {(d.name, json.dumps(d.expected, default=repr), json.dumps(d.found, default=repr)) for d in found} == {
        ("encoder.opts.fp16", "true", "1"),
        ("encoder.new", '"(absent)"', "0"),
        ("dims", "[1, 2]", "[2, 1]"),
        ("gone", "null", '"(absent)"'),
    }
    (one,) = Config(a=1).diff(Config())
    assert one == Difference("a", 1, ABSENT)
    assert str(one) == "a: expected 1, found (absent)"
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert again.found is ABSENT
    assert Config(a={"b": 1}).diff({"a": 2}) == (Difference("a", {"b": 1}, 2),)


def test_a_config_equals_what_maps_the_same():
    config = Config({"b": 1}, a=2)
    assert config == {"a": 2.0, "b": 1}
    assert config != {"a": 2, "b": object()}
    assert config != [("a", 2), ("b", 1)]
    assert (config == None) is False  # noqa: E711
    assert Config(self=1, values=2) == {"self": 1, "values": 2}
    assert Config() == {}
    assert {config: 1}[Config(a=2, b=1.0)] == 1


def test_how_a_config_looks():
    config = Config({"encoder": "<b>&", "duration": 5.0, "é <": ["<i>"]})
    assert repr(Config(encoder="x", duration=5.0)) == "Config(encoder='x', duration=5)"
    html = config._repr_html_()
    for part in ("&lt;b&gt;&amp;", "&lt;i&gt;", "é &lt;", "duration", "5", config.fingerprint[:16]):
        assert part in html
    assert "<b>" not in html
    assert "<i>" not in html
