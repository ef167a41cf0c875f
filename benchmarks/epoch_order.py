"""How long does it take to begin an epoch of streamed data, and how much memory, in each process?

    python benchmarks/epoch_order.py
    python benchmarks/epoch_order.py --rows 100_000_000 --former     # the order of version 0.1.0, 3 GB of memory

Row groups of 100 rows. Each measurement is a process of its own, and begins with the
table of row groups, then the first batch of an epoch, and the first one after a resume in the middle of the epoch.
Seconds of the process's CPU, because others may use the machine; the peak of resident memory above what the process
had before. Then the time of further batches of 64.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
from accelerate.data_loader import SkipBatchSampler

ROWS_PER_GROUP, BATCH_SIZE = 100, 64


def peak() -> float:
    """MB of resident memory, at most so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def timed(function):
    begun = time.process_time()
    value = function()
    return value, time.process_time() - begun


def measure(num_rows: int, world_size: int, is_former: bool) -> dict[str, float]:
    from hf_mae_robust.data.order import EpochBatchSampler
    from hf_mae_robust.data.row_groups import RowGroups

    sizes = np.full(num_rows // ROWS_PER_GROUP, ROWS_PER_GROUP, dtype=np.int32)
    sizes[::13] -= 19  # as the last ones of files
    before = peak()
    groups, table = timed(lambda: RowGroups(sizes))
    plan = {"rank": world_size // 2, "world_size": world_size, "batch_size": BATCH_SIZE, "seed": 42}
    sampler = EpochBatchSampler(groups, buffer_size=8192, **plan)
    sampler.new_order_from = 99 if is_former else 0
    middle, num_more = len(sampler) // 2, min(1000, len(sampler) - 1)
    first_epoch = iter(sampler)
    _, start = timed(lambda: next(first_epoch))
    _, more = timed(lambda: [next(first_epoch) for _ in range(num_more)])
    first_epoch.close()
    sampler.set_epoch(1)
    if not is_former:
        sampler.skip_next(middle)
    resumed = iter(SkipBatchSampler(sampler, skip_batches=middle))
    _, resume = timed(lambda: next(resumed))
    found = {"table": table, "start of an epoch": start, "after a resume": resume, "a batch": more / num_more}
    return {**found, "memory": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000_000, 1_000_000_000], help="(%(default)s)")
    parser.add_argument("--world_sizes", type=int, nargs="+", default=[1, 512], help="(%(default)s)")
    parser.add_argument("--former", action="store_true", help="The order of version 0.1.0.")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.rows[0], arguments.world_sizes[0], arguments.former)))
        return
    names = ["rows", "processes", "table", "start of an epoch", "after a resume", "a batch", "memory"]
    print("", *names, "", sep=" | ")
    print("|---" * len(names) + "|")
    for rows in arguments.rows:
        for world_size in arguments.world_sizes:
            command = [sys.executable, __file__, "--one", "--rows", str(rows), "--world_sizes", str(world_size)]
            command += ["--former"] * arguments.former
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds = (f"{found[name]:.2f} s" for name in names[2:5])
            cells = (f"{rows:,}", world_size, *seconds, f"{found['a batch'] * 1e6:.0f} µs", f"{found['memory']:.0f} MB")
            print("", *cells, "", sep=" | ", flush=True)


if __name__ == "__main__":
    main()
