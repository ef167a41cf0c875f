"""Does FSDP2 on one GPU train as DDP does? 20 steps of run_pretrain.py on photos with each, ViT-B/16, bf16, batch 64.

FSDP2 as in hf_mae_robust/launch_configs/fsdp2_8gpu.yaml, but for one process; DDP under torchrun with one process. The
mean of the last five losses must differ by less than 1%: the rounding of bf16 comes at other places, as FSDP's
parameters are cast and DDP runs under autocast.
"""

from part import ROOT, TINY, Part, finish, losses_of, overrides, start_pretraining
from photos import encoded_photos, write_photo_set

TABLE = "FSDP2 against DDP, one GPU"


def main() -> None:
    part = Part(__doc__)
    device = part.device
    import yaml

    config = yaml.safe_load((ROOT / "hf_mae_robust" / "launch_configs" / "fsdp2_8gpu.yaml").read_text())
    config |= {"num_processes": 1, "mixed_precision": "no" if part.rehearse else config["mixed_precision"]}
    path = part.work / "fsdp2.yaml"
    path.write_text(yaml.safe_dump(config))
    batch_size = 4 if part.rehearse else 64
    photos = encoded_photos(part.photos, 2 * batch_size)
    folder = write_photo_set(photos, part.work / "fsdp_photos", 4 * batch_size, num_files=1)
    settings = {"dataset_name": folder, "dataset_streaming": True, "eval_split_name": "none"}
    settings |= {"per_device_train_batch_size": batch_size, "max_steps": 3 if part.rehearse else 20, "logging_steps": 1}
    settings |= {"save_strategy": "no", "dataloader_num_workers": 0 if part.rehearse else 4, "bf16": not part.rehearse}
    settings |= {"base_learning_rate": 1e-3, "decoder_attention_probs_dropout_prob": 0.0, "warmup_epochs": 0}
    if part.rehearse:
        settings["config_overrides"] = overrides(TINY)
    launchers = {
        "DDP": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"),
        "FSDP2": ("-m", "accelerate.commands.launch", "--config_file", str(path)),
    }
    folders = {name: part.work / f"one_gpu-{name}" for name in launchers}
    # Side by side, as no speed is measured; in a rehearsal one after another, to spare the cores.
    running = {}
    for name, launcher in launchers.items():
        running[name] = start_pretraining({**settings, "output_dir": folders[name]}, launcher)
        if part.rehearse:
            finish(running[name], part.left())
    losses = {}
    for name, process in running.items():
        finish(process, part.left())
        losses[name] = list(losses_of(folders[name]).values())
        tail = losses[name][-5:]
        part.record(TABLE, way=name, first_loss=losses[name][0], last_5=sum(tail) / len(tail), losses=losses[name])
    if device.type != "cuda":
        part.leave_out("launched; whether FSDP2 equals DDP needs a GPU (accelerate turns it off on the CPU)")
    ddp, fsdp = (sum(losses[name][-5:]) / 5 for name in launchers)
    difference = abs(ddp - fsdp) / ddp
    part.check(TABLE, "the last five losses, relative difference", difference < 0.01, difference, "below 0.01")
    part.end()


if __name__ == "__main__":
    main()
