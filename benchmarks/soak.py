"""Does a run that is killed at random instants, and started again by the same command, end like the undisturbed one?

    python benchmarks/soak.py --kills 50

Real runs of run_pretrain.py on a tiny model, in turns with 1 and 2 processes: streamed Parquet, dropout, augmentation,
accumulation of 2, workers, a checkpoint every third step. Two thirds of the kills (SIGKILL) wait until a checkpoint is
being written, the others come at any time from the start of the run on. After each, the newest checkpoint has to be
complete. A run that gets to its end is compared with the undisturbed one: losses of all steps, and the weights, bit by
bit. Ends with code 1 where anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
from tqdm.auto import tqdm

from hf_mae_robust.files import broken_file_of
from hf_mae_robust.training.checkpoints import STAGING, checkpoints_in

ROOT = Path(__file__).parents[1]
MODEL = (
    "image_size=16,patch_size=4,hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,"
    "decoder_hidden_size=16,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=32,"
    "mid_mask_layer_idx=1"
)


def write_images(folder: Path, count: int) -> None:
    """Noise, as PNG files in Parquet."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image()})
    folder.mkdir()
    for part in range(4):
        table = datasets.Dataset.from_dict({"image": list(pixels[part::4])}, features=features)
        table.to_parquet(folder / f"train-{part:05d}-of-00004.parquet", batch_size=25)


def start(words: list[str], processes: int, log: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment |= {key: str(value) for key, value in place.items()} if processes > 1 else {}
        with log.open("ab") as output:
            command = [sys.executable, str(ROOT / "run_pretrain.py"), *words]
            started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    return started


def ended(processes: list[subprocess.Popen]) -> bool:
    return all(process.poll() is not None for process in processes)


def staged(folder: Path) -> list[str]:
    """What is being written or deleted in a run's folder at this instant."""
    try:
        return os.listdir(folder / STAGING)  # noqa: PTH208
    except FileNotFoundError:
        return []


def kill(processes: list[subprocess.Popen], chance: random.Random) -> None:
    """One of them at once, the others a little later, as a launcher does."""
    first = chance.choice(processes)
    first.send_signal(signal.SIGKILL)
    time.sleep(chance.uniform(0, 0.2) if len(processes) > 1 else 0)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def result_of(folder: Path) -> tuple[list, bytes]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    return losses, (folder / "model.safetensors").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="Kills in all (%(default)s).")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="In turns (%(default)s).")
    parser.add_argument("--epochs", type=int, default=40, help="Length of a run; 20 steps each (%(default)s).")
    parser.add_argument("--seed", type=int, default=0, help="Of the instants (%(default)s).")
    arguments = parser.parse_args()
    chance, seen = random.Random(arguments.seed), Counter()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    write_images(work / "images", 325)
    words = ["--dataset_name", str(work / "images"), "--dataset_streaming", "--config_overrides", MODEL]
    words += ["--target_normalization", "global_patch", "--target_statistics", "auto", "--mid_mask_ratio", "0.25"]
    words += ["--num_train_epochs", str(arguments.epochs), "--gradient_accumulation_steps", "2", "--crop_pct", "1"]
    words += ["--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "2", "--logging_steps", "1"]
    words += ["--report_to", "none"]
    expected, folders = {}, {}
    for processes in arguments.processes:
        shape = ["--per_device_train_batch_size", str(8 // processes), "--output_dir", str(work / f"whole{processes}")]
        for process in start([*words, *shape, "--dataloader_num_workers", "0"], processes, work / "log"):
            if process.wait() != 0:
                sys.exit(f"The undisturbed run failed, see {work / 'log'}.")
        expected[processes] = result_of(work / f"whole{processes}")
        folders[processes] = work / f"run{processes}-0"
    bar = tqdm(total=arguments.kills, desc="kills")
    while bar.n < arguments.kills or any(folder.exists() for folder in folders.values()):
        processes = arguments.processes[bar.n % len(arguments.processes)]
        if bar.n >= arguments.kills:  # let each of them come to its end
            processes = next(number for number, folder in folders.items() if folder.exists())
        folder = folders[processes]
        shape = ["--per_device_train_batch_size", str(8 // processes), "--output_dir", str(folder)]
        running = start(
            [*words, *shape, "--dataloader_num_workers", chance.choice(["0", "2"])], processes, work / "log"
        )
        seen["starts"] += 1
        if bar.n < arguments.kills:
            begun, newest = time.monotonic(), checkpoints_in(folder)[:1]
            if chance.random() < 0.25:
                time.sleep(chance.uniform(0, 12))  # any time, the start of Python included
            else:
                while not ended(running) and checkpoints_in(folder)[:1] == newest and time.monotonic() - begun < 120:
                    time.sleep(0.005)
                time.sleep(chance.uniform(0, 1.5))
                aimed = chance.random() < 0.9
                while aimed and not ended(running) and not any("checkpoint-" in name for name in staged(folder)):
                    time.sleep(0.0005)
                time.sleep(chance.uniform(0, 0.02))
            if not ended(running):
                kill(running, chance)
                bar.update()
                seen["kills while a checkpoint was being written or deleted"] += bool(staged(folder))
                newest = checkpoints_in(folder)[:1]
                seen["kills before the first checkpoint"] += not newest
                seen["incomplete checkpoints"] += sum(
                    broken_file_of(checkpoint) is not None for checkpoint in checkpoints_in(folder)
                )
                continue
        codes = [process.wait() for process in running]
        if codes != [0] * processes:
            sys.exit(f"A run ended with {codes}, see {work / 'log'}.")
        losses, weights = result_of(folder)
        seen["runs compared"] += 1
        seen["runs that differ"] += (losses, weights) != expected[processes]
        shutil.rmtree(folder)
        folders[processes] = work / f"run{processes}-{seen['runs compared']}"
    bar.close()
    for name in ("starts", *sorted(set(seen) - {"starts"})):
        print(f"{name}: {seen[name]}")
    shutil.rmtree(work)
    sys.exit(bool(seen["runs that differ"] or seen["incomplete checkpoints"]))


if __name__ == "__main__":
    main()
