"""``flwr run`` that removes all of its processes and files, and those of Ray, at the end.

Plain ``flwr run`` leaves a running SuperLink and files in the home folder. This SuperLink uses free ports and a
temporary folder as its home, and makes no outside requests: no telemetry, no update check, no hub.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

STARTUP, SHUTDOWN = 60.0, 20.0  # seconds
SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # otherwise each run makes an environment from PyPI
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # otherwise actors yield to other processes, and the times of rounds include these
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextlib.contextmanager
def simulator() -> Iterator["Simulator"]:
    """Start a SuperLink for simulations. At the end of the block, stop it and all processes that it started."""
    home = Path(tempfile.mkdtemp(prefix="flwr-", dir=short_folder()))
    port, control = free_ports(2)
    environment = {**os.environ, **SILENT, "FLWR_HOME": str(home), "RAY_TMPDIR": str(home)}
    # Flower finds its own commands on the path.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--control-api-address", f"127.0.0.1:{control}"]
    command += ["--database", str(home / "state.db")]
    with (home / "superlink.log").open("w") as log:
        superlink = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the default skips the clean-up
    try:
        wait_until_up(superlink, port, home / "superlink.log")
        yield Simulator(environment)
    finally:
        end_all(home)
        superlink.wait()
        shutil.rmtree(home, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


class Simulator:
    """A running SuperLink."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def run(self, app: Path, run_config: Path, *, clients: int, quiet: bool = True) -> None:
        """Run an app to its end. Raise with its output if it failed or stopped early."""
        command = ["flwr", "run", str(app), "--stream", "--run-config", str(run_config)]
        command += ["--federation-config", f"num-supernodes={clients} client-resources-num-cpus=1"]
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if not quiet:
            print(done.stdout)
        if done.returncode:
            raise RuntimeError(f"flwr run failed:\n{done.stdout[-5000:]}")
        self.said = done.stdout


def short_folder() -> str | None:
    """Return a folder for temporary files: Ray's sockets add 70 bytes to it, and their paths may have 107."""
    return None if len(tempfile.gettempdir()) < 20 else "/tmp"


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_up(superlink: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline and superlink.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        time.sleep(0.1)
    raise RuntimeError(f"the SuperLink did not start:\n{log.read_text()[-5000:]}")


def started_here(home: Path) -> list[int]:
    """Return the processes with this home. Only processes of this run have it."""
    mark = f"FLWR_HOME={home}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if mark in (folder / "environ").read_bytes() and "\nState:\tZ" not in (folder / "status").read_text():
                found.append(int(folder.name))
    return found


def end_all(home: Path) -> None:
    """End the processes of this run, by SIGINT first and SIGKILL last."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for process in started_here(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, kind)
        deadline = time.monotonic() + SHUTDOWN
        while time.monotonic() < deadline:
            if not started_here(home):
                return
            time.sleep(0.1)
