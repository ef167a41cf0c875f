"""Stages of a training: which batch belongs to which, and that workers hand over what its stage asks for."""

import pytest
import torch

from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.data.stages import Stage, StagePlan
from tests.helpers import write_parquet_set


@pytest.mark.parametrize(("batches", "accumulation"), [(7, 1), (7, 3), (2, 4)])
def test_batches_belong_to_the_stage_of_their_step(batches, accumulation):
    """Against steps that are counted as the Trainer counts them: the last one of an epoch may have fewer batches."""
    steps_an_epoch = -(-batches // accumulation)
    total = 5 * steps_an_epoch
    plan = StagePlan.of([0.5, 0.8, 1.0], total, batches, accumulation)
    step = 0
    for epoch in range(5):
        for number in range(batches):
            share_done = step / total
            # A boundary between two steps is rounded to the nearest one.
            ends = [(share_done - share) * total for share in (0.5, 0.8)]
            lowest, highest = sum(end >= 0.5 for end in ends), sum(end >= -0.5 for end in ends)
            assert lowest <= plan.stage_of_batch(epoch, number) <= highest
            assert plan.stage_of_batch(epoch, number) == plan.stage_of_step(step)
            if (number + 1) % accumulation == 0 or number == batches - 1:
                step += 1
    assert step == total
    assert plan.stage_of_batch(9, 0) == 2, "what is fetched ahead behind the end"


@pytest.mark.parametrize("streaming", [False, True])
def test_workers_that_fetch_ahead_hand_over_the_size_of_each_step_in_all_processes(tmp_path, streaming):
    folder = write_parquet_set(tmp_path / "set", {"train": 60}, size=40)
    source, _ = open_splits(DataLocation(str(folder), dataset_streaming=streaming), eval_split=None)
    sizes, patches = (8, 12, 16), (4, 9, 16)
    stages = [
        Stage(until, training_transform(size), number)
        for until, size, number in zip((0.4, 0.7, 1.0), sizes, patches, strict=True)
    ]
    alone = [ImageDataset(source, stage.transform, 3, 1, stage.noise_length) for stage in stages]
    seen = []
    for rank, workers in ((0, 2), (1, 0)):
        loader = training_loader(
            source, training_transform(16), 3, batch_size=5, seed=1, rank=rank, world_size=2, buffer_size=16,
            noise_length=16, stages=stages, num_workers=workers, prefetch_factor=4 if workers else None,
            persistent_workers=bool(workers),
        )  # fmt: skip
        loader.batch_sampler.stages = StagePlan.of([0.4, 0.7, 1.0], 12, len(loader), 1)
        found = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            for batch in loader:
                found.append(batch["pixel_values"].shape[-1])
                stage = sizes.index(found[-1])
                assert batch["noise"].shape == (5, patches[stage])
                row = batch["row"][0].item()
                assert torch.equal(batch["pixel_values"][0], alone[stage][epoch, row]["pixel_values"])
        seen.append(found)
    assert seen[0] == seen[1] == [8] * 5 + [12] * 3 + [16] * 4
