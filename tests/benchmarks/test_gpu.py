"""benchmarks/gpu.py: its parts, rehearsed with tiny sizes on the CPU, and what becomes of parts that go wrong."""

import io
import json
import os
import subprocess
import sys
import tarfile
from importlib import util
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers import photos

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def jpeg_set(folder: Path, counts: dict[str, int], size: int) -> Path:
    """A file SPLIT-00000-of-00001.parquet a split, with labelled JPEG pictures."""
    folder.mkdir()
    for seed, (split, count) in enumerate(counts.items()):
        rows = []
        for picture in photos(count, size, seed=seed):
            content = io.BytesIO()
            Image.fromarray(picture).save(content, "JPEG")
            rows.append({"bytes": content.getvalue(), "path": None})
        table = pa.table({"image": rows, "label": [i % 10 for i in range(count)]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_part_can_be_rehearsed(tmp_path):
    command = [sys.executable, str(SCRIPT), "--rehearse", "--total_seconds", "1400", "--output", str(tmp_path / "out")]
    command += ["--photos", str(jpeg_set(tmp_path / "photos", {"train": 24}, 64))]
    command += ["--cifar10", str(jpeg_set(tmp_path / "cifar10", {"train": 64, "test": 32}, 32))]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + log
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    ended = {name: part["ended"] for name, part in found["parts"].items()}
    # What needs a GPU says so, behind everything that a CPU can do of it.
    assert "needs a GPU" in ended.pop("fsdp")
    assert ended == dict.fromkeys(("environment", "smoke", "steps", "precision", "loading", "cifar10"), "done"), log

    tables = {}
    for row in found["rows"]:
        tables.setdefault(row["table"], []).append(row["figures"])
    assert {row["passed"] for row in tables["Smoke"] if "passed" in row} == {"yes"}
    ways = [row for name, rows in tables.items() if name.startswith("Training step,") for row in rows]
    # flash-attn is for GPUs; nothing else may be missing.
    assert {row["note"] for row in ways if "note" in row} <= {"flash-attn is not installed"}
    assert {row["way"] for row in ways if "images per second" in row} >= {
        "ours",
        "ours, drop edge 0.3",
        "ours, compiled",
        "ours, compiled (max-autotune)",
        "ours, gradient checkpointing",
        "ours, 25% mid-level tokens",
        "ours, eager",
        "stock",
        "stock, compiled",
        "official structure",
    }
    assert [set(row) for row in tables["FSDP2 against DDP, one GPU"]] == [{"way", "first loss", "last 5", "losses"}] * 2
    markdown = (tmp_path / "out" / "gpu.md").read_text()
    assert all(f"## {name}\n" in markdown for name in tables)

    with tarfile.open(tmp_path / "out" / "cifar10.tar") as archive:
        names = archive.getnames()
        result = json.load(archive.extractfile(names[1]))
    assert names == ["mae-0/pretrain/result.json", "robust-0/pretrain/result.json"]
    written_by_reproduce = ROOT / "benchmarks/reproduce/small/classification/robust-0/pretrain/result.json"
    known = json.loads(written_by_reproduce.read_text())
    assert result.keys() == known.keys()
    assert result["curves"].keys() == known["curves"].keys()
    assert result["settings"]["decoder_attention_probs_dropout_prob"] == 0.3


@pytest.fixture
def gpu():
    spec = util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


FAKES = {
    "fails": "print('first line'); print('what went wrong'); raise SystemExit(3)",
    "hangs": """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[sys.argv.index("--work") + 1] + "/../child", "w").write(str(child.pid))
row = '{"table": "T", "figures": {"a b": 1.5, "curve": [1, 2]}}'
open(sys.argv[sys.argv.index("--rows") + 1], "a").write(row + chr(10))
time.sleep(600)
""",
    "cannot": "print('needs a GPU'); raise SystemExit(77)",
    "works": "print('fine')",
}


@pytest.mark.slow  # it waits
def test_a_part_that_fails_or_hangs_is_reported_and_the_next_one_begins(gpu, tmp_path, monkeypatch, capsys):
    parts = []
    for name, source in FAKES.items():
        script = tmp_path / f"{name}.py"
        script.write_text(source)
        parts.append(gpu.Part(name, str(script), 6 if name == "hangs" else 60, ""))
    monkeypatch.setattr(gpu, "PARTS", (*parts, gpu.Part("late", str(script), None, "")))
    monkeypatch.setattr(gpu, "GRACE", 1)
    monkeypatch.setattr(gpu.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--photos", str(tmp_path), "--output", str(tmp_path / "out")])
    assert ended.value.code == 1
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {name: part["ended"] for name, part in found["parts"].items()} == {
        "fails": "failed (exit code 3): what went wrong",
        "hangs": "out of time",
        "cannot": "left out: needs a GPU",
        "works": "done",
        "late": "done",
    }
    # What it had found stays, and nothing that it had started is left.
    assert found["rows"] == [{"table": "T", "figures": {"a b": 1.5, "curve": [1, 2]}}]
    assert "| a b |\n|---|\n| 1.5 |" in (tmp_path / "out" / "gpu.md").read_text()
    assert not psutil.pid_exists(int((tmp_path / "child").read_text()))
    assert "what went wrong" in capsys.readouterr().out

    # Without time left, a part is not begun.
    with pytest.raises(SystemExit):
        gpu.main(["--photos", str(tmp_path), "--output", str(tmp_path / "out"), "--total_seconds", "3"])
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {part["ended"] for part in found["parts"].values()} == {"not begun: no time left"}
