"""Does every way to launch a run train as one process does?

    python benchmarks/distributed.py                    # all cases that this machine can run
    python benchmarks/distributed.py --only FSDP2       # those with this in their name

Short runs on scikit-learn's digits, dropout off, the same batch over all processes; the table compares what they log.
On a machine without an accelerator FSDP needs tests/fsdp_on_cpu, because accelerate turns it off there, and DeepSpeed
compiles its communication at its first start (one to three minutes). With GPUs a process takes one each. Two machines
are two network namespaces, which takes root.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from paired import machine

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
from tests import network  # noqa: E402  # of the repository, not installed

CONFIGS = ROOT / "hf_mae_robust" / "launch_configs"
IS_CPU = not torch.accelerator.is_available()
BATCH, STEPS = 64, 20
# Of the statistics of BatchNorm, bf16 and others: what counts as the same curve.
SAME = 1e-6


@dataclass
class Case:
    """One launch.

    Attributes:
        name: as the table has it.
        launch: what stands before the script. processes: that it starts; the batch is divided among them.
        words: flags beside those of all cases. script: "pretrain" or "finetune".
        like: the case whose losses it should have; None: nothing is compared.
        refused: what it should be refused with; "": it should train.
        needs: why it cannot run here; "": it can.
        tolerance: largest difference of a loss that is expected.
        on_machines: whether each process runs on a machine of its own (tests/network.py): by `launch`, in which
            "{rank}" is the machine's number, or, without one, as SLURM starts them.
    """

    name: str
    launch: list[str]
    processes: int = 1
    words: list[str] = field(default_factory=list)
    script: str = "pretrain"
    like: str | None = "1 process"
    refused: str = ""
    needs: Callable[[], str] = lambda: ""
    tolerance: float = SAME
    on_machines: bool = False

    def missing(self) -> str:
        if not IS_CPU and torch.accelerator.device_count() < self.processes:
            return f"needs {self.processes} GPUs"
        return self.needs()


def torchrun(processes: int) -> list[str]:
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def accelerate(processes: int, *words: str) -> list[str]:
    return ["accelerate.commands.launch", "--num_processes", str(processes), "--main_process_port", "0", *words]


def from_file(name: str, processes: int = 2, *words: str) -> list[str]:
    """`accelerate launch` with a file of ours, in float32 unless `words` say otherwise."""
    precision = () if "--mixed_precision" in words else ("--mixed_precision", "no")
    return accelerate(processes, "--config_file", str(CONFIGS / name), *precision, *words)


def on_two_machines(name: str) -> list[str]:
    """`accelerate launch` with a file of several machines; "{rank}" is the number of the machine."""
    return from_file(
        name, 2, "--num_machines", "2", "--machine_rank", "{rank}", "--main_process_ip", network.FIRST_ADDRESS,
        "--main_process_port", network.PORT,
    )  # fmt: skip


def deepspeed_missing() -> str:
    return "" if find_spec("deepspeed") else "deepspeed is not installed"


def accumulated(steps: int) -> list[str]:
    return ["--gradient_accumulation_steps", str(steps)]


CLIP, BF16 = ["--max_grad_norm", "0.1"], ["--bf16"]
FSDP, DEEPSPEED = "fsdp2_8gpu.yaml", "deepspeed_zero2_8gpu.yaml"
SHIPPED = ["--mixed_precision", "bf16"]
CLASSIFIER = {"script": "finetune", "like": "classification, 1 process"}
ZERO = {"processes": 2, "needs": deepspeed_missing}

MACHINES = {"processes": 2, "on_machines": True, "needs": lambda: network.why_not() or ""}

TORCHRUN_MACHINES = [
    "torch.distributed.run", "--nnodes", "2", "--node_rank", "{rank}", "--nproc_per_node", "1",
    "--master_addr", network.FIRST_ADDRESS, "--master_port", network.PORT,
]  # fmt: skip

CASES = [
    Case("1 process", [], like=None),
    Case("1 process, clipped", [], words=CLIP, like=None),
    Case("1 process, bf16", [], words=BF16, tolerance=1e-2),
    Case("torchrun, 2 processes", torchrun(2), 2),
    Case("torchrun, 4 processes", torchrun(4), 4),
    Case("torchrun, 2 processes, 2 accumulated", torchrun(2), 2, accumulated(2)),
    Case("torchrun, 4 processes, 2 accumulated", torchrun(4), 4, accumulated(2)),
    Case("torchrun, 2 processes, clipped", torchrun(2), 2, CLIP, like="1 process, clipped"),
    Case("torchrun, 2 processes, bf16", torchrun(2), 2, BF16, like="1 process, bf16", tolerance=1e-3),
    Case("accelerate launch --multi_gpu, 2 processes", accelerate(2, "--multi_gpu"), 2),
    Case("ddp_8gpu.yaml, 2 processes", from_file("ddp_8gpu.yaml"), 2),
    Case(
        "ddp_8gpu.yaml as shipped (bf16), 2 processes",
        from_file("ddp_8gpu.yaml", 2, *SHIPPED), 2, like="torchrun, 2 processes, bf16",
    ),
    Case("two machines, 1 process each", [], **MACHINES),
    Case("two machines, 2 accumulated", [], words=accumulated(2), **MACHINES),
    Case("two machines, torchrun --nnodes 2", TORCHRUN_MACHINES, **MACHINES),
    Case("two machines, ddp_4x8gpu.yaml", on_two_machines("ddp_4x8gpu.yaml"), **MACHINES),
    Case("two machines, fsdp2_4x8gpu.yaml", on_two_machines("fsdp2_4x8gpu.yaml"), **MACHINES),
    Case("FSDP2, fsdp2_8gpu.yaml, 2 processes", from_file(FSDP), 2),
    Case("FSDP2, 4 processes", from_file(FSDP, 4), 4),
    Case("FSDP2, 2 accumulated", from_file(FSDP), 2, accumulated(2)),
    Case("FSDP2, clipped", from_file(FSDP), 2, CLIP, like="1 process, clipped"),
    Case("FSDP2, --activation_checkpointing", from_file(FSDP), 2, ["--activation_checkpointing"]),
    Case("FSDP2 by torchrun --fsdp", torchrun(2), 2, ["--fsdp"]),
    Case("FSDP2 as shipped (bf16)", from_file(FSDP, 2, *SHIPPED), 2, like="torchrun, 2 processes, bf16"),
    Case(
        "FSDP2, SHARDED_STATE_DICT", from_file(FSDP, 2, "--fsdp_state_dict_type", "SHARDED_STATE_DICT"), 2,
        refused="SHARDED_STATE_DICT",
    ),
    Case("ZeRO-1, 2 processes", from_file(DEEPSPEED, 2, "--zero_stage", "1"), **ZERO),
    Case("ZeRO-2, deepspeed_zero2_8gpu.yaml, 2 processes", from_file(DEEPSPEED), **ZERO),
    Case("ZeRO-2, 2 accumulated", from_file(DEEPSPEED), words=accumulated(2), **ZERO),
    Case("ZeRO-2, clipped", from_file(DEEPSPEED), words=CLIP, like="1 process, clipped", **ZERO),
    # All weights are bf16 there, and nothing runs under autocast.
    Case("ZeRO-2 as shipped (bf16)", from_file(DEEPSPEED, 2, *SHIPPED), tolerance=2e-2, **ZERO),
    Case("ZeRO-3, 2 processes", from_file(DEEPSPEED, 2, "--zero_stage", "3"), **ZERO),
    Case(
        "ZeRO-2, --skip_nonfinite_steps", from_file(DEEPSPEED), words=["--skip_nonfinite_steps", "1"],
        refused="--skip_nonfinite_steps", **ZERO,
    ),
    Case("classification, 1 process", [], script="finetune", like=None),
    Case("classification, torchrun, 2 processes", torchrun(2), 2, **CLASSIFIER),
    Case("classification, FSDP2, 2 processes", from_file(FSDP), 2, **CLASSIFIER),
    Case("classification, ZeRO-2, 2 processes", from_file(DEEPSPEED), **ZERO, **CLASSIFIER),
]  # fmt: skip


def words_of(case: Case, folder: Path, work: Path) -> list[str]:
    steps = int(dict(zip(case.words, case.words[1:])).get("--gradient_accumulation_steps", 1))
    settings = {
        "output_dir": folder,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH // case.processes // steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
    }
    if case.script == "pretrain":
        settings["decoder_attention_probs_dropout_prob"] = 0.0
    else:
        settings |= {"model_name_or_path": folder_of(CASES[0], work), "drop_path_rate": 0.0}
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + case.words


def folder_of(case: Case, work: Path) -> Path:
    return work / "".join(letter if letter.isalnum() else "_" for letter in case.name)


def losses_of(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def run(case: Case, work: Path, limit_s: float) -> tuple[int | None, str]:
    """Exit code (None: it took too long and was ended) and what was printed."""
    path = [str(ROOT / "tests" / "fsdp_on_cpu")] * IS_CPU + [str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    environment |= {"DS_ACCELERATOR": "cpu"} if IS_CPU else {}
    command = [sys.executable, *(["-m", *case.launch] if case.launch else []), str(ROOT / f"run_{case.script}.py")]
    command += words_of(case, folder_of(case, work), work)
    if not case.on_machines:
        return wait_for([start(command, environment, work)], limit_s)
    with network.two_machines() as machines:
        started = []
        for place in machines.places:
            inside = ["ip", "netns", "exec", place["NETWORK_NAMESPACE"]]
            words = [word.replace("{rank}", place["RANK"]) for word in command]
            who = {name: value for name, value in place.items() if name.endswith("IFNAME")} if case.launch else place
            started.append(start([*inside, *words], {**environment, **who}, work))
        return wait_for(started, limit_s)


def start(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, **pipes)


def wait_for(started: list[subprocess.Popen], limit_s: float) -> tuple[int | None, str]:
    """Exit code of the first one that failed, and what all printed."""
    deadline, printed = time.monotonic() + limit_s, []
    try:
        for process in started:
            printed.append(process.communicate(timeout=max(deadline - time.monotonic(), 0))[0])
        return next((process.returncode for process in started if process.returncode), 0), "".join(printed)
    except subprocess.TimeoutExpired:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return None, "".join(process.communicate()[0] or "" for process in started if process.stdout)


def judge(case: Case, code: int | None, printed: str, work: Path, limit_s: float) -> dict[str, object]:
    """A row of the table, and whether it is as it should be."""
    row = {"launch": case.name, "difference": None, "ok": False}
    if code is None:
        return row | {"result": f"ended after {limit_s:g} s"}
    errors = [line for line in printed.splitlines() if ": error: " in line]
    if case.refused:
        is_refused = code != 0 and any(case.refused in line for line in errors)
        return row | {"result": "refused in a sentence" if is_refused else f"exit {code}", "ok": is_refused}
    if code:
        return row | {"result": f"exit {code}: {(errors or printed.splitlines() or ['nothing printed'])[-1][:200]}"}
    folder = folder_of(case, work)
    losses, is_there = losses_of(folder), (folder / "model.safetensors").exists()
    row["ok"] = is_there and len(losses) == STEPS and all(map(math.isfinite, losses))
    row["result"] = f"{len(losses)} steps" + ("" if is_there else ", no model.safetensors")
    other = next((each for each in CASES if each.name == case.like), None)
    if other is None:
        return row
    if not (folder_of(other, work) / "trainer_state.json").exists():
        return row | {"result": f"{row['result']}; '{other.name}' is missing", "ok": False}
    row["difference"] = max(abs(a - b) for a, b in zip(losses, losses_of(folder_of(other, work))))
    row["ok"] = row["ok"] and row["difference"] <= case.tolerance
    return row


def with_references(cases: list[Case]) -> list[Case]:
    """And those that they are compared with or start from."""
    names = {case.name for case in cases} | {CASES[0].name}
    for case in reversed(CASES):
        if case.name in names and case.like:
            names.add(case.like)
    return [case for case in CASES if case.name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="Cases with this in their name.")
    parser.add_argument("--limit", type=float, default=400, metavar="S", help="For a case (%(default)s).")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the rows there.")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for case in with_references([case for case in CASES if arguments.only in case.name]):
            if reason := case.missing():
                row = {"launch": case.name, "result": f"skipped: {reason}", "difference": None, "ok": None}
            else:
                code, printed = run(case, Path(work), arguments.limit)
                row = judge(case, code, printed, Path(work), arguments.limit)
            if row["ok"] is False:
                print(f"--- {case.name}: {row['result']}", file=sys.stderr)
            rows.append({**row, "like": case.like if row["difference"] is not None else None})
            known = "" if row["difference"] is None else f", {row['difference']:.1e}"
            print(f"{len(rows)}: {case.name}: {row['result']}{known}", file=sys.stderr, flush=True)
    print(f"{json.dumps(machine())}\n")
    print("| launch | result | largest difference of a logged loss | to | as expected |\n|---|---|---|---|---|")
    for row in rows:
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        verdict = {True: "yes", False: "**no**", None: "-"}[row["ok"]]
        print(f"| {row['launch']} | {row['result']} | {difference} | {row['like'] or ''} | {verdict} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    sys.exit(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    main()
