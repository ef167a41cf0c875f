"""What a trainer leaves behind when it is done: nothing."""

import gc
import weakref

import pytest

from hf_mae_robust.pretrain import make_parser, prepare
from tests.helpers import write_parquet_set
from tests.runs import tiny_run


@pytest.mark.parametrize("trains", [False, True])
def test_a_trainer_is_gone_with_its_last_reference(tmp_path, trains):
    """Without the garbage collector: the workers of its loaders end with it, and exiting waits for them."""
    dataset = write_parquet_set(tmp_path / "set", {"train": 16})
    trainer, _ = prepare(
        make_parser().parse(tiny_run(dataset, "--output_dir", str(tmp_path / "out"), "--max_steps", "1"))
    )
    gc.collect()
    gc.disable()
    try:
        if trains:
            trainer.train()
        alive = weakref.ref(trainer)
        del trainer
        assert alive() is None
    finally:
        gc.enable()
