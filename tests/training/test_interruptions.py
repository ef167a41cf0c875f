"""Signals, full disks and other ends of a run; two processes where that matters."""

import errno
import json
import logging
import os
import re
import resource
import shutil
import signal
from contextlib import suppress

import pytest
from PIL import Image

from hf_mae_robust.data import dataset as data
from hf_mae_robust.errors import EXIT_STOPPED, SavingError, StopRequested
from hf_mae_robust.pretrain import main, make_parser, prepare
from hf_mae_robust.training.checkpoints import fault_of, newest_checkpoint
from tests.faults import send
from tests.helpers import photos, write_parquet_set
from tests.processes import ROOT, offline
from tests.runs import run, tiny_run


@pytest.fixture(scope="module")
def photos_dir(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 48, "validation": 24}, row_group=7)


@pytest.fixture(scope="module")
def two_steps(photos_dir, tmp_path_factory):
    """A run of two steps, with a checkpoint."""
    folder = tmp_path_factory.mktemp("two steps") / "out"
    words = tiny_run(photos_dir, "--output_dir", str(folder), "--max_steps", "2")
    main([*words, "--save_strategy", "steps", "--save_steps", "2"])
    return folder


@pytest.fixture
def words(photos_dir, tmp_path):
    return tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"))


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


# ---- one process, in this one ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_own_code(words, tmp_path, capsys, monkeypatch, number):
    from hf_mae_robust.pretraining.trainer import MAETrainer

    step = MAETrainer.training_step

    def with_signal(trainer, *args, **kwargs):
        if trainer.state.global_step == 3:
            os.kill(os.getpid(), number)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(MAETrainer, "training_step", with_signal)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == EXIT_STOPPED
    assert f"Stopped by {number.name} after step 4" in capsys.readouterr().out
    stopped = json.loads((tmp_path / "out" / "stopped.json").read_text())
    assert stopped == {
        "signal": number.name, "step": 4, "checkpoint": str(tmp_path / "out" / "checkpoint-4")
    }  # fmt: skip
    assert fault_of(tmp_path / "out" / "checkpoint-4") is None
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_signal_during_evaluation_does_not_wait_for_its_end(words, tmp_path, monkeypatch):
    words += ["--eval_strategy", "steps", "--eval_steps", "3", "--per_device_eval_batch_size", "1"]
    trainer, _ = prepare(make_parser().parse(words))
    seen = []

    def on_prediction_step(args, state, control):
        seen.append(state.global_step)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return control

    trainer.callback_handler.on_prediction_step = on_prediction_step
    with pytest.raises(StopRequested, match="after step 3"):
        trainer.train()
    assert len(seen) == 5
    monkeypatch.undo()
    main(words)
    assert sorted(losses(tmp_path / "out")) == list(range(1, 19))


def evaluations(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def stop_in_step(trainer, number, monkeypatch):
    """Let SIGTERM come in this step (from 1)."""
    step = trainer.training_step

    def with_signal(*args, **kwargs):
        if trainer.state.global_step == number - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", with_signal)


@pytest.mark.parametrize("where", ["in the step", "in the evaluation"])
def test_an_evaluation_that_a_signal_has_cut_is_made_up_for(words, tmp_path, monkeypatch, where):
    """The learning rate follows the evaluations here, and with it every later step."""
    words += ["--eval_steps", "2", "--max_steps", "8", "--base_learning_rate", "30"]
    words += ["--per_device_eval_batch_size", "1"]
    words += ["--save_steps", "2", "--save_strategy", "steps"]
    words += ["--lr_scheduler_type", "reduce_lr_on_plateau", "--lr_scheduler_kwargs", '{"patience": 0, "factor": 0.1}']
    main([*words, "--output_dir", str(tmp_path / "undisturbed")])

    trainer, _ = prepare(make_parser().parse(words))
    if where == "in the step":
        stop_in_step(trainer, 4, monkeypatch)
    else:

        def on_prediction_step(args, state, control):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return control

        trainer.callback_handler.on_prediction_step = on_prediction_step
    with pytest.raises(StopRequested, match="after step 4"):
        trainer.train()
    main(words)
    assert sorted(evaluations(tmp_path / "out")) == [2, 4, 6, 8]
    assert evaluations(tmp_path / "out") == evaluations(tmp_path / "undisturbed")
    assert losses(tmp_path / "out") == losses(tmp_path / "undisturbed")


def test_a_signal_writes_a_checkpoint_to_resume_from_also_where_others_are_models_alone(words, tmp_path, monkeypatch):
    words += ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--save_only_model"]
    trainer, _ = prepare(make_parser().parse(words))
    stop_in_step(trainer, 3, monkeypatch)
    with pytest.raises(StopRequested, match="after step 3"):
        trainer.train()
    main(words)
    assert sorted(losses(tmp_path / "out")) == [1, 2, 3, 4, 5, 6]


def test_results_that_were_cut_do_not_end_the_next_run(words, tmp_path):
    words += ["--max_steps", "1"]
    main(words)
    results = tmp_path / "out" / "all_results.json"
    results.write_text(results.read_text()[:10])
    main([*words, "--overwrite_output_dir"])
    assert {"train_loss", "eval_loss"} <= json.loads(results.read_text()).keys()


def test_the_checkpoint_that_a_run_starts_from_is_not_deleted(two_steps, words, tmp_path, capsys):
    shutil.copytree(two_steps, tmp_path / "out")
    start = str(tmp_path / "out" / "checkpoint-2")
    words = [word for word in words if not word.startswith("image_size") and word != "--config_overrides"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--model_name_or_path", start, "--overwrite_output_dir", "--max_steps", "1"])
    said = f"--overwrite_output_dir would delete {start}, which --model_name_or_path names"
    assert end.value.code == 2 and said in capsys.readouterr().err
    assert fault_of(tmp_path / "out" / "checkpoint-2") is None


def test_a_full_disk_leaves_the_last_good_checkpoint(words, tmp_path, capsys):
    """A limit on the size of files stands for the full disk: the write fails in the middle of the weights."""
    words += ["--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1"]
    trainer, _ = prepare(make_parser().parse(words))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = trainer._save_checkpoint

    def save_on_full_disk(*args, **kwargs):
        if trainer.state.global_step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))
        save(*args, **kwargs)

    trainer._save_checkpoint = save_on_full_disk
    try:
        with pytest.raises(SavingError, match=r"Step 6: .*could not be written.*newest complete one is .*checkpoint-4"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} <= {"checkpoint-4", "runs"}
    assert newest_checkpoint(tmp_path / "out").name == "checkpoint-4"
    main(words)
    assert f"Resuming from {tmp_path / 'out' / 'checkpoint-4'}" in capsys.readouterr().out


def test_old_checkpoints_that_are_being_read_on_nfs_do_not_end_the_run(words, tmp_path, hold_open, capsys):
    hold_open("optimizer.pt")
    words += ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1"]
    half = tmp_path / "out" / "_staging" / "checkpoint-4"
    half.mkdir(parents=True)
    (half / "optimizer.pt").write_text("of a run that was killed while it wrote this")
    main(words)
    newest = tmp_path / "out" / "checkpoint-6"
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-6"]
    assert fault_of(newest) is None and not list(newest.rglob(".nfs*"))
    assert len(list((tmp_path / "out" / "_staging").rglob(".nfs*"))) == 3
    main([*words, "--max_steps", "7", "--allow_elastic_resume"])
    assert f"Resuming from {newest}" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_nothing_of_an_abandoned_checkpoint_gets_into_the_next_one(words, tmp_path, hold_open):
    """Of the same step, and not deleted because a reader holds a file of it open."""
    hold_open("optimizer.pt")
    trainer, _ = prepare(make_parser().parse(words))
    for _ in range(2):
        with suppress(SavingError), trainer.staged() as staging:
            (staging / "checkpoint-4").mkdir()
            (staging / "checkpoint-4" / "optimizer.pt").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with trainer.staged() as staging:
        assert not (staging / "checkpoint-4").exists()


def test_a_checkpoint_at_the_last_step_does_not_train_on(words, tmp_path):
    words += ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "4"]
    main(words)
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    main(words)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first
    assert sorted(losses(tmp_path / "out")) == [1, 2, 3, 4]


def test_the_best_checkpoint_is_kept_under_its_final_name(words, tmp_path, caplog):
    words += ["--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3"]
    words += ["--save_total_limit", "1", "--load_best_model_at_end", "--base_learning_rate", "3"]
    main(words)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    best = min((entry["eval_loss"], entry["step"]) for entry in state["log_history"][:-1] if "eval_loss" in entry)
    assert state["best_model_checkpoint"] == f"checkpoint-{best[1]}"
    assert fault_of(tmp_path / "out" / f"checkpoint-{best[1]}") is None

    # A resume finds it, though the folder has another place by then.
    (tmp_path / "out").rename(tmp_path / "moved")
    weights = (tmp_path / "moved" / "model.safetensors").read_bytes()
    trainer, checkpoint = prepare(make_parser().parse([*words, "--output_dir", str(tmp_path / "moved")]))
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "moved" / f"checkpoint-{best[1]}")
    assert "best checkpoint" not in caplog.text
    trainer.save_model()
    assert (tmp_path / "moved" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--seed", "7", "seed: 42 there, 7 here"),
        ("--per_device_train_batch_size", "4", "train_batch_size: 8 there, 4 here"),
        ("--max_train_samples", "40", "num_images: 48 there, 40 here"),
        ("--crop_scale", "0.5 1.0", r"crop_scale: \[0.2, 1.0\] there, \[0.5, 1.0\] here"),
        ("--dataset_streaming", "true", "dataset_streaming: False there, True here"),
    ],
)
def test_another_run_is_refused_with_what_differs(two_steps, words, tmp_path, capsys, flag, value, said):
    words += ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
    shutil.copytree(two_steps, tmp_path / "out")
    with pytest.raises(SystemExit) as end:
        main([*words, flag, *value.split()])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and "--allow_elastic_resume" in error


def test_a_stream_that_cannot_seek_says_so_and_goes_on_without_a_replay(tmp_path, capsys, monkeypatch):
    for i, pixels in enumerate(photos(24)):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    words = tiny_run(tmp_path / "images", "--dataset_streaming", "--output_dir", str(tmp_path / "out"))
    words += ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "4", "--eval_split_name", "none"]
    main(words)
    assert "can only be read from its beginning" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out" / "checkpoint-6", ignore_errors=True)
    decoded = []
    decode = data.decode_regions
    monkeypatch.setattr(data, "decode_regions", lambda *args: decoded.append(1) or decode(*args))
    main(words)
    assert f"Resuming from {tmp_path / 'out' / 'checkpoint-4'}" in capsys.readouterr().out
    assert sorted(losses(tmp_path / "out")) == [1, 2, 3, 4, 5, 6]
    assert len(decoded) <= 4 * 8  # two steps, what is read ahead, and the pictures at the end


@pytest.mark.parametrize("flag", ["--enable_jit_checkpoint", "--ignore_data_skip"])
def test_flags_that_would_break_resuming_are_refused(words, capsys, flag):
    with pytest.raises(SystemExit) as end:
        make_parser().parse([*words, flag])
    assert end.value.code == 2 and flag in capsys.readouterr().err


# ---- two processes ----


def test_two_processes_with_half_the_batch_train_as_one(words, photos_dir, tmp_path):
    """The same losses to rounding, map-style: the images of a step do not depend on the number of processes. Dropout
    does, so it is off."""
    base = tiny_run(photos_dir, "--decoder_attention_probs_dropout_prob", "0", "--gradient_accumulation_steps", "2")
    alone = run([*base, "--per_device_train_batch_size", "8"], tmp_path / "one")
    both = run([*base, "--per_device_train_batch_size", "4"], tmp_path / "two", processes=2)
    assert [loss for _, loss in both.losses()] == pytest.approx([loss for _, loss in alone.losses()], rel=1e-4)
    assert len(alone.losses()) == 9


def test_all_processes_load_the_best_model_at_the_end(photos_dir, tmp_path):
    """With so high a learning rate the first evaluation is the best."""
    words = tiny_run(
        photos_dir, "--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1", "--eval_steps", "1"
    )
    words += ["--load_best_model_at_end", "--base_learning_rate", "30", "--per_device_train_batch_size", "4"]
    both = run(words, tmp_path / "out", processes=2)
    assert both.codes == [0, 0], both.output
    evaluated = evaluations(tmp_path / "out")
    assert sorted(evaluated) == [1, 2, 3] and evaluated[1] < evaluated[3]
    final = json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_loss"]
    assert final == pytest.approx(min(evaluated.values()), rel=1e-6)


def test_another_number_of_processes_is_refused_or_said(photos_dir, tmp_path):
    base = tiny_run(photos_dir, "--per_device_train_batch_size", "4")
    stopped = run(base, tmp_path, 2, send(signal.SIGINT, 8, rank=0))
    assert stopped.codes == [EXIT_STOPPED] * 2, stopped.output
    refused = run(base, tmp_path)
    assert refused.codes == [2] and "world_size: 2 there, 1 here" in refused.output
    elastic = run([*base, "--allow_elastic_resume"], tmp_path)
    assert elastic.codes == [0] and "world_size: 2 there, 1 here" in elastic.output
    # 9 of 18 steps of two processes are 18 of 36 of one; the learning rate follows the smaller batch from there.
    steps = [step for step, _ in elastic.losses()]
    assert steps == [*range(1, 10), *range(19, 37)]
    rates = {e["step"]: e["learning_rate"] for e in elastic.state()["log_history"] if "learning_rate" in e}
    assert rates[19] == pytest.approx(rates[9] / 2, rel=0.15)


def test_a_second_signal_ends_a_run_at_once(photos_dir, tmp_path):
    signals = f"os.kill(os.getpid(), {int(signal.SIGTERM)}), print('REACHED', flush=True), time.sleep(600)"
    fault = f"trainer.state.global_step == 3 and ({signals})"
    words = [ROOT / "run_pretrain.py", *tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"))]
    started = offline().start(words, tmp_path / "printed", FAULT=fault)
    started.read_until("REACHED")
    os.kill(started.ids[0], signal.SIGTERM)
    assert started.wait().codes == [-signal.SIGTERM]  # not by the end of 600 seconds
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_on_one_of_two_processes_ends_both(photos_dir, tmp_path):
    fault = (
        "rank == 1 and trainer.state.global_step == 3 and "
        "trainer.model.register_forward_hook(lambda m, a, o: o.__setitem__('loss', o.loss * float('nan')) or o)"
    )
    ended = run(tiny_run(photos_dir, "--per_device_train_batch_size", "4"), tmp_path, 2, fault)
    assert ended.codes == [3, 3], ended.output
    report = json.loads((tmp_path / "nonfinite-step-4-rank-1.json").read_text())
    assert report["losses"] == ["nan"] and len(report["rows"][0]) == 4


def test_pictures_of_a_run_killed_before_its_first_checkpoint_are_not_read_by_the_next(tmp_path, capsys):
    for i, pixels in enumerate(photos(16)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    words = [*tiny_run(tmp_path), "--max_steps", "4"]
    killed = run(words, tmp_path / "out", fault=send(signal.SIGKILL, 0))
    assert killed.codes == [-signal.SIGKILL] and not (tmp_path / "out" / "model.safetensors").exists()
    (tmp_path / "out" / "diagnostics" / "step-0").mkdir(parents=True)
    Image.fromarray(photos(1)[0]).save(tmp_path / "out" / "diagnostics" / "step-0" / "reconstructions.png")
    trainer, _ = prepare(make_parser().parse([*words, "--output_dir", str(tmp_path / "second")]))
    assert trainer.train_source.num_rows == 16
    assert "left out: 1 (out): folders that a training run wrote" in capsys.readouterr().out
