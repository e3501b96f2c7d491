"""Strings as bytes: those of one length have a way of their own."""

import pytest

from embstore._engine.format.values import decode_strings, encode_strings


@pytest.mark.parametrize(
    "values",
    [
        ["text:0a", "text:1b", "text:2c"],
        ["\0\0", "\0a", "b\0"],
        ["é", "ab", "ß"],  # of one length in bytes, not in characters
        ["", "", ""],
        ["a", "", "bc"],  # as long as three of one length
        ["abc"],
        [],
    ],
)
def test_strings_come_back(values):
    assert decode_strings(encode_strings(values), len(values)) == values
    assert decode_strings(encode_strings(values) + bytes(8), len(values) + 2) == [*values, "", ""]


@pytest.mark.parametrize(
    "data", [b"\1\0\0\0a\2\0\0\0b", b"\1\0\0\0a\0\0\0\0b", b"\2\0\0\0ab", b"\1\0\0\0\xff\1\0\0\0\xff", b"\5\0\0\0a"]
)
def test_bytes_that_are_no_two_strings(data):
    with pytest.raises(ValueError):  # noqa: PT011 # the caller names the file
        decode_strings(data, 2)
