"""Runs of scripts without the seconds that imports take: each is a fork of one process that has imported everything."""

import json
import subprocess
import sys
from pathlib import Path

# Waits of clients for a server that fails are 1000 times shorter. A run that takes longer than its limit is killed.
_PARENT = """
import gc, json, os, runpy, signal, sys, time, traceback, types
import tenacity.nap
import huggingface_hub.file_download as file_download, huggingface_hub.utils._http as http
import hf_mae_robust.finetune, hf_mae_robust.pretrain

faster = types.SimpleNamespace(**{name: value for name, value in vars(time).items() if name[0] != "_"})
faster.sleep = lambda seconds: time.sleep(seconds / 1000)
http.time = file_download.time = tenacity.nap.time = faster

def become(job, settings):
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(job["folder"])
    os.environ.update(settings)
    signal.alarm(job["limit_s"])
    sys.argv = job["words"]

gc.freeze()
for line in sys.stdin:
    job, children = json.loads(line), []
    for settings in job["environments"]:
        children.append(os.fork())
        if children[-1] == 0:
            become(job, settings)
            code = 0
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                print(end.code if isinstance(end.code, str) else "")
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)  # taking down all that was imported takes seconds, too
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


class WarmProcess:
    """Use as a context manager. environment: of the process; what libraries read when they are imported stays as it is
    there, HF_ENDPOINT and HF_HOME among it."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment

    def __enter__(self) -> "WarmProcess":
        command = [sys.executable, "-c", _PARENT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=self.environment, **pipes)
        return self

    def __exit__(self, *_) -> None:
        self.process.communicate()

    def run(self, words: list, folder: Path, environments: list[dict[str, str]], limit_s: int = 120):
        """Run a script with its arguments, `words`, in `folder`, once for each of `environments`, at the same time:
        (exit codes, all that was printed)."""
        output = folder / "output.txt"
        output.unlink(missing_ok=True)
        job = {"words": list(map(str, words)), "folder": str(folder), "output": str(output), "limit_s": limit_s}
        self.process.stdin.write(json.dumps({**job, "environments": environments}) + "\n")
        self.process.stdin.flush()
        codes = json.loads(self.process.stdout.readline())
        return codes, output.read_text()
