"""The other processes of a run: joining them, a group for short messages, and naming the one that is lost."""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed import distributed_c10d

from ..errors import LostProcessError, UserError

# Keys of the store that all processes share.
_HOST, _LOST = "hf_mae_robust/host/{}", "hf_mae_robust/lost/{}"
# In messages of gloo and NCCL, which have no class of their own.
_LOSSES = "gloo|nccl|by peer|pair closure|timed out waiting|broken pipe|socket closed"
# The processes that are left notice the end of another one within this time of each other.
GRACE_S = 5.0


class _Control:
    """The group of `control_group`, and the process group that it belongs to."""

    timeout: timedelta | None = None
    world: Any = None
    group: Any = None


def control_group() -> Any:
    """A gloo group of all processes, with --ddp_timeout; None where this process is alone. On the CPU: asking a GPU
    would make it wait for the step to end. For all processes to call at the same points."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    if _Control.world is not dist.group.WORLD:
        _Control.group = dist.new_group(backend="gloo", timeout=_Control.timeout)
        _Control.world = dist.group.WORLD
    return _Control.group


@contextmanager
def joining(timeout_s: int, on_cpu: bool, backend: str | None) -> Iterator[None]:
    """Around `TrainingArguments.__post_init__`, or the making of a `PartialState`, which joins the other processes of
    this run.

    On CPUs transformers hands --ddp_timeout to nobody, so the group is made here before it looks for one.

    Raises UserError where this machine cannot be reached or the port is taken, and LostProcessError where the processes
    do not find each other in time.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    _Control.timeout = timedelta(seconds=timeout_s)
    try:
        if several and not dist.is_initialized():
            check_can_be_reached()
            if on_cpu:
                PartialState(cpu=True, backend=backend, timeout=_Control.timeout)
        yield
        if several:
            distributed_c10d._get_default_store().set(_HOST.format(dist.get_rank()), socket.gethostname())
            control_group()  # not later: to make it takes all processes, and who waits for a lost one is not told
    except dist.DistError as error:
        raise _error_of_joining(error, timeout_s) from error


def _error_of_joining(error: Exception, timeout_s: int) -> Exception:
    address, port = (os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if "EADDRINUSE" in str(error) or "address already in use" in str(error):
        return UserError(
            f"Port {port} of this machine is in use, perhaps by another run. Choose another one: torchrun "
            "--master_port N, accelerate launch --main_process_port N, or the variable MASTER_PORT."
        )
    return LostProcessError(
        f"The {os.environ['WORLD_SIZE']} processes of this run did not find each other at {address}:{port} within "
        f"{timeout_s} s (--ddp_timeout): {' '.join(str(error).split())[:200]}. Check that every machine has started "
        "its processes, and that each of them can reach that address."
    )


def check_can_be_reached() -> None:
    """Raises UserError where there are several machines, and this one's name stands for an address that only itself can
    reach, as Debian sets it up. Gloo would tell the others that address; our messages need gloo beside NCCL, too."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    master = os.environ.get("MASTER_ADDR", "")
    if not several or "GLOO_SOCKET_IFNAME" in os.environ or _is_loopback(address_of(master)):
        return
    name = socket.gethostname()
    if not _is_loopback(address := address_of(name)):
        return
    interface = interface_towards(master) or "eth0"
    raise UserError(
        f"The name of this machine, {name}, resolves to {address or 'no address'}, where other machines cannot reach "
        f"it. Set GLOO_SOCKET_IFNAME={interface} and NCCL_SOCKET_IFNAME={interface} on it: the network interface that "
        f"leads to MASTER_ADDR {master}."
    )


def address_of(host: str) -> str | None:
    """The address of a host's name; None where it is not known."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def _is_loopback(address: str | None) -> bool:
    return address is None or address.startswith("127.")  # gloo takes the loopback for a name without an address


def interface_towards(host: str) -> str | None:
    """The network interface that packets to `host` take; None where there is no way to it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if any(each.address == own for each in addresses)), None)


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process does not answer any more."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or re.search(_LOSSES, str(error), re.IGNORECASE) is not None
    )


def loss_in_command(error: BaseException) -> LostProcessError | None:
    """The sentence for a command without --ddp_timeout that joined others by `joining`; None: the error is another one.
    Takes GRACE_S, as `describe_loss`."""
    if not dist.is_available() or not dist.is_initialized() or not is_loss(error):
        return None
    return LostProcessError(describe_loss(int((_Control.timeout or timedelta()).total_seconds()), flag=None))


def describe_loss(timeout_s: int, flag: str | None = "--ddp_timeout") -> str:
    """Which processes do not answer, for the one that noticed. Those that are left tell each other, by the store, so
    this takes GRACE_S. flag: that sets the time."""
    who = f"Process {dist.get_rank()} ({socket.gethostname()})"
    address = os.environ.get("MASTER_ADDR", "?")
    # In a thread: a store whose machine is gone is asked without a limit of time.
    found: list[list[str]] = []
    asking = threading.Thread(target=_find_silent_processes, args=(found,), daemon=True)
    asking.start()
    asking.join(3 * GRACE_S)
    if not found:
        return f"{who} lost the machine of the first process ({address}), which does not answer."
    (silent,) = found
    if not silent:
        return f"{who} lost its connection to the others."
    limit = f"{timeout_s} s" + (f" ({flag})" if flag else "")
    return (
        f"{who} lost {', '.join(silent)}, which ended, or did not answer for {limit}. Its own message, if there is "
        "one, says why."
    )


def _find_silent_processes(found: list[list[str]]) -> None:
    """Append one list: the processes that have not noticed the loss, at most four of them by name. Appends nothing
    where the store does not answer."""
    store = distributed_c10d._get_default_store()
    store.set_timeout(timedelta(seconds=GRACE_S))
    try:
        store.set(_LOST.format(dist.get_rank()), "")
        time.sleep(GRACE_S)
        silent = [rank for rank in range(dist.get_world_size()) if not store.check([_LOST.format(rank)])]
        hosts = [store.get(_HOST.format(rank)).decode() for rank in silent[:4]]
    except dist.DistError:
        return
    named = [f"process {rank} ({host})" for rank, host in zip(silent, hosts)]
    found.append(named + ([f"and {len(silent) - len(named)} more"] if len(silent) > len(named) else []))
