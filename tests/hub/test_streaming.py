"""A gated data set on a Hub on 127.0.0.1, read by the real client, with faults.

huggingface_hub takes its address from the environment when it is imported, so clients are forks of another process: one
for most tests, which takes orders through a named pipe (`client_process`), and the command line itself.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.order import epoch_batches
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.helpers import TINY_OVERRIDES, photos, write_parquet_set
from tests.loopback_hub import TOKEN, Fault, LoopbackHub
from tests.processes import ROOT, Parent, environment

REPO = "org/photos"
FIRST, SECOND, FAT = "1" * 40, "2" * 40, "3" * 40
RETRY_SECONDS, PATIENT = 0.6, 4.0
# huggingface_hub's own waits (1, 2, 4, 8, 8 s) and timeouts, made shorter in the client.
FASTER, TIMEOUT = 50, 0.3


def hashes(source) -> list[str]:
    """Of the decoded images, in the order of an epoch."""
    plan = {"epoch": 1, "rank": 0, "world_size": 1, "batch_size": 4, "seed": 3, "buffer_size": 16}
    rows = np.concatenate(epoch_batches(source.row_groups, **plan)).tolist()
    return [hashlib.sha256(decode_image(source.rows[row], 3, row).numpy().tobytes()).hexdigest() for row in rows]


def client_process(orders: str, answers: str) -> None:
    """Answer orders of one named pipe through another."""
    with Path(orders).open() as lines, Path(answers).open("w") as replies:
        answer_all(lines, replies)


def answer_all(lines: TextIO, replies: TextIO) -> None:
    """An order is a line of JSON: {"do": "open", "location"}, {"do": "read"} or {"do": "train", "words"}."""
    import huggingface_hub.utils._http as http
    from huggingface_hub import HfFileSystem, constants, file_download

    faster = SimpleNamespace(**{name: value for name, value in vars(time).items() if name[0] != "_"})
    faster.sleep = lambda seconds: time.sleep(seconds / FASTER)
    http.time = file_download.time = faster
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = TIMEOUT
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("hf_mae_robust").addHandler(handler)
    source = None
    for line in lines:
        order = json.loads(line)
        warnings.clear()
        started = time.monotonic()
        try:
            if order["do"] == "open":
                if order["forget"]:
                    HfFileSystem.clear_instance_cache()
                    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
                source, _ = open_splits(DataLocation(**order["location"]), eval_split=None, buffer_size=16)
                answer = {"revision": source.revision, "rows": source.num_rows, "fingerprint": source.fingerprint}
            elif order["do"] == "train":
                from hf_mae_robust.pretrain import main

                main(order["words"])
                answer = {}
            else:
                source.rows.rows.clear()
                source.rows.files.clear()
                answer = {"hashes": hashes(source), "revision": source.head(3).revision}
        except DataError as error:
            answer = {"error": str(error)}
        except BaseException:
            answer = {"crash": traceback.format_exc()}
        answer |= {"seconds": time.monotonic() - started, "warnings": list(warnings)}
        print(json.dumps(answer), file=replies, flush=True)


def client_environment(hub, home) -> dict[str, str]:
    cleared = {"HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE"}
    return {name: value for name, value in environment().items() if name not in cleared} | {
        "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1", "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("hub")
    folders = {
        FIRST: write_parquet_set(base / "first", {"train": 60, "validation": 12}),
        SECOND: write_parquet_set(base / "second", {"other": 4, "train": 48}),
    }
    # The images are a small part of this one.
    (base / "fat" / "data").mkdir(parents=True)
    features = Features({"depth": Value("binary"), "image": Image(), "notes": Value("binary")})
    rng = np.random.default_rng(0)
    rows = {"depth": [rng.bytes(100_000) for _ in range(24)], "image": photos(24), "notes": [rng.bytes(9000)] * 24}
    Dataset.from_dict(rows, features=features).to_parquet(base / "fat" / "data" / "train.parquet", batch_size=6)
    folders[FAT] = base / "fat"
    for folder in folders.values():
        (folder / "README.md").write_text("---\nlicense: other\n---\nPhotographs.\n")
    return folders


@pytest.fixture(scope="module")
def server(folders):
    with LoopbackHub(REPO, folders, FIRST) as hub:
        yield hub


@pytest.fixture
def hub(server):
    server.reset(FIRST)
    return server


@pytest.fixture(scope="module")
def parent(server, tmp_path_factory):
    with Parent(client_environment(server, tmp_path_factory.mktemp("home") / "cache")) as parent:
        yield parent


@pytest.fixture(scope="module")
def pipes(parent, tmp_path_factory):
    """For orders to a client and for its answers."""
    folder = tmp_path_factory.mktemp("client")
    paths = [folder / name for name in ("orders", "answers")]
    for path in paths:
        os.mkfifo(path)
    script = folder / "client.py"
    script.write_text(
        f"from tests.hub.test_streaming import client_process\nclient_process(*{list(map(str, paths))})\n"
    )
    client = parent.start([script], folder, limit_s=3600)
    with paths[0].open("w") as orders, paths[1].open() as answers:
        yield orders, answers
    client.wait()


@pytest.fixture
def ask(pipes):
    orders, answers = pipes

    def ask(do: str, *, words: list[str] = (), forget: bool = True, **location) -> dict:
        location = {
            "dataset_name": REPO, "dataset_streaming": True, "token": TOKEN, "dataset_retry_seconds": RETRY_SECONDS,
            **location,
        }  # fmt: skip
        order = {"do": do, "words": words, "forget": forget, "location": location}
        print(json.dumps(order), file=orders, flush=True)
        answer = json.loads(answers.readline())
        assert "crash" not in answer, answer["crash"]
        assert not any(TOKEN in text for text in [answer.get("error", ""), *answer["warnings"]])
        return answer

    return ask


def local_hashes(folder) -> list[str]:
    return hashes(open_splits(DataLocation(str(folder), dataset_streaming=True), eval_split=None, buffer_size=16)[0])


@pytest.fixture(scope="module")
def expected(folders):
    return {sha: local_hashes(folder) for sha, folder in folders.items()}


def test_the_data_are_those_of_the_files_and_the_requests_few(hub, ask, expected):
    opened = ask("open")
    assert (opened["revision"], opened["rows"], opened["warnings"]) == (FIRST, 60, [])
    hub.requests.clear()
    read = ask("read")
    assert read["hashes"] == expected[FIRST] and read["revision"] == FIRST and not read["warnings"]
    # For each of two files the footer, and each row group once or twice; nothing else.
    assert {request.method for request in hub.requests} == {"GET"} and len(hub.requests) <= 2 + 1.5 * 12


READING = [Fault(500, times=2), Fault("reset", times=3), Fault("truncated", times=2), Fault("no_range", times=2)]
READING_LONG = [Fault(429, times=3), Fault(503, times=6), Fault("stall", times=1), Fault("short", times=2)]


@pytest.mark.parametrize(
    "fault",
    [*READING, *(pytest.param(fault, marks=pytest.mark.slow) for fault in READING_LONG)],
    ids=lambda fault: str(fault.kind),
)
def test_faults_while_reading_that_pass(hub, ask, expected, fault):
    assert ask("open", dataset_retry_seconds=PATIENT)["rows"] == 60
    fault.path, fault.hits = "/data/train-00000", 0
    hub.faults = [fault]
    read = ask("read")
    assert read["hashes"] == expected[FIRST] and fault.hits > fault.times
    if fault.kind in ("short", "no_range"):  # huggingface_hub takes these for good
        assert "bytes were asked for" in read["warnings"][0] and "Trying again in" in read["warnings"][0]


OPENING = [
    Fault("reset", "README.md", "HEAD", times=2), Fault("reset", "README.md", times=1),
    Fault(500, "README.md", "HEAD", times=2), Fault("stall", "README.md", "HEAD", times=1, seconds=1.5),
    Fault("reset", f"/revision/{FIRST}", times=2), Fault(429, "/revision/", times=1), Fault(503, "/tree/", times=2),
    Fault("truncated", "/tree/", times=1), Fault("reset", "dataset_infos", "HEAD", times=1),
    Fault("reset", "/data/", times=2), Fault("short", "/data/", times=1), Fault("truncated", "/data/", times=1),
]  # fmt: skip


@pytest.mark.parametrize("fault", OPENING, ids=lambda fault: f"{fault.kind}-{fault.method}-{fault.path.strip('/')[:9]}")
def test_faults_while_opening_that_pass(hub, ask, fault):
    fault.hits = 0
    hub.faults = [fault]
    opened = ask("open", dataset_retry_seconds=PATIENT)
    assert opened.get("revision") == FIRST and opened["rows"] == 60, opened
    assert fault.hits > fault.times


FOR_EVER = {
    401: "--token", 403: f"accept the terms on https://huggingface.co/datasets/{REPO}", 404: "no such file",
    429: "429", 500: "500", 503: "503", "reset": "Error", "stall": "Timeout", "truncated": "Error",
    "short": "bytes were asked for", "no_range": "bytes were asked for",
}  # fmt: skip


# All but 401, 403 and 404 are tried again, which takes time; 429 and "short" stand for the others here.
SLOW_KINDS = {500, 503, "reset", "stall", "truncated", "no_range"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW_KINDS else kind for kind in FOR_EVER]
)
def test_faults_while_reading_that_stay_end_in_a_sentence(hub, ask, kind):
    assert ask("open")["rows"] == 60
    hub.faults = [Fault(kind, "/data/train-00001", seconds=0.6)]
    read = ask("read")
    error = read["error"]
    assert FOR_EVER[kind] in error and "train-00001-of-00002.parquet" in error and "\n" not in error
    if kind in (401, 403, 404):
        assert not read["warnings"] and hub.faults[0].hits <= 2  # not tried again
    else:
        assert RETRY_SECONDS * 0.9 < read["seconds"] < 300
        assert "--dataset_retry_seconds" in error and "connection" in error and "attempt(s)" in error


@pytest.mark.parametrize("kind", [500, "reset", "stall"])
def test_a_hub_that_does_not_answer_ends_in_a_sentence(hub, ask, kind):
    hub.faults = [Fault(kind, method=method, seconds=1.5) for method in ("HEAD", "GET")]
    opened = ask("open")
    assert f"--dataset_name {REPO} failed for" in opened["error"] and "--dataset_retry_seconds" in opened["error"]
    assert {500: "HfHubHTTPError", "reset": "ReadError", "stall": "Timeout"}[kind] in opened["error"]
    assert RETRY_SECONDS * 0.9 < opened["seconds"] < 300


@pytest.mark.parametrize("streaming", [True, False])
def test_a_hub_that_refuses_ends_in_a_sentence_at_once(hub, ask, streaming):
    page = f"https://huggingface.co/datasets/{REPO}"
    answers = {
        "none": ask("open", token=None, dataset_streaming=streaming),
        "wrong": ask("open", token="hf_wrongToken", dataset_streaming=streaming),
        "no such revision": ask("open", dataset_revision="v9", dataset_streaming=streaming),
        "no such data set": ask("open", dataset_name="org/nothing", dataset_streaming=streaming),
    }
    hub.has_access = False
    answers["no access"] = ask("open", dataset_streaming=streaming)
    for name in ("none", "no access"):
        assert "gated" in answers[name]["error"] and f"accept the terms on {page}" in answers[name]["error"]
    assert "a token is needed" in answers["none"]["error"] and "no access" in answers["no access"]["error"]
    assert "does not accept the token" in answers["wrong"]["error"]
    assert "--dataset_revision" in answers["no such revision"]["error"]
    assert "no such data set" in answers["no such data set"]["error"]
    for answer in answers.values():
        assert not answer["warnings"] and "\n" not in answer["error"] and "wrongToken" not in answer["error"]


def test_all_is_read_at_the_commit_that_main_was_at_when_it_was_opened(hub, ask, expected):
    first = ask("open")
    hub.main = SECOND
    hub.requests.clear()
    assert ask("read")["hashes"] == expected[FIRST]
    assert all(f"/resolve/{FIRST}/" in request.path for request in hub.requests)
    second = ask("open")
    assert second["revision"] == SECOND and second["fingerprint"] != first["fingerprint"]
    assert ask("read")["hashes"] == expected[SECOND]
    back = ask("open", dataset_revision=FIRST)
    assert (back["revision"], back["fingerprint"]) == (FIRST, first["fingerprint"])


def test_without_streaming_it_is_read_at_one_commit_too(hub, ask):
    opened = ask("open", dataset_streaming=False)
    assert (opened["revision"], opened["rows"]) == (FIRST, 60)
    hub.main = SECOND
    opened = ask("open", dataset_streaming=False, dataset_revision=FIRST, forget=False)
    assert (opened["revision"], opened["rows"]) == (FIRST, 60)
    assert ask("open", dataset_streaming=False, forget=False)["revision"] == SECOND
    # The Hub is gone: the newest copy in the cache, but not for another revision, and not for a stream.
    hub.faults = [Fault("reset", method=method) for method in ("HEAD", "GET")]
    opened = ask("open", dataset_streaming=False, forget=False)
    assert (opened["revision"], opened["rows"]) == (SECOND, 48)
    assert "cannot be had" in ask("open", dataset_streaming=False, forget=False, dataset_revision="v9")["error"]
    assert "failed for" in ask("open", forget=False, dataset_revision="v9")["error"]


def test_a_download_goes_on_after_a_reset(hub, ask):
    hub.faults = [Fault("reset", "/data/", times=2), Fault("truncated", "/data/", after=3, times=1)]
    assert ask("open", dataset_streaming=False, dataset_retry_seconds=PATIENT)["rows"] == 60


def test_other_columns_are_not_read(hub, ask, folders, expected):
    ask("open", dataset_revision=FAT)
    assert ask("read")["hashes"] == expected[FAT]
    size = (folders[FAT] / "data" / "train.parquet").stat().st_size
    sent = sum(request.sent for request in hub.requests if "parquet" in request.path)
    assert size > 2_400_000 and sent < size / 5


def test_a_file_cut_short_on_the_hub_is_named(hub, ask, folders, tmp_path):
    shutil.copytree(folders[FIRST], tmp_path / "cut")
    path = next((tmp_path / "cut" / "data").glob("train-00001*"))
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[5000:9000] = bytes(4000)
    for sha, new in (("4" * 40, content[:-100]), ("5" * 40, bytes(damaged))):
        path.write_bytes(new)
        hub.commits[sha] = tmp_path / "cut"
        opened = ask("open", dataset_revision=sha)
        error = opened.get("error") or ask("read")["error"]
        assert "train-00001" in error and "cannot be read as Parquet" in error and "\n" not in error
    assert "Row group " in error


def flags(output_dir, workers):
    return [
        "--dataset_name", REPO, "--dataset_streaming", "--token", TOKEN, "--config_overrides", TINY_OVERRIDES,
        "--output_dir", str(output_dir), "--per_device_train_batch_size", "4", "--max_steps", "2",
        "--logging_steps", "1", "--report_to", "none", "--crop_pct", "1.0", "--dataloader_num_workers", str(workers),
    ]  # fmt: skip


def run(parent, tmp_path, workers):
    shutil.rmtree(parent.environment["HF_HOME"], ignore_errors=True)
    return parent.run([ROOT / "run_pretrain.py", *flags(tmp_path / "out", workers)], tmp_path / "printed")


def check_trained(hub, output_dir):
    assert all(fault.hits > fault.times for fault in hub.faults)
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "loss" in entry]) == 2
    assert not [path for path in output_dir.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_command_line_trains_through_faults(hub, parent, tmp_path):
    hub.faults = [Fault("reset", "README.md", "HEAD", times=1), Fault("short", "/data/train", times=1, after=4)]
    result = run(parent, tmp_path, workers=2)
    assert result.codes == [0], result.stderr
    assert TOKEN not in result.output
    check_trained(hub, tmp_path / "out")


def test_training_without_workers(hub, ask, tmp_path):
    hub.faults = [Fault("reset", "README.md", "HEAD", times=1), Fault("short", "/data/train", times=1, after=4)]
    ask("train", words=flags(tmp_path / "out", workers=0))
    check_trained(hub, tmp_path / "out")


def test_a_resumed_run_stays_at_the_commit_it_began_with(hub, ask, tmp_path):
    words = [*flags(tmp_path / "out", workers=0), "--save_strategy", "steps", "--save_steps", "1"]
    ask("train", words=words)
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    hub.main = SECOND
    hub.requests.clear()
    ask("train", words=words)
    assert json.loads((tmp_path / "out" / "checkpoint-2" / "run.json").read_text())["dataset_revision"] == FIRST
    read = [request for request in map(str, hub.requests) if ".parquet" in request]
    assert read and not any(SECOND in request for request in read)


def test_a_run_resumes_with_and_without_files_that_are_kept(hub, ask, tmp_path):
    def train(name, *more):
        words = [*flags(tmp_path / name, workers=0), "--save_strategy", "steps", "--save_steps", "1", *more]
        hub.requests.clear()
        ask("train", words=words)
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        return losses, (tmp_path / name / "model.safetensors").read_bytes()

    cache = ["--stream_cache", str(tmp_path / "files"), "--stream_cache_size", "1GB"]
    whole = train("streamed")
    assert train("kept", *cache) == whole
    assert len(list((tmp_path / "files").rglob("blobs/*"))) >= 2
    for name, more in (("kept", []), ("streamed", cache)):
        shutil.rmtree(tmp_path / name / "checkpoint-2")
        assert train(name, *more) == whole
    assert not [request for request in hub.requests if ".parquet" in request.path]


def test_the_command_line_ends_in_a_sentence_where_access_ends(hub, parent, tmp_path):
    """In a worker process, while another one waits for work."""
    hub.faults = [Fault(403, "/data/train", after=4)]
    result = run(parent, tmp_path, workers=2)
    assert result.codes == [2] and "Traceback" not in result.stderr
    assert "error: Reading bytes" in result.stderr
    assert f"accept the terms on https://huggingface.co/datasets/{REPO}" in result.stderr
    assert TOKEN not in result.output
