"""Interrupted and resumed runs, in processes of their own, against the uninterrupted one: equal bit by bit.

Dropout, augmentation, mid-level tokens, statistics and masked patches that are left out are on. A streamed run is cut
three times, in the first epoch, between two epochs and in a later one, and resumes with another number of worker
processes each time.
"""

import signal

import pytest
import webdataset

from hf_mae_robust.errors import EXIT_STOPPED
from tests.faults import send
from tests.helpers import image_table, write_parquet_set
from tests.runs import Run, run, tiny_run

INGREDIENTS = ["--target_normalization", "global_patch", "--target_statistics", "auto", "--mid_mask_ratio", "0.25"]
INGREDIENTS += ["--decoder_keep_ratio", "0.5"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 101}, files=3, row_group=7)


@pytest.fixture(scope="module")
def words_of(dataset):
    """Flags of a run of 8 images a micro-step over all processes."""

    def build(processes, accumulation, streaming):
        words = tiny_run(dataset, *INGREDIENTS, "--dataset_streaming", streaming)
        words += ["--per_device_train_batch_size", str(8 // processes)]
        return [*words, "--gradient_accumulation_steps", str(accumulation)]

    return build


@pytest.fixture(scope="module")
def whole_run(words_of, tmp_path_factory):
    """The uninterrupted run, without worker processes; each kind is run once."""
    runs = {}

    def get(processes, accumulation, streaming):
        kind = (processes, accumulation, streaming)
        if kind not in runs:
            runs[kind] = run(words_of(*kind), tmp_path_factory.mktemp("whole"), processes)
            assert runs[kind].codes == [0] * processes, runs[kind].output
        return runs[kind]

    return get


def assert_equal_runs(resumed: Run, whole: Run):
    assert resumed.codes == [0] * len(resumed.codes), resumed.output
    assert resumed.losses() == whole.losses()
    assert resumed.weights() == whole.weights()
    assert resumed.state()["epoch"] == whole.state()["epoch"] == 3


@pytest.mark.slow  # the kill below is quick
@pytest.mark.parametrize(("processes", "accumulation", "streaming"), [(1, 2, "true"), (2, 2, "true"), (2, 1, "false")])
def test_a_stopped_run_equals_the_uninterrupted_one(words_of, whole_run, tmp_path, processes, accumulation, streaming):
    words = words_of(processes, accumulation, streaming)
    whole = whole_run(processes, accumulation, streaming)
    steps_an_epoch = -(-12 // accumulation)
    assert len(whole.losses()) == 3 * steps_an_epoch
    assert "50% of the masked patches reconstructed in a step" in whole.output
    cuts = [(steps_an_epoch - 3, 0), (steps_an_epoch - 1, 2), (2 * steps_an_epoch + 1, 4)]
    if streaming == "false":
        cuts = cuts[1:2]
    for step, workers in cuts:
        stopped = run(
            [*words, "--dataloader_num_workers", str(workers)],
            tmp_path / "cut",
            processes,
            send(signal.SIGTERM, step, rank=processes - 1),
        )
        assert stopped.codes == [EXIT_STOPPED] * processes, stopped.output
        assert f"Stopped by SIGTERM after step {step + 1};" in stopped.output
        assert (tmp_path / "cut" / f"checkpoint-{step + 1}").is_dir()
    resumed = run([*words, "--dataloader_num_workers", "2"], tmp_path / "cut", processes)
    assert f"Resuming from {tmp_path / 'cut' / f'checkpoint-{step + 1}'}" in resumed.output
    assert_equal_runs(resumed, whole)
    assert not (tmp_path / "cut" / "stopped.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_stopped_run_on_tars_equals_the_uninterrupted_one(tmp_path, streaming):
    """tests/data/test_tars.py has the order of their images in an epoch that begins in its middle."""
    table = image_table(101)
    (tmp_path / "set").mkdir()
    with webdataset.ShardWriter(f"file:{tmp_path}/set/train-%03d.tar", maxcount=34, verbose=0) as writer:
        for i, image in enumerate(table["image"]):
            writer.write({"__key__": f"{i:04d}", "png": image})
    words = tiny_run(tmp_path / "set", *INGREDIENTS, "--dataset_streaming", streaming)
    whole = run(words, tmp_path / "whole", 2)
    assert whole.codes == [0, 0] and len(whole.losses()) == 3 * 6, whole.output
    for step, workers in ((3, 0), (8, 2)):
        fault = send(signal.SIGTERM, step, rank=1)
        stopped = run([*words, "--dataloader_num_workers", str(workers)], tmp_path / "cut", 2, fault)
        assert stopped.codes == [EXIT_STOPPED] * 2, stopped.output
    assert_equal_runs(run(words, tmp_path / "cut", 2), whole)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_killed_between_checkpoints_equals_the_uninterrupted_one(words_of, whole_run, tmp_path, processes):
    words = words_of(processes, 2, "true")
    words += ["--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "1"]
    killed = run(words, tmp_path / "cut", processes, send(signal.SIGKILL, 12))
    assert killed.codes[0] == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-10"]
    assert_equal_runs(run(words, tmp_path / "cut", processes), whole_run(processes, 2, "true"))


@pytest.mark.slow  # tests/pretraining/test_resolution.py has a process without workers
def test_a_stopped_run_whose_images_grow_equals_the_uninterrupted_one(words_of, tmp_path):
    """Cut within the first stage and at its end, with workers that have fetched larger images already."""
    words = [*words_of(2, 2, "true"), "--resolution_schedule", "8:0.3,12:0.7,16:1.0"]  # 18 steps: 5, 8, 5
    whole = run(words, tmp_path / "whole", 2)
    for step, workers in ((2, 1), (4, 2)):
        more = ["--dataloader_num_workers", str(workers)]
        stopped = run([*words, *more], tmp_path / "cut", 2, send(signal.SIGTERM, step, rank=1))
        assert stopped.codes == [EXIT_STOPPED] * 2, stopped.output
    resumed = run([*words, "--dataloader_num_workers", "2"], tmp_path / "cut", 2)
    assert_equal_runs(resumed, whole)
    sizes = [entry["image_size"] for entry in whole.state()["log_history"] if "loss" in entry]
    assert sizes == [8] * 5 + [12] * 8 + [16] * 5
