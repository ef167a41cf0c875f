import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_mae_robust.data.order import epoch_batches
from hf_mae_robust.errors import NonFiniteError
from hf_mae_robust.pretrain import main, make_parser, prepare
from hf_mae_robust.training.checkpoints import newest_checkpoint
from tests.helpers import write_parquet_set
from tests.runs import tiny_run


@pytest.fixture(scope="module")
def photos_dir(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 40}, row_group=7)


@pytest.fixture
def trainer_of(photos_dir, tmp_path):
    def build(*words):
        words = tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"), "--base_learning_rate", "0.1", *words)
        return prepare(make_parser().parse(words))[0]

    return build


def spoil_losses(trainer, *steps, value=math.nan):
    """Make the model return `value` as its loss in these steps (from 1)."""

    def hook(module, args, output):
        if trainer.state.global_step + 1 in steps:
            output.loss = output.loss * value
        return output

    trainer.model.register_forward_hook(hook)


def spoil_gradients(trainer, step):
    """The loss stays finite; one gradient does not."""
    parameter = trainer.model.decoder.decoder_pred.bias
    parameter.register_hook(lambda gradient: gradient * (math.inf if trainer.state.global_step + 1 == step else 1))


@pytest.mark.parametrize("logging_steps", ["1", "100"])
@pytest.mark.parametrize("spoil", [spoil_losses, spoil_gradients])
def test_a_bad_step_stops_before_it_is_saved_and_names_its_images(trainer_of, tmp_path, spoil, logging_steps):
    trainer = trainer_of("--save_strategy", "steps", "--save_steps", "3", "--logging_steps", logging_steps)
    spoil(trainer, 5)
    with pytest.raises(NonFiniteError, match="Step 5: .*(nan|inf)"):
        trainer.train()
    assert trainer.state.global_step == (5 if logging_steps == "1" else 6)
    report = json.loads((tmp_path / "out" / "nonfinite-step-5-rank-0.json").read_text())
    plan = epoch_batches([40], epoch=0, rank=0, world_size=1, batch_size=8, seed=42)
    assert report["rows"] == [plan[4].tolist()] and report["step"] == 5
    checkpoint = newest_checkpoint(tmp_path / "out")
    assert checkpoint.name == "checkpoint-3"
    assert all(torch.isfinite(value).all() for value in load_file(checkpoint / "model.safetensors").values())


def test_a_bad_step_after_the_last_look_is_found_before_the_model_is_saved(trainer_of, tmp_path):
    trainer = trainer_of("--logging_steps", "100", "--max_steps", "6")
    spoil_losses(trainer, 5)
    with pytest.raises(NonFiniteError, match="Step 5"):
        trainer.train()
    assert not (tmp_path / "out" / "model.safetensors").exists()


class SaveAtStep(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == self.step


def test_a_callback_that_comes_after_the_guard_cannot_save_a_bad_step(trainer_of, tmp_path):
    trainer = trainer_of("--logging_steps", "100")
    trainer.add_callback(SaveAtStep(5))
    spoil_losses(trainer, 5)
    with pytest.raises(NonFiniteError, match="Step 5"):
        trainer.train()
    assert trainer.state.global_step == 5 and newest_checkpoint(tmp_path / "out") is None


def test_a_step_that_is_passed_over_changes_nothing(trainer_of):
    trainer = trainer_of("--skip_nonfinite_steps", "2", "--num_train_epochs", "1")
    spoil_losses(trainer, 3, 4)
    weights, moments = {}, {}
    step = trainer._maybe_log_save_evaluate

    def after_step(*args, **kwargs):
        number = trainer.state.global_step
        weights[number] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        moments[number] = [state["exp_avg"].clone() for state in trainer.optimizer.state.values()]
        step(*args, **kwargs)

    trainer._maybe_log_save_evaluate = after_step
    trainer.train()
    assert trainer.state.global_step == 5
    for number in (3, 4):
        assert all(torch.equal(value, weights[2][name]) for name, value in weights[number].items())
        assert all(torch.equal(a, b) for a, b in zip(moments[number], moments[2], strict=True))
    assert not torch.equal(weights[5]["vit.layernorm.weight"], weights[2]["vit.layernorm.weight"])


def test_one_more_than_allowed_stops(trainer_of):
    trainer = trainer_of("--skip_nonfinite_steps", "1")
    spoil_losses(trainer, 2, 4)
    with pytest.raises(NonFiniteError, match="Step 4.*--skip_nonfinite_steps 1"):
        trainer.train()


def test_the_gradient_norm_in_the_log_is_torchs(trainer_of):
    trainer = trainer_of("--max_steps", "1")
    norms = []
    step = trainer._get_grad_norm

    def compare(model, grad_norm=None):
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        return step(model, grad_norm)

    trainer._get_grad_norm = compare
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norms[0], rel=1e-5)


def test_the_command_line_ends_in_a_sentence_and_code_3(photos_dir, tmp_path, capsys):
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path), "--base_learning_rate", "1e30")
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 3
    error = capsys.readouterr().err
    assert "error: Step" in error and "--skip_nonfinite_steps" in error and "Traceback" not in error


def test_the_advice_does_not_delete_the_checkpoints(photos_dir, tmp_path, capsys):
    """--overwrite_output_dir in the same command would."""
    words = tiny_run(
        photos_dir, "--output_dir", str(tmp_path), "--base_learning_rate", "1e30", "--overwrite_output_dir"
    )
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr().err
    assert "The same command without --overwrite_output_dir resumes from the last checkpoint" in said
