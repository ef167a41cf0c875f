"""One run at a time in an output folder: two would delete each other's staging folder, checkpoints and parts."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from ..errors import UserError
from .processes import first_process

logger = logging.getLogger(__name__)

# The upload to the Hub leaves out "_*".
LOCK_FILE = "_running.json"
# A run says this often that it lives. One of another machine that is silent for four times as long is taken for dead.
HEARTBEAT_S = 15.0
# The lock says the start of its process in seconds, and clocks are corrected a little all the time.
SAME_START_S = 3.0


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    started = datetime.fromtimestamp(process.create_time()).astimezone()
    since = started.isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pids": _numbering(), "pid": process.pid, "since": since}


def _numbering() -> str:
    """Within which processes have numbers of their own: machines of one host name, and containers of a machine. The
    namespace alone does not tell machines apart: the first one of each has the same number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any] | None:
    """What the lock says; None: there is none, or it was not written to its end."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and {"host", "pids", "pid", "since"} <= content.keys() else None


def _touched(path: Path) -> int | None:
    try:
        with path.open() as file:  # opening it makes a network file system ask its server
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _is_alive(lock: dict[str, Any] | None, path: Path, heartbeat_s: float) -> bool:
    """Of this machine: whether the process is there. Of another one, or where a later process may have the number:
    whether it touches its lock meanwhile; that needs no common clock."""
    mine = _this_process()
    if lock is not None and (lock["host"], lock["pids"]) == (mine["host"], mine["pids"]):
        if lock["pid"] == mine["pid"]:
            return False  # a former process had the number of this one
        try:
            started = psutil.Process(lock["pid"]).create_time()
        except psutil.Error:
            return False
        # As numbers: the text depends on the time zone. They also differ where the clock was set since.
        if abs(started - datetime.fromisoformat(lock["since"]).timestamp()) < SAME_START_S:
            return True
    if lock is not None:
        logger.warning(
            "%s names process %s on %s. Waiting up to %.0f s to see whether it lives.",
            path,
            lock["pid"],
            lock["host"],
            4 * heartbeat_s,
        )
    before, deadline = _touched(path), time.monotonic() + 4 * heartbeat_s
    while time.monotonic() < deadline:
        time.sleep(heartbeat_s / 15)
        if (now := _touched(path)) != before:
            return now is not None
    return False


def _take(path: Path, heartbeat_s: float, named: str) -> dict[str, Any]:
    """What the lock says now."""
    mine = _this_process()
    while True:
        try:
            with path.open("x") as file:
                file.write(json.dumps(mine) + "\n")
            return mine
        except FileExistsError:
            other = _read(path)
        if other == mine:
            return mine
        if _is_alive(other, path, heartbeat_s):
            if (other := _read(path)) is None:
                continue  # it was being written, or removed
            raise UserError(
                f"{named}: another run writes there (process {other['pid']} on {other['host']}, since "
                f"{other['since']}). Stop it, or choose another {named.partition(' ')[0]}."
            )
        # Not deleted under its name: another process may just have taken it over.
        stale = path.with_name(f"{path.name}.{mine['host']}.{mine['pid']}")
        with suppress(FileNotFoundError):
            path.rename(stale)
            if _read(stale) != other:
                stale.rename(path)
            stale.unlink(missing_ok=True)


@contextmanager
def run_lock(folder: Path, heartbeat_s: float = HEARTBEAT_S, named: str | None = None) -> Iterator[None]:
    """While entered, the folder is this process's. It is made where there is none, and removed again where it stays
    empty. A lock that a dead process has left is taken over; to find out that one of another machine is dead takes four
    heartbeats, as does one whose number another process has now.

    named: flag and path that the user gave; None: `folder` is that of --output_dir.

    Raises UserError that names the other run.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path, ended = folder / LOCK_FILE, threading.Event()
    mine = _take(path, heartbeat_s, named or f"--output_dir {folder}")

    def live() -> None:
        while not ended.wait(heartbeat_s):
            with suppress(OSError):  # the folder was deleted, or its disk is away for a while
                os.utime(path)

    threading.Thread(target=live, name="run lock", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):  # the folder is gone or read-only, which the run has said if it mattered
            if _read(path) == mine:
                path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # it holds files now
                folder.rmdir()


@contextmanager
def locked_by_first_process(folder: Path, named: str | None = None) -> Iterator[None]:
    """`run_lock` for all processes of a run, which the first one holds. To be entered by all of them; raises UserError
    in all."""
    with ExitStack() as stack:
        first_process(lambda: stack.enter_context(run_lock(folder, named=named)))
        yield
