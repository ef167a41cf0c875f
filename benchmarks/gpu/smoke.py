"""Is the package right on this card?

- The loss of ViT-B/16 in fp32 is the CPU's (relative difference at most 1e-4), its gradient too (1e-3); for MAE, and
  with all three ingredients but random dropout.
- Drop edge: the share of edges that each fused attention kernel drops, their scale, and that heads differ; none in
  evaluation.
- Population statistics stay float32 in a bf16 model and under autocast.
- run_pretrain.py --bf16, 20 steps: killed after checkpoint 10 and resumed, it logs the losses of an undisturbed run.
"""

import copy
import signal
import time
from pathlib import Path

import torch
from part import TINY, Part, finish, losses_of, start_pretraining
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining

TABLE = "Smoke"
ALL_BUT_RANDOM = {"target_normalization": "global_patch", "mid_mask_ratio": 0.25}


def build(part: Part, **settings) -> ViTMAERobustForPreTraining:
    torch.manual_seed(0)
    config = ViTMAERobustConfig(**(TINY if part.rehearse else {}), **settings)
    model = ViTMAERobustForPreTraining(config)
    if config.target_normalization == "global_patch":
        model.set_target_statistics(torch.full((config.patch_dim,), 0.45), torch.full((config.patch_dim,), 0.25))
    return model


def loss_equals_cpu(part: Part, device: torch.device) -> None:
    for name, settings in (("MAE", {}), ("statistics and mid-level tokens", ALL_BUT_RANDOM)):
        model = build(part, decoder_attention_probs_dropout_prob=0.0, **settings).train()
        size = model.config.image_size
        images, noise = torch.randn(4, 3, size, size), torch.rand(4, model.config.num_patches)
        found = {}
        for place in (torch.device("cpu"), device):
            here = copy.deepcopy(model).to(place)
            loss = here(images.to(place), noise=noise.to(place), return_logits=False).loss
            loss.backward()
            gradient = torch.cat([p.grad.flatten().double().cpu() for p in here.parameters() if p.grad is not None])
            found[place.type] = loss.item(), gradient
        (cpu, cpu_gradient), (gpu, gradient) = found["cpu"], found[device.type]
        difference = abs(cpu - gpu) / cpu
        part.check(TABLE, f"fp32 loss equals the CPU's, {name}", difference <= 1e-4, difference, "at most 1e-4")
        difference = ((gradient - cpu_gradient).norm() / cpu_gradient.norm()).item()
        part.check(TABLE, f"fp32 gradient equals the CPU's, {name}", difference <= 1e-3, difference, "at most 1e-3")


def drop_edge(part: Part, device: torch.device) -> None:
    """With the identity as values, the output of attention is the matrix of probabilities, dropped edges zeroed."""
    model, dropout, tokens = build(part).to(device).train(), 0.3, 64
    attention = model.decoder.decoder_layers[0].attention
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    shape = (32, 8, tokens, tokens)
    query, key = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    value = torch.eye(tokens, device=device, dtype=torch.bfloat16).expand(shape).contiguous()
    ways = {"sdpa's choice": None}
    if device.type == "cuda":
        ways |= {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
        ways |= {"cuDNN": SDPBackend.CUDNN_ATTENTION}
    for name, backend in ways.items():

        def call(dropout: float, backend=backend) -> torch.Tensor:
            if backend is None:
                output, _ = attend(attention, query, key, value, None, dropout=dropout, scaling=0.125)
            else:
                with sdpa_kernel(backend):
                    output, _ = attend(attention, query, key, value, None, dropout=dropout, scaling=0.125)
            return output.transpose(1, 2).float()

        try:
            full, dropped = call(0.0), call(dropout)
        except RuntimeError as error:  # a kernel that is not there for this card or type
            part.record(TABLE, check=f"drop edge, {name}", found=f"not there: {str(error).splitlines()[0][:80]}")
            continue
        zeroed = dropped == 0
        share = zeroed.float().mean().item()
        scale = (dropped[~zeroed] / full[~zeroed]).median().item()
        # Two heads that drop independently agree in 0.3^2 + 0.7^2 of the edges.
        agree = (zeroed[:, 0] == zeroed[:, 1]).float().mean().item()
        again = (zeroed == (call(dropout) == 0)).float().mean().item()
        part.check(TABLE, f"drop edge, {name}: share of zeroed edges", abs(share - 0.3) < 0.003, share, "0.3 ± 0.003")
        part.check(TABLE, f"drop edge, {name}: scale of the others", abs(scale - 1 / 0.7) < 0.01, scale, "1 / 0.7")
        part.check(TABLE, f"drop edge, {name}: two heads agree", abs(agree - 0.58) < 0.01, agree, "0.58 ± 0.01")
        part.check(TABLE, f"drop edge, {name}: two calls agree", abs(again - 0.58) < 0.01, again, "0.58 ± 0.01")
        zeros = (full == 0).float().mean().item()
        part.check(TABLE, f"drop edge, {name}: zeroed in evaluation", zeros < 1e-3, zeros, "none")


def kernels(part: Part, device: torch.device) -> None:
    """Which kernels a step under autocast takes for attention."""
    model = build(part).to(device).train()
    size = model.config.image_size
    images = torch.randn(8, 3, size, size, device=device)
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if device.type == "cuda" else [])]) as seen:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(images, return_logits=False).loss
        loss.backward()
    names = {event.key for event in seen.key_averages()}
    found = sorted(name for name in names if any(word in name.lower() for word in ("flash", "fmha", "attention_")))
    part.record(TABLE, check="attention kernels of a bf16 step with drop edge", found=", ".join(found)[:600])


def statistics_stay_float32(part: Part, device: torch.device) -> None:
    model = build(part, **ALL_BUT_RANDOM)
    exact = model.target_normalizer.mean.clone()
    model.to(device)
    size = model.config.image_size
    images = torch.randn(2, 3, size, size, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        outputs, target = model(images), model.compute_target(images)
    types = {str(outputs.loss.dtype), str(target.dtype), str(model.target_normalizer.mean.dtype)}
    part.check(TABLE, "loss, target, statistics under autocast", types == {"torch.float32"}, str(types), "float32")
    model.to(torch.bfloat16)
    kept = model.target_normalizer.mean
    same = kept.dtype == torch.float32 and torch.equal(kept.cpu(), exact)
    part.check(TABLE, "statistics of a bf16 model", same, f"{kept.dtype}, equal: {same}", "float32, unchanged")


def killed_and_resumed(part: Part) -> None:
    from safetensors import safe_open

    common = {"config": "digits", "max_steps": 20, "save_strategy": "steps", "save_steps": 5, "logging_steps": 1}
    common |= {"eval_strategy": "no", "eval_split_name": "none", "bf16": True}
    if part.rehearse:
        common |= {"per_device_train_batch_size": 8, "max_train_samples": 160}
    folders = {name: part.work / name for name in ("undisturbed", "killed")}
    runs = {name: start_pretraining({**common, "output_dir": folder}) for name, folder in folders.items()}
    killed = runs["killed"]
    while killed.poll() is None and not (folders["killed"] / "checkpoint-10").exists():
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = max([_step_of(path) for path in folders["killed"].glob("checkpoint-*")], default=0)
    was_killed = killed.returncode == -signal.SIGKILL and not (folders["killed"] / "all_results.json").exists()
    part.check(TABLE, "a run of 20 steps with --bf16 is killed", was_killed, f"at checkpoint {done}", "10 or later")
    resumed = start_pretraining({**common, "output_dir": folders["killed"]})
    finish(resumed, part.left())
    finish(runs["undisturbed"], part.left())
    whole, parts = losses_of(folders["undisturbed"]), losses_of(folders["killed"])
    worst = max(abs(whole[step] - parts[step]) / whole[step] for step in whole)
    part.check(TABLE, "resumed, its 20 losses are the undisturbed run's", worst < 1e-3, worst, "below 1e-3")
    part.record(TABLE, check="the same bit by bit", found="yes" if whole == parts else "no", wanted="not on every card")
    with safe_open(folders["killed"] / "model.safetensors", framework="pt") as file:
        found = file.get_slice("target_normalizer.mean").get_dtype()
    part.check(TABLE, "statistics in the file that --bf16 wrote", found == "F32", found, "F32")


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def main() -> None:
    part = Part(__doc__)
    device = part.device
    for work in (loss_equals_cpu, drop_edge, kernels, statistics_stay_float32):
        try:
            work(part, device)
        except Exception as error:  # the other checks are worth their time all the same
            part.check(TABLE, work.__name__, False, f"{type(error).__name__}: {str(error)[:200]}", "no error")
    killed_and_resumed(part)
    part.end()


if __name__ == "__main__":
    main()
