"""What a reader of data tells the user beside the data themselves."""

import sys

from accelerate import PartialState
from tqdm.auto import tqdm


def note(message: str) -> None:
    """Print on the first process only, without breaking a progress bar."""
    if PartialState().is_main_process:
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()
