"""What a run or a command leaves behind travels: no file of it may name a folder of the machine that wrote it."""

import re
import sys
from pathlib import Path

from tests.processes import ROOT


def folders_named_in(folder: Path, *places: Path) -> list[str]:
    """ "FILE names PLACE" for each file below `folder`, whatever its format, that holds the path of a folder of this
    machine: `places`, those of this code, of Python and of the user."""
    found = []
    for place in {ROOT, Path(sys.prefix), Path.home(), *places}:
        if place == Path(place.anchor):
            continue
        named = re.compile(re.escape(str(place)).encode() + rb"(?![\w.-])")
        for path in sorted(folder.rglob("*")):
            if path.is_file() and named.search(path.read_bytes().replace(b"\\/", b"/")):
                found.append(f"{path.relative_to(folder)} names {place}")
    return found
