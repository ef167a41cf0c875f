"""Is every way to store an image read as independent libraries read it, and is what is broken refused?

    python benchmarks/array_formats.py --data path/to/array-formats

The folder holds `files/` and `manifest.json`: of each file what another library reads (shape; least, largest and mean
of each band; missing pixels), or that it must be refused. "ok": one plain reading; "choice": as listed, or refused.
Volumes are read slice by slice. Each file is read in a process of its own that may take 500 MB beyond what Python and
the libraries take, 2 seconds, and no other file. Needs the extra `bands`.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import sys
import sysconfig
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from hf_mae_robust.model.band_files_vit_mae_robust import read_band_header, read_band_image
from hf_mae_robust.model.bands_vit_mae_robust import BandError, BandForm, BandImage

SECONDS, MEGABYTES = 2, 500


def differences(image: BandImage, entry: dict[str, Any]) -> list[str]:
    """What is not as the manifest says; its values as stored, or those that it lists beside them."""
    pixels, tolerance = image.pixels, entry.get("tolerance", 0)
    found = []
    lengths = dict(zip(entry["axes"], entry["shape"]))
    if lengths.keys() >= {"Y", "X"} and pixels.shape != (
        math.prod(lengths.get(name, 1) for name in "CPZ"),
        lengths["Y"],
        lengths["X"],
    ):
        found.append(f"shape {pixels.shape}")
    listed = [entry["all"], entry.get("rescaled"), *(other["all"] for other in entry.get("other", {}).values())]
    ranges = [values for values in listed if values and _same(pixels, values, tolerance)]
    bands = entry.get("bands") or []
    if not ranges and not entry.get("nodata_pixels"):
        found.append("other numbers")
    elif ranges and ranges[0] is entry["all"] and len(bands) == len(pixels):
        found += [
            f"band {number}" for number, values in enumerate(bands) if not _same(pixels[number], values, tolerance)
        ]
    if "nan" in entry and "nodata" not in entry and (count := int(np.isnan(pixels).sum())) != entry["nan"]:
        found.append(f"{count} NaN")
    if entry.get("nodata_pixels"):
        values = BandForm().apply(image)
        missing = np.isnan(values).sum(axis=(1, 2)).tolist()
        if missing != entry["nodata_pixels"]:
            found.append(f"{missing} missing pixels")
        for number, expected in enumerate(entry["bands_without_nodata"]):
            if expected and not _same(pixels[number][~np.isnan(values[number])], expected, tolerance):
                found.append(f"band {number} without missing pixels")
    return found


def _same(pixels: np.ndarray, expected: dict[str, float], tolerance: float) -> bool:
    finite = pixels[np.isfinite(pixels)].astype(np.float64)
    if not finite.size:
        return False
    if max(abs(finite.min() - expected["min"]), abs(finite.max() - expected["max"])) > tolerance:
        return False
    return bool(np.isclose(finite.mean(), expected["mean"], rtol=1e-9, atol=tolerance))


def _status(name: str) -> float:
    """MB, of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _child(path: Path, entry: dict[str, Any], pipe: Connection) -> None:
    opened: list[str] = []
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | set(sys.path)

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.system", "subprocess.Popen", "socket.connect"):
            name = str(arguments[0])
            if name != str(path) and not any(place and name.startswith(place) for place in places):
                opened.append(f"{event} {name}")

    limit = int(_status("VmSize") + MEGABYTES) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _status("VmRSS")
    sys.addaudithook(listen)
    begun = time.perf_counter()
    image, refusal = None, ""
    try:
        read_band_header(path)
        if entry.get("axes") == "XYZ":
            slices = [read_band_image(path, frame=number).pixels for number in range(entry["shape"][2])]
            image = BandImage(np.concatenate(slices))
        else:
            image = read_band_image(path)
    except BandError as error:
        refusal = f"{error.kind}: {error}"
    seconds = time.perf_counter() - begun
    elsewhere = [name for name in opened if not name.startswith("open /proc/self")]
    if "PICKLE_WAS_RUN" in os.environ:
        elsewhere.append("a pickle was run")
    found = [] if image is None or entry["expect"] == "refuse" else differences(image, entry)
    memory = max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    pipe.send({"refusal": refusal, "seconds": seconds, "memory": memory, "elsewhere": elsewhere, "differs": found})


def judge(expect: str, outcome: dict[str, Any]) -> str:
    """ "read", "refused", or what is wrong."""
    if outcome["seconds"] > SECONDS:
        return f"{outcome['seconds']:.1f} s"
    if outcome["elsewhere"]:
        return f"something else than the file: {outcome['elsewhere'][0]}"
    if expect == "refuse":
        return "refused" if outcome["refusal"] else "not refused"
    if outcome["refusal"]:
        return "refused"
    return ", ".join(outcome["differs"]) or "read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="The folder of files/ and manifest.json.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write what came of each file there.")
    arguments = parser.parse_args()
    entries = json.loads((arguments.data / "manifest.json").read_text())
    # What is imported counts for no file, and the processes start with it.
    for name in ("tifffile", "imagecodecs", "pydicom.pixels", "astropy.io.fits", "nibabel"):
        __import__(name)
    context = multiprocessing.get_context("fork")
    results, slowest, largest = [], 0.0, 0.0
    for entry in entries:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(arguments.data / "files" / entry["file"], entry, sender))
        child.start()
        sender.close()
        try:
            outcome = receiver.recv()
            verdict = judge(entry["expect"], outcome)
            slowest, largest = max(slowest, outcome["seconds"]), max(largest, outcome["memory"])
        except EOFError:
            child.join()
            outcome, verdict = {}, f"the process ended with {child.exitcode}"
        child.join()
        results.append({"file": entry["file"], "expect": entry["expect"], "verdict": verdict, **outcome})
    print("| | files | read | refused | wrong |\n|---|---|---|---|---|")
    for expect in ("ok", "choice", "refuse"):
        count = Counter(row["verdict"] for row in results if row["expect"] == expect)
        total = sum(count.values())
        wrong = total - count["read"] - count["refused"]
        print(f"| {expect} | {total} | {count['read']} | {count['refused']} | {wrong} |")
    print(f"\nThe slowest took {slowest:.2f} s, the largest {largest:.0f} MB.\n\n| file | | |\n|---|---|---|")
    for row in results:
        if row["verdict"] not in ("read", "refused") or (row["expect"] == "ok" and row["verdict"] != "read"):
            print(f"| {row['file']} | {row['expect']} | {row['verdict']} {row.get('refusal', '')} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
