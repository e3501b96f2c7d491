"""The script that compares decoding with other decoders, on a folder whose outcomes are known."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests import odd_files
from tests._helpers.sounds import sound_file, tone

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("av", "soundfile", "PIL", "transformers"))), reason="needs embstore[audio,image,models]"
)


def test_a_file_is_compared_with_other_decoders(tmp_path):
    decoder = odd_files.Decoder("sound")
    data = sound_file(tone(440))
    for name, content, outcome in (
        ("whole.wav", data, "equal"),
        ("cut.wav", data[:9_000], "refused, read elsewhere"),
        ("text.flac", b"hello world\n", "refused, as by all"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert odd_files.compared("sound", path, decoder)[0] == outcome
    path.write_bytes(data)
    decoder.process.kill()
    assert odd_files.compared("sound", path, decoder)[0] == "crash"
    assert odd_files.compared("sound", path, decoder)[0] == "equal"  # in another process
    decoder.process.kill()


@pytest.mark.slow
def test_the_report_counts_rows_and_refused_files(tmp_path):
    from PIL import Image

    (tmp_path / "whole.wav").write_bytes(sound_file(tone(440)))
    (tmp_path / "cut.wav").write_bytes(sound_file(tone(440))[:9_000])
    (tmp_path / "text.flac").write_bytes(b"hello world\n")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "tests/odd_files.py", tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert f"{tmp_path.name} (sound): 3 files, 1 rows, 2 failed" in lines
    assert f"{tmp_path.name} (images): 2 files, 1 rows, 1 failed" in lines
    assert [line.partition(":")[0] for line in lines if "cut.wav" in line] == ["refused, read elsewhere"]
    assert [line for line in lines if line.endswith(" equal")] == ["1 equal", "1 equal"]
