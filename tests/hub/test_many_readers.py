"""Many processes and many epochs, on a Hub on 127.0.0.1 that counts: what they ask for, and what stays on the disk."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import Dataset, Features, Image

from tests.helpers import image_table, photos, write_parquet_set
from tests.hub.test_streaming import FIRST, REPO, SECOND, client_environment
from tests.loopback_hub import TOKEN, Fault, LoopbackHub
from tests.processes import LIMIT_S, Parent

LARGE, SUMMED, STALE, PICTURES, TARS = "6" * 40, "7" * 40, "8" * 40, "9" * 40, "a" * 40
IMPORTED = ("hf_mae_robust.data.opening", "hf_mae_robust.training.processes", "hf_mae_robust.data.order")
# Of a large file, so that a footer, which is read with 64 kB before it, does not count for much.
ROWS, ROW_BYTES, ROW_GROUP = 40, 60_000, 5


def reader() -> None:
    """One of several processes: open, read some epochs, and print a line."""
    from accelerate import PartialState
    from huggingface_hub import constants

    from hf_mae_robust.data.decoding import decode_image
    from hf_mae_robust.data.opening import open_splits
    from hf_mae_robust.data.order import epoch_batches
    from hf_mae_robust.data.parquet import ParquetRows
    from hf_mae_robust.data.source import DataLocation
    from hf_mae_robust.errors import DataError
    from hf_mae_robust.training.processes import first_process

    constants.DOWNLOAD_CHUNK_SIZE = 2**16  # so that a part of a file is on the disk before the rest comes
    order = json.loads(os.environ["ORDER"])
    world = {"rank": PartialState(cpu=True).process_index, "world_size": PartialState().num_processes}
    answer = {"rank": world["rank"], "epochs": []}
    try:
        source, _ = open_splits(DataLocation(**order["location"]), eval_split=None, buffer_size=16, share=first_process)
        answer |= {"revision": source.revision, "fingerprint": source.fingerprint, "names": source.class_names}
        answer["groups"] = None if source.row_groups is None else list(source.row_groups)
        if source.row_groups is None and order["epochs"]:
            image = decode_image(next(iter(source.rows))["image"])
            answer["first"] = image.flatten().tolist()
        for epoch in range(order["epochs"] if source.row_groups is not None else 0):
            if isinstance(source.rows, ParquetRows):
                source.rows.rows.clear()
            batches = epoch_batches(source.row_groups, epoch=epoch, batch_size=2, seed=0, buffer_size=16, **world)
            read = [(row, source.rows[row]) for row in batches.ravel().tolist()]
            values = [(row, value["bytes"] if isinstance(value, dict) else value) for row, value in read]
            answer["epochs"].append([(row, hashlib.sha256(value).hexdigest()) for row, value in values])
    except DataError as error:
        answer["error"] = str(error)
    print(json.dumps(answer), flush=True)


def large_table(seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    images = [{"bytes": rng.bytes(ROW_BYTES), "path": None} for _ in range(ROWS)]
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("hub")
    folders = {
        FIRST: write_parquet_set(base / "first", {"train": 60, "validation": 12}),
        SECOND: write_parquet_set(base / "second", {"train": 48}),
    }
    (base / "large" / "data").mkdir(parents=True)
    for i in range(2):
        path = base / "large" / "data" / f"train-{i:05d}-of-00002.parquet"
        large_table(i).to_parquet(path, batch_size=ROW_GROUP)
    folders[LARGE] = base / "large"
    for sha, name in ((SUMMED, "summed"), (STALE, "stale")):
        folders[sha] = write_parquet_set(base / name, {"train": 60}, files=12, row_group=2)
        collected = []
        for path in sorted((folders[sha] / "data").iterdir()):
            footer = pq.read_metadata(path)
            footer.set_file_path(path.name)
            collected.append(footer)
        pq.write_metadata(footer.schema.to_arrow_schema(), folders[sha] / "data" / "_metadata", collected)
    # One file was written again since.
    image_table(7).to_parquet(folders[STALE] / "data" / "train-00005-of-00012.parquet", batch_size=3)
    folders[PICTURES] = base / "pictures"
    folders[PICTURES].mkdir()
    for i, pixels in enumerate(photos(4)):
        PIL.Image.fromarray(pixels).save(folders[PICTURES] / f"{i}.png")
    folders[TARS] = base / "tars"
    folders[TARS].mkdir()
    with webdataset.ShardWriter(f"file:{folders[TARS]}/train-%03d.tar", maxcount=4, verbose=0) as writer:
        for i, pixels in enumerate(photos(12)):
            writer.write({"__key__": f"{i:03d}", "png": PIL.Image.fromarray(pixels), "cls": i % 3})
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
    home = tmp_path_factory.mktemp("home") / "cache"
    with Parent(client_environment(server, home), IMPORTED) as parent:
        yield parent


@pytest.fixture
def start(parent, hub, tmp_path):
    """Some readers of the data set, which begin with an empty HF_HOME unless `forget` is False."""
    (tmp_path / "reader.py").write_text("from tests.hub.test_many_readers import reader\nreader()\n")

    def start(processes=1, epochs=0, forget=True, **location):
        if forget:
            shutil.rmtree(parent.environment["HF_HOME"], ignore_errors=True)
        location = {
            "dataset_name": REPO,
            "dataset_streaming": True,
            "token": TOKEN,
            "dataset_retry_seconds": 4,
            **location,
        }
        order = json.dumps({"location": location, "epochs": epochs})
        logs = tmp_path / f"printed-{time.monotonic_ns()}"
        return parent.start([tmp_path / "reader.py"], logs, processes, ORDER=order)

    return start


@pytest.fixture
def read(start, hub):
    def read(processes=1, epochs=0, **location):
        hub.requests.clear()
        ended = start(processes, epochs, **location).wait()
        assert ended.codes == [0] * processes, ended.output
        return sorted(map(json.loads, ended.stdout.splitlines()), key=lambda answer: answer["rank"])

    return read


def files_asked_for(hub):
    return [request.path.rsplit("/", 1)[-1] for request in hub.requests if ".parquet" in request.path]


def bytes_sent(hub):
    return sum(request.sent for request in hub.requests if ".parquet" in request.path)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def sizes_of(paths):
    """In bytes; 0 of a file that is gone."""
    return [path.stat().st_size if path.exists() else 0 for path in paths]


def kept_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("blobs/*"))


# ---- opening ----


def test_several_processes_ask_no_more_of_the_hub_than_one(hub, read):
    (alone,) = read(label_column_name="auto")
    requests = len(hub.requests)
    assert sorted(files_asked_for(hub)) == sorted(path.name for path in (hub.commits[FIRST] / "data").iterdir())
    together = read(processes=2, label_column_name="auto")
    assert len(hub.requests) == requests
    assert [{**answer, "rank": 0} for answer in together] == [alone, alone]
    assert alone["revision"] == FIRST and alone["names"] == ["a", "b"] and sum(alone["groups"]) == 60


def test_what_is_no_parquet_is_looked_up_by_one_process_too(hub, read, folders):
    read(dataset_revision=PICTURES)
    requests = len(hub.requests)
    read(processes=2, dataset_revision=PICTURES)
    assert len(hub.requests) == requests
    (alone,) = read(epochs=1, dataset_revision=PICTURES)
    together = read(processes=2, epochs=1, dataset_revision=PICTURES)
    first = np.asarray(PIL.Image.open(folders[PICTURES] / "0.png")).transpose(2, 0, 1).ravel().tolist()
    assert [answer["first"] for answer in (alone, *together)] == [first] * 3 and alone["groups"] is None


def test_footers_that_were_read_once_are_not_read_again(hub, read):
    (first,) = read(label_column_name="auto")
    (second,) = read(label_column_name="auto", forget=False)
    assert first == second and not files_asked_for(hub)
    hub.main = SECOND  # other files of the same names
    (moved,) = read(label_column_name="auto", forget=False)
    assert moved["revision"] == SECOND and sum(moved["groups"]) == 48 and len(files_asked_for(hub)) == 2


@pytest.mark.parametrize("fault", [Fault("reset", "README.md", "HEAD"), Fault(403, "/data/train-00001")], ids=str)
def test_what_goes_wrong_in_one_process_ends_all_with_one_sentence(hub, read, fault):
    hub.faults = [fault]
    answers = read(processes=2, dataset_retry_seconds=0.1)
    assert len({answer["error"] for answer in answers}) == 1 and "\n" not in answers[0]["error"]


def test_counts_that_a_data_set_ships_are_believed_after_a_look_at_a_few_files(hub, read, folders):
    (answer,) = read(dataset_revision=SUMMED, epochs=1)
    footers = [pq.read_metadata(path) for path in sorted((folders[SUMMED] / "data").glob("train*"))]
    assert answer["groups"] == [
        footer.row_group(i).num_rows for footer in footers for i in range(footer.num_row_groups)
    ]
    assert len(answer["epochs"][0]) == 60
    read(dataset_revision=SUMMED)
    assert len(set(files_asked_for(hub))) == 8  # of 12


def test_counts_that_are_older_than_a_file_are_found_out_when_it_is_read(hub, read):
    (answer,) = read(dataset_revision=STALE, epochs=1)
    assert "train-00005-of-00012.parquet has " in answer["error"] and "_metadata" in answer["error"]


# ---- --stream_cache ----


@pytest.fixture(scope="module")
def expected(folders):
    """Rows of the large set and their checksums."""
    tables = [pq.read_table(path) for path in sorted((folders[LARGE] / "data").iterdir())]
    images = [value["bytes"] for table in tables for value in table.column("image").to_pylist()]
    return {(row, hashlib.sha256(image).hexdigest()) for row, image in enumerate(images)}


def rows_of(answers, epoch=0):
    assert not [answer["error"] for answer in answers if "error" in answer]
    return {tuple(row) for answer in answers for row in answer["epochs"][epoch]}


def test_epochs_download_the_data_once(hub, read, folders, expected, tmp_path):
    size, cache = size_of(folders[LARGE]), {"stream_cache": str(tmp_path / "kept")}
    streamed = read(dataset_revision=LARGE, epochs=3)
    rows_of(streamed)
    assert bytes_sent(hub) > 2.5 * size
    kept = read(dataset_revision=LARGE, epochs=3, **cache)
    assert bytes_sent(hub) <= 1.05 * size
    assert kept == streamed and all(rows_of(kept, epoch) == expected for epoch in range(3))
    assert read(dataset_revision=LARGE, epochs=1, **cache)[0]["epochs"] == streamed[0]["epochs"][:1]
    assert not files_asked_for(hub)  # nor any footer, though HF_HOME is empty again


def test_processes_share_one_download(hub, read, folders, expected, tmp_path):
    answers = read(processes=2, dataset_revision=LARGE, epochs=1, stream_cache=str(tmp_path / "kept"))
    assert rows_of(answers) == expected and bytes_sent(hub) <= 1.05 * size_of(folders[LARGE])


def test_what_a_kill_leaves_of_a_file_is_never_read(hub, start, read, folders, expected, tmp_path):
    cache = {"dataset_revision": LARGE, "stream_cache": str(tmp_path / "kept")}
    hub.faults = [Fault("half", "/data/train-00001", after=1, seconds=600)]  # the first is for the footer
    started, deadline = start(epochs=1, **cache), time.monotonic() + LIMIT_S
    partial = []
    while hub.faults[0].hits < 2 or not partial or not sizes_of(partial)[0]:
        partial = list((tmp_path / "kept").rglob("*.incomplete"))
        assert time.monotonic() < deadline and not started.stdout.read_text()
        time.sleep(0.02)
    os.kill(started.ids[0], signal.SIGKILL)
    assert started.wait().codes == [-signal.SIGKILL]
    assert 0 < sizes_of(partial)[0] < size_of(folders[LARGE]) / 2
    hub.faults = []
    assert rows_of(read(epochs=1, **cache)) == expected
    assert kept_in(tmp_path / "kept") >= size_of(folders[LARGE])


def test_a_file_that_differs_from_its_checksum_is_fetched_again_and_then_refused(hub, read, expected, tmp_path):
    cache = {"dataset_revision": LARGE, "stream_cache": str(tmp_path / "kept"), "epochs": 1}
    hub.faults = [Fault("garbled", "/data/train-00001", times=1, after=1)]
    assert rows_of(read(**cache)) == expected and hub.faults[0].hits == 3
    shutil.rmtree(tmp_path / "kept")
    hub.faults = [Fault("garbled", "/data/train-00001", after=1)]
    (answer,) = read(**cache)
    assert "train-00001-of-00002.parquet differs from the checksum" in answer["error"]
    hub.faults = []
    assert rows_of(read(**cache)) == expected


def test_older_files_make_room_and_what_does_not_fit_is_streamed(hub, read, folders, expected, tmp_path):
    cache, size = tmp_path / "kept", size_of(folders[LARGE])
    read(dataset_revision=FIRST, epochs=1, stream_cache=str(cache))
    assert kept_in(cache) == sum(path.stat().st_size for path in (folders[FIRST] / "data").glob("train*"))
    # One of the two large files.
    limits = {"stream_cache": str(cache), "stream_cache_size": f"{size * 0.7 / 1e6:.3f}MB"}
    answers = read(processes=2, dataset_revision=LARGE, epochs=2, **limits)
    assert rows_of(answers) == rows_of(answers, 1) == expected
    assert size * 0.5 <= kept_in(cache) <= size * 0.7
    assert bytes_sent(hub) < 1.8 * size  # without: 2; one that takes turns: 2 a file for each process and epoch
    assert Path(cache).is_dir()


@pytest.mark.slow  # the faults of streaming without a cache are quick
def test_faults_while_fetching_that_pass_and_one_that_stays(hub, read, expected, tmp_path):
    cache = {"dataset_revision": LARGE, "stream_cache": str(tmp_path / "kept"), "epochs": 1}
    hub.faults = [
        Fault("reset", "/data/train-00000", "HEAD", times=2),
        Fault("truncated", "/data/train-00001", times=1, after=1),
        Fault(503, "/data/train-00000", times=2, after=1),
    ]
    assert rows_of(read(**cache)) == expected and all(fault.hits > fault.times for fault in hub.faults)
    shutil.rmtree(tmp_path / "kept")
    hub.faults = [
        Fault("reset", "/data/train-00001", method, after=2 * (method == "GET")) for method in ("HEAD", "GET")
    ]
    (answer,) = read(**{**cache, "dataset_retry_seconds": 0.2})
    assert "Fetching hf://datasets/org/photos" in answer["error"] and "\n" not in answer["error"]


def test_a_folder_that_cannot_be_made_is_named(hub, read, tmp_path):
    (tmp_path / "file").touch()
    (answer,) = read(dataset_revision=LARGE, stream_cache=str(tmp_path / "file" / "kept"))
    assert "--stream_cache" in answer["error"] and "cannot be written to" in answer["error"]


# ---- tars; tests/data/test_tars.py reads such without a server ----


@pytest.mark.slow
def test_tars_that_are_kept_on_the_disk_have_epochs_and_are_fetched_once(hub, read, folders, tmp_path):
    def sent():
        return sum(request.sent for request in hub.requests if ".tar" in request.path and request.method == "GET")

    hub.main = TARS
    options = {"label_column_name": "auto", "stream_cache": str(tmp_path / "kept")}
    answers = read(2, epochs=2, **options)
    size = sum(path.stat().st_size for path in folders[TARS].glob("*.tar"))
    assert size <= sent() < 1.2 * size
    assert answers[0]["fingerprint"] == answers[1]["fingerprint"] and answers[0]["groups"] == [4, 4, 4]
    assert answers[0]["names"] == ["0", "1", "2"] and answers[0]["revision"] == TARS
    for epoch in range(2):
        rows = [row for answer in answers for row, _ in answer["epochs"][epoch]]
        assert sorted(rows) == list(range(12))
    assert len({digest for answer in answers for _, digest in answer["epochs"][0]}) == 12
    assert read(1, epochs=1, forget=False, **options)[0]["fingerprint"] == answers[0]["fingerprint"]
    assert sent() == 0
    (stream,) = read(1, epochs=1)
    assert stream["groups"] is None and "first" in stream


@pytest.mark.slow
def test_tars_that_do_not_fit_are_refused(hub, read, tmp_path):
    hub.main = TARS
    (answer,) = read(stream_cache=str(tmp_path / "kept"), stream_cache_size="11KB")
    assert "does not fit into --stream_cache" in answer["error"] and "Raise --stream_cache_size" in answer["error"]
