"""Resuming with other settings: what was left of the epoch, at the learning rate of the new settings."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
import transformers

from hf_mae_robust.data.former_order import former_batches
from hf_mae_robust.data.order import EpochBatchSampler, epoch_batches
from hf_mae_robust.data.source import ImageSource
from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.files import seal
from hf_mae_robust.pretrain import main, make_parser, prepare
from hf_mae_robust.training.data_feeding import DataFeeding
from hf_mae_robust.training.setup import record_of
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


def test_an_elastic_resume_takes_the_options_of_the_new_optimizer(tmp_path):
    """A checkpoint's groups of parameters bring its own along."""
    dataset = write_parquet_set(tmp_path / "set", {"train": 16})
    words = tiny_run(dataset, "--output_dir", str(tmp_path / "run"), "--per_device_train_batch_size", "4")
    words += ["--save_strategy", "steps", "--save_steps", "2"]
    main([*words, "--max_steps", "2"])
    new = ["--weight_decay", "0.5", "--adam_beta1", "0.5", "--adam_epsilon", "1e-3", "--allow_elastic_resume"]
    trainer, checkpoint = prepare(make_parser().parse([*words, "--max_steps", "3", *new]))
    trainer.train(checkpoint)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert all(group["betas"] == (0.5, 0.95) and group["eps"] == 1e-3 for group in groups)
    assert trainer.state.global_step == 3


def test_an_elastic_resume_of_a_schedule_that_follows_the_evaluations(tmp_path):
    dataset = write_parquet_set(tmp_path / "set", {"train": 16, "validation": 4})
    words = tiny_run(dataset, "--output_dir", str(tmp_path / "run"), "--lr_scheduler_type", "reduce_lr_on_plateau")
    words += [
        "--per_device_train_batch_size",
        "4",
        "--eval_steps",
        "1",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    ]
    main([*words, "--max_steps", "2"])
    trainer, checkpoint = prepare(make_parser().parse([*words, "--max_steps", "3", "--allow_elastic_resume"]))
    trainer.train(checkpoint)
    assert checkpoint is not None and trainer.state.global_step == 3
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(trainer.args.learning_rate)


def test_intervals_that_are_shares_of_the_run_raise_no_false_alarm(tmp_path):
    """A checkpoint has them in steps; the Trainer compares that with the share."""
    dataset, said = write_parquet_set(tmp_path / "set", {"train": 16}), []
    words = tiny_run(dataset, "--output_dir", str(tmp_path / "run"), "--max_steps", "4", "--save_strategy", "steps")
    words += ["--save_steps", "0.5", "--per_device_train_batch_size", "4"]
    main(words)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    trainer, checkpoint = prepare(make_parser().parse(words))
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    transformers.utils.logging.warning_once.cache_clear()
    logger = logging.getLogger("transformers.trainer_utils")
    logger.addHandler(handler)
    trainer.train(checkpoint)
    logger.removeHandler(handler)
    assert checkpoint == str(tmp_path / "run" / "checkpoint-2") and trainer.state.global_step == 4
    assert said == []


@pytest.mark.parametrize("elastic", [(), ("--allow_elastic_resume",)])
def test_an_optimizer_of_other_parameters_is_refused_in_a_sentence(elastic, tmp_path):
    """An earlier version trained a token that nothing uses; PyTorch's error would look like a bug of this package."""
    dataset, run = write_parquet_set(tmp_path / "set", {"train": 16}), tmp_path / "run"
    words = tiny_run(dataset, "--output_dir", str(run), "--max_steps", "2", "--save_strategy", "steps")
    words += ["--save_steps", "1", "--per_device_train_batch_size", "4", *elastic]
    main(words)
    shutil.rmtree(run / "checkpoint-2")
    state = torch.load(run / "checkpoint-1" / "optimizer.pt")
    state["param_groups"][0]["params"].append(999)
    torch.save(state, run / "checkpoint-1" / "optimizer.pt")
    seal(run / "checkpoint-1")
    trainer, checkpoint = prepare(make_parser().parse(words))
    with pytest.raises(CheckpointError, match="optimizer of .*checkpoint-1 does not fit .* group .*Start again"):
        trainer.train(checkpoint)


@pytest.mark.slow  # test_order.py has the order by itself
def test_a_streamed_epoch_that_version_0_1_0_began_ends_in_its_order(tmp_path, monkeypatch):
    dataset, folder, trained_on = write_parquet_set(tmp_path / "set", {"train": 48}, row_group=7), tmp_path / "run", []
    prepare_inputs, words = DataFeeding._prepare_inputs, ["--output_dir", str(folder), "--dataset_streaming"]
    words = tiny_run(dataset, *words, "--num_train_epochs", "3", "--save_strategy", "steps", "--save_steps", "1")

    def spy(trainer, inputs):
        if trainer.model.training:
            trained_on.append(inputs["row"].tolist())
        return prepare_inputs(trainer, inputs)

    def run_from(step):
        """Of 6 steps an epoch."""
        trained_on.clear()
        for checkpoint in folder.glob("checkpoint-*"):
            if checkpoint.name != f"checkpoint-{step}":
                shutil.rmtree(checkpoint)
        trainer, _ = prepare(make_parser().parse(words))
        trainer.train(str(folder / f"checkpoint-{step}") if step else None)
        return trainer

    monkeypatch.setattr(DataFeeding, "_prepare_inputs", spy)
    with monkeypatch.context() as patch:
        patch.setattr(EpochBatchSampler, "__init__", former_sampler)
        words += ["--save_total_limit", "99"]
        run_from(None)
    checkpoint = folder / "checkpoint-8"
    record = json.loads((checkpoint / "run.json").read_text())
    assert record.pop("new_order_from_epoch") == 0  # which version 0.1.0 did not write
    (checkpoint / "run.json").write_text(json.dumps(record))
    seal(checkpoint)

    trainer = run_from(8)
    plan = {"rank": 0, "world_size": 1, "batch_size": 8, "seed": 42, "buffer_size": 8192}
    former = former_batches(trainer.train_source.row_groups, epoch=1, **plan)
    new = epoch_batches(trainer.train_source.row_groups, epoch=2, **plan)
    assert trained_on == np.concatenate([former[2:], new]).tolist()
    run_from(10)  # a checkpoint of that run, still within the epoch
    assert trained_on == np.concatenate([former[4:], new]).tolist()
    run_from(12)  # and one at its end
    assert trained_on == new.tolist()
    assert json.loads((folder / "checkpoint-14" / "run.json").read_text())["new_order_from_epoch"] == 2


def former_sampler(self, row_groups, **plan):
    """As version 0.1.0 made them."""
    self.row_groups, self.plan, self.epoch, self._num_skipped = row_groups, plan, 0, 0
    self.new_order_from, self.stages = 99, None


def test_flips_of_images_from_above_are_part_of_the_record_where_they_are_on(tmp_path):
    """Checkpoints from before there were these flags can be resumed from."""
    source = ImageSource([], None, False, "", "f")

    def record(*flags):
        arguments = make_parser().parse(tiny_run(tmp_path, "--output_dir", str(tmp_path / "out"), *flags))
        return record_of(arguments.training, arguments.data, source)

    plain = record()
    assert plain["horizontal_flip"] is True and not {"vertical_flip", "rot90"} & set(plain)
    assert record("--vertical_flip") == {**plain, "vertical_flip": True}
    assert record("--vertical_flip", "false", "--rot90") == {**plain, "rot90": True}


def test_a_run_from_before_scaled_decoding_resumes_at_full_size(tmp_path):
    dataset, folder = write_parquet_set(tmp_path / "set", {"train": 8, "test": 4}), tmp_path / "run"
    words = tiny_run(dataset, "--output_dir", str(folder), "--max_steps", "1", "--save_strategy", "steps")
    main([*words, "--save_steps", "1"])
    checkpoint = folder / "checkpoint-1"
    record = json.loads((checkpoint / "run.json").read_text())
    trainer, _ = prepare(make_parser().parse(words))
    assert trainer.train_source.decodes_scaled and trainer.eval_source.decodes_scaled
    with pytest.raises(CheckpointError, match="scaled_decoding: True there, None here"):
        prepare(make_parser().parse([*words, "--full_size_decoding"]))

    assert record.pop("scaled_decoding") is True  # which older versions did not write
    (checkpoint / "run.json").write_text(json.dumps(record))
    seal(checkpoint)
    trainer, resumed = prepare(make_parser().parse(words))
    assert resumed == str(checkpoint)
    assert not trainer.train_source.decodes_scaled and not trainer.eval_source.decodes_scaled
    assert "scaled_decoding" not in trainer.record
