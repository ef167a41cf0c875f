"""How many more images a second do two processes train on than one?

    python benchmarks/processes.py

Runs of run_pretrain.py on scikit-learn's digits (enlarged to the size of the model, so that no file is needed), in
turns with 1 and 2 processes of one thread each under torchrun, the same batch a process; on a machine with GPUs a
process has a GPU. images/s as the run logs them, the median without the first steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from paired import add_common_arguments, report
from tqdm.auto import tqdm

ROOT = Path(__file__).parents[1]
# Entries of the log (one a step) at the beginning of each run that do not count.
WARM_UP = 3


def images_per_second(processes: int, arguments: argparse.Namespace, folder: str) -> float:
    output = Path(folder) / "run"
    sizes = f"image_size={arguments.image_size},patch_size={arguments.image_size // 14},num_channels=1,"
    sizes += "image_mean=[0.5],image_std=[0.5],"
    sizes += f"hidden_size={arguments.width},num_attention_heads={arguments.width // 32},"
    sizes += f"intermediate_size={4 * arguments.width},num_hidden_layers=6,decoder_num_hidden_layers=2,"
    sizes += "decoder_hidden_size=128,decoder_num_attention_heads=4,decoder_intermediate_size=512"
    words = [
        "--config_overrides", sizes,
        "--config", "digits",
        "--mid_mask_ratio", "0",
        "--output_dir", str(output),
        "--overwrite_output_dir",
        "--max_steps", str(WARM_UP + arguments.steps),
        "--per_device_train_batch_size", str(arguments.batch_size),
        "--logging_steps", "1",
        "--save_strategy", "no",
        "--eval_strategy", "no",
        "--eval_split_name", "none",
        "--report_to", "none",
        "--dataloader_num_workers", "0",
        *(["--bf16"] if arguments.bf16 else []),
    ]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(ROOT / "run_pretrain.py"), *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"A run of {processes} process(es) failed:\n{(done.stdout + done.stderr)[-3000:]}")
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return statistics.median(
        [entry["images_per_second"] for entry in history if "images_per_second" in entry][WARM_UP:]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--processes", type=int, default=2, help="Compared with one (%(default)s).")
    parser.add_argument("--width", type=int, default=192, help="Of the encoder (%(default)s).")
    parser.add_argument("--image_size", type=int, default=112, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="Of a process (%(default)s).")
    parser.add_argument("--steps", type=int, default=15, help="In each run (%(default)s).")
    parser.add_argument("--bf16", action="store_true", help="Autocast.")
    arguments = parser.parse_args()
    rates = {"1 process": [], f"{arguments.processes} processes": []}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * arguments.repeats, unit="run") as bar:
        for repeat in range(arguments.repeats):
            order = list(zip(rates, (1, arguments.processes)))
            for name, processes in order if repeat % 2 else reversed(order):
                rates[name].append(images_per_second(processes, arguments, folder))
                bar.update()
    report("run_pretrain.py", rates, "1 process", path=arguments.json)


if __name__ == "__main__":
    main()
