"""Does the package start as fast as the part of transformers that it stands on?

    python benchmarks/startup.py

CPU time (user and system) of new processes, ours and the other alternating, median of several: `import hf_mae_robust`
against the import of stock ViT-MAE, and each --help against the import of TrainingArguments and HfArgumentParser.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
MODEL = "from transformers import ViTMAEForPreTraining, ViTMAEConfig"
ARGUMENTS = "from transformers import TrainingArguments, HfArgumentParser"
# question: (our words after `python`, the other's code, the ratio that is allowed)
QUESTIONS = {
    "import hf_mae_robust": (["-c", "import hf_mae_robust"], MODEL, 1.05),
    "run_pretrain.py --help": (["run_pretrain.py", "--help"], ARGUMENTS, 1.1),
    "run_finetune.py --help": (["run_finetune.py", "--help"], ARGUMENTS, 1.1),
    "python -m hf_mae_robust --help": (["-m", "hf_mae_robust", "--help"], ARGUMENTS, 1.1),
}


def cpu_seconds(words: list[str]) -> float:
    """Of a process that runs `python WORDS`, its children included."""
    before = os.times()
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="Pairs of processes for each question (%(default)s).")
    args = parser.parse_args()
    results = {}
    for question, (ours, other, limit) in QUESTIONS.items():
        pairs = [(cpu_seconds(ours), cpu_seconds(["-c", other])) for _ in range(args.repeats + 1)][
            1:
        ]  # files are cached
        mine, theirs = (median(values) for values in zip(*pairs))
        ratio = median(a / b for a, b in pairs)
        results[question] = {
            "ours_s": round(mine, 2),
            "other_s": round(theirs, 2),
            "ratio": round(ratio, 3),
            "limit": limit,
        }
        print(f"{question:<32} {mine:5.2f} s, {other}: {theirs:5.2f} s, ratio {ratio:.3f} (at most {limit})")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
