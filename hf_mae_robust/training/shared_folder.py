"""Whether all processes see the same output folder."""

import secrets
import socket
import time
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from ..errors import UserError
from .processes import first_process

# A machine may remember for so long that a folder of a network disk was not there (NFS: acdirmax).
WAIT_S = 60.0


def check_shared(output_dir: str | Path, flag: str = "--output_dir") -> None:
    """Find out whether what one process writes is there for the others, on whichever machine they run: otherwise the
    first checkpoint would lack their parts. To be called by all of them; makes the folder. flag: that named it.

    Raises UserError in all processes, naming the machines that do not see it.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    mark = first_process(lambda: _leave_mark(Path(output_dir)))
    is_there = _appears(Path(output_dir) / mark)
    blind = [host for host, sees in gather_object([(socket.gethostname(), is_there)]) if not sees]
    if state.is_main_process:
        (Path(output_dir) / mark).unlink(missing_ok=True)
    if blind:
        of_what = "of a checkpoint " if flag == "--output_dir" else ""
        raise UserError(
            f"{flag} {output_dir} of the first process is not there for {len(blind)} of {state.num_processes} "
            f"processes (on {', '.join(sorted(set(blind)))}). All of them write their parts {of_what}into it: "
            "choose a folder on a disk that all machines share, and give it as an absolute path."
        )


def _leave_mark(folder: Path) -> str:
    name = f".shared-{secrets.token_hex(8)}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return name


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
