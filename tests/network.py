"""Two machines on this one: two network namespaces, joined by a pair of virtual cables."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_ADDRESS, PORT = "10.77.0.1", "29500"  # each pair of machines has its own


class Network:
    """Use as `with two_machines() as network`. `places` tells the process of each machine who it is."""

    def __init__(self, names: list[str]):
        self.names = names
        common = {"MASTER_ADDR": FIRST_ADDRESS, "MASTER_PORT": PORT, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        self.places = [
            common
            | {"RANK": str(i), "LOCAL_RANK": "0", "NETWORK_NAMESPACE": name}
            | {"GLOO_SOCKET_IFNAME": f"cable{i}", "TP_SOCKET_IFNAME": f"cable{i}"}
            for i, name in enumerate(names)
        ]

    def cut(self, is_cut: bool) -> None:
        ip("-n", self.names[1], "link", "set", "cable1", "down" if is_cut else "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=60)


def why_not() -> str | None:
    """Why no machines can be made here; None where they can."""
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is not installed"
    try:
        with two_machines():
            return None
    except (subprocess.CalledProcessError, OSError) as error:
        return f"network namespaces cannot be made ({getattr(error, 'stderr', error)})"


@contextmanager
def two_machines() -> Iterator[Network]:
    names = [f"mae-{os.getpid()}-{i}" for i in range(2)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"cable{i}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"cable{i}", "up")
        yield Network(names)
    finally:
        for name in made:
            ip("netns", "del", name)
