"""Resuming with other settings: what was left of the epoch, at the learning rate of the new settings."""

import shutil

import pytest

from hf_mae_robust.pretrain import main, make_parser, prepare
from tests.helpers import write_parquet_set
from tests.runs import tiny_run


def rates(trainer):
    return {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}


def test_an_elastic_resume_takes_the_schedule_of_the_new_settings(tmp_path):
    dataset = write_parquet_set(tmp_path / "set", {"train": 48}, row_group=7)

    def words(folder, batch_size):
        flags = ["--output_dir", folder, "--per_device_train_batch_size", batch_size, "--num_train_epochs", 2]
        return tiny_run(dataset, *map(str, flags), "--allow_elastic_resume")

    # 3 of 12 steps of 8 images, then half the batch: 6 of 24 steps are done.
    main([*words(tmp_path / "cut", 8), "--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "9"])
    for step in (6, 9, 12):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}")
    resumed, checkpoint = prepare(make_parser().parse(words(tmp_path / "cut", 4)))
    assert checkpoint == str(tmp_path / "cut" / "checkpoint-3")
    resumed.train(checkpoint)
    whole, _ = prepare(make_parser().parse(words(tmp_path / "whole", 4)))
    whole.train()
    assert sorted(rates(resumed)) == [1, 2, 3, *range(7, 25)]
    assert {step: rates(resumed)[step] for step in range(7, 25)} == pytest.approx(
        {step: rates(whole)[step] for step in range(7, 25)}, rel=1e-12
    )
