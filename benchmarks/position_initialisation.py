r"""Why the package initialises models by itself: the loss from other initialisations against ours.

Trains the same model on the same images in the same order with the same masks, from

- ours: MAE's initialisation, with sine-cosine position tables;
- wide_attention: the same, with the weights of queries, keys and values larger by the square root of 2, as Xavier has
  them for three layers; the official code has one for all three;
- zero_positions: ours, with both position tables at zero, as stock's `ViTMAEForPreTraining(config)` has them;
- stock: every tensor as stock's `ViTMAEForPreTraining(config)` draws it.

Takes the flags of run_pretrain.py; writes results.json and a line a variant.

    python benchmarks/position_initialisation.py --config small_32px --dataset_name path/to/cifar10 \
        --dataset_streaming --num_train_epochs 1 --output_dir outputs/position_initialisation
"""

import json
import platform
from pathlib import Path

import torch
import transformers
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust.pretrain import make_parser, prepare
from hf_mae_robust.training.setup import say

VARIANTS = ("ours", "wide_attention", "zero_positions", "stock")


def initialise(model, variant: str) -> None:
    if variant == "wide_attention":
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                parameter.data.mul_(2**0.5)
    elif variant == "zero_positions":
        model.vit.embeddings.position_embeddings.data.zero_()
        model.decoder.decoder_pos_embed.data.zero_()
    elif variant == "stock":
        config = ViTMAEConfig(**{k: v for k, v in model.config.to_dict().items() if hasattr(ViTMAEConfig(), k)})
        fresh = ViTMAEForPreTraining(config).state_dict()
        model.load_state_dict(fresh, strict=False)  # our own tensors (mid-level token, statistics) stay


def main() -> None:
    arguments = make_parser(description=__doc__).parse()
    training = arguments.training
    folder = Path(training.output_dir)
    results = {}
    for variant in VARIANTS:
        training.output_dir = str(folder / variant)
        training.save_strategy = "no"
        trainer, _ = prepare(arguments)
        initialise(trainer.model, variant)
        trainer.train()
        metrics = trainer.evaluate()
        results[variant] = {key: metrics[key] for key in ("eval_loss", "eval_loss_of_mean")}
        results[variant]["log"] = [entry for entry in trainer.state.log_history if "loss" in entry]
        say(f"{variant}: evaluation loss {metrics['eval_loss']:.4f}")
    results["versions"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
