"""Does it take longer to resume at step 10,000 than at step 10?

    python benchmarks/resume_start.py

A tiny model on streamed Parquet, 37 steps an epoch, 20,000 steps in all. A checkpoint of step 10 is made by a real run;
the one of step 10,000 (in epoch 270) is a copy of it with other numbers in the state of trainer and schedule. Both are
resumed in turns, in processes of their own, and timed from the start of the training loop (everything imported and
opened) and from the start of the process to the end of the first step.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from soak import MODEL, write_images

from hf_mae_robust.files import seal

ROOT = Path(__file__).parents[1]
STEPS = (10, 10_000)

# Ends after the step that STOP_AFTER names.
DRIVER = """
import os, sys, time
from hf_mae_robust import trainer
from hf_mae_robust.pretrain import main

inner, begun = trainer.MAETrainer._inner_training_loop, []

def timed(*args, **kwargs):
    begun.append(time.perf_counter())
    return inner(*args, **kwargs)

def after_step(self, *args, **kwargs):
    if self.state.global_step == int(os.environ["STOP_AFTER"]):
        if "SAVE" in os.environ:
            self._save_checkpoint(self.model)
        print("SECONDS", time.perf_counter() - begun[0], flush=True)
        os._exit(0)

trainer.MAETrainer._inner_training_loop = timed
trainer.MAETrainer._maybe_log_save_evaluate = after_step
main(sys.argv[1:])
"""


def run(words: list[str], stop_after: int, **environment: str) -> tuple[float, float]:
    """Seconds to the end of the first step, from the start of the process and from that of the training loop."""
    begun = time.perf_counter()
    environment |= {"STOP_AFTER": str(stop_after), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, *words]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if "SECONDS" not in done.stdout:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - begun, float(done.stdout.split("SECONDS ")[1].split()[0])


def move_to_step(checkpoint: Path, step: int, steps_per_epoch: int) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state |= {"global_step": step, "epoch": step / steps_per_epoch}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    scheduler = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    scheduler |= {"last_epoch": step, "_step_count": step + 1}
    torch.save(scheduler, checkpoint / "scheduler.pt")
    seal(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="Resumes of each (%(default)s).")
    parser.add_argument("--images", type=int, default=2700, help="Images in the data set (%(default)s).")
    parser.add_argument("--map_style", action="store_true", help="Not streamed.")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="resume-start-"))
    write_images(work / "images", arguments.images)
    batch = arguments.images // 37
    words = ["--dataset_name", str(work / "images"), "--config_overrides", MODEL, "--max_steps", "20000"]
    words += ["--per_device_train_batch_size", str(batch), "--dataloader_num_workers", "0", "--report_to", "none"]
    words += ["--dataset_streaming", str(not arguments.map_style), "--output_dir"]
    run([*words, str(work / "made")], STEPS[0], SAVE="1")
    for step in STEPS:
        shutil.copytree(work / "made" / f"checkpoint-{STEPS[0]}", work / f"from-{step}" / f"checkpoint-{step}")
        move_to_step(work / f"from-{step}" / f"checkpoint-{step}", step, steps_per_epoch=arguments.images // batch)
    seconds = {step: [] for step in STEPS}
    for repeat in range(arguments.repeats):
        for step in STEPS if repeat % 2 else reversed(STEPS):
            seconds[step].append(run([*words, str(work / f"from-{step}")], step + 1))
            print(f"step {step:>6,}: {seconds[step][-1][0]:.2f} s, of which {seconds[step][-1][1]:.3f} s the loop")
    for i, what in enumerate(("process to first step", "training loop to first step")):
        first, last = (statistics.median(pair[i] for pair in seconds[step]) for step in STEPS)
        print(f"{what}: step 10 {first:.3f} s, step 10,000 {last:.3f} s, ratio {last / first:.3f} (medians)")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
