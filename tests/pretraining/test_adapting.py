"""Pre-training that starts from an encoder: what is frozen stays, blocks have their rates, and resumes are exact."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import BeitForImageClassification, ViTConfig, ViTModel

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.conversion.original import to_original
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.conversion.stock import read_stock
from hf_mae_robust.pretrain import make_parser, plan, prepare, pretrain
from tests.conversion.test_any_encoder import BEIT, SOURCES, last_tokens, learned
from tests.conversion.test_convert import PIXELS, VIT, randomised, timm_folder
from tests.helpers import TINY, as_flags, losses, write_parquet_set
from tests.model_helpers import build

DECODER = ",".join(f"{name}={value}" for name, value in TINY.items() if name.startswith("decoder_"))


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory):
    """A stock ViT with learned positions."""
    folder = tmp_path_factory.mktemp("vit")
    randomised(ViTModel(ViTConfig(**VIT), add_pooling_layer=False)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images_dir(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 24})


@pytest.fixture
def arguments_of(vit_dir, images_dir, tmp_path):
    """Of a run of 6 steps that writes a checkpoint after each second one."""

    def build(*words, output="out", start=("--encoder_from", "{vit}")):
        settings = {
            "dataset_name": images_dir,
            "config_overrides": DECODER,
            "output_dir": tmp_path / output,
            "per_device_train_batch_size": 8,
            "max_steps": 6,
            "warmup_steps": 1,
            "learning_rate": 1e-3,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "report_to": "none",
            "crop_pct": 1.0,
            "save_strategy": "no",
            "save_total_limit": 5,
        }
        return make_parser().parse(as_flags(settings, *(word.format(vit=vit_dir) for word in start), *words))

    return build


def encoder_of(vit_dir) -> dict[str, torch.Tensor]:
    config = ViTConfig.from_pretrained(vit_dir)
    return read_stock(ModelSource(str(vit_dir)), config)[0].state_dict()


def moved(model, vit_dir) -> set[str]:
    """Names of the encoder's tensors that training has changed."""
    now = model.vit.state_dict()
    return {name for name, tensor in encoder_of(vit_dir).items() if not torch.equal(tensor, now[name])}


def test_features_stay_at_a_rate_of_nothing(arguments_of, vit_dir):
    """1e-38 times a step is below the last bit of every weight."""
    trainer = pretrain(*arguments_of("--learning_rate", "1e-38", "--max_steps", "2", "--weight_decay", "0.3"))
    stock = ViTModel.from_pretrained(vit_dir, add_pooling_layer=False).eval()
    loaded = ViTMAERobustForPreTraining.from_pretrained(trainer.args.output_dir).eval()
    with torch.no_grad():
        expected = stock(PIXELS).last_hidden_state
        torch.testing.assert_close(loaded.vit(PIXELS).last_hidden_state, expected, rtol=0, atol=1e-5)


def saved(form: str, folder: Path) -> tuple[list[object], torch.Tensor]:
    """A source of an encoder in `folder`: its flags, and the tokens that it gives for PIXELS."""
    heads = "num_attention_heads=4,decoder_num_attention_heads=4"
    if form in SOURCES:
        there = SOURCES[form]().eval()
        there.save_pretrained(folder)
        encoder = there.vit if (is_pretraining := hasattr(there, "decoder")) else there.base_model
        return ["--encoder_from", folder, *(["--config_overrides", ""] * is_pretraining)], last_tokens(encoder)
    if form == "timm":
        with torch.no_grad():
            tokens = timm_folder(folder / "there", num_classes=3).forward_features(PIXELS)
        return ["--encoder_from", folder / "there"], tokens
    if form == "a classifier of the mean":
        there = learned(BeitForImageClassification(mae_beit_config(**BEIT, use_mean_pooling=True)))
        there.save_pretrained(folder)
        norm = there.beit.pooler.layernorm  # stands before the mean in the new model
        with torch.no_grad():
            return ["--encoder_from", folder], norm(last_tokens(there.beit))
    there = build(image_size=16, patch_size=4, num_hidden_layers=2)
    tensors = to_original(there)
    if form == "an official file":
        torch.save({"model": tensors}, folder / "file.pth")
        return ["--encoder_from", folder / "file.pth", "--config_overrides", heads], last_tokens(there.vit)
    encoder = {name: tensor for name, tensor in tensors.items() if "decoder" not in name and name != "mask_token"}
    torch.save({"teacher": {"backbone": encoder}}, folder / "file.pth")
    words = ["--encoder_from", folder / "file.pth", "--checkpoint_key", "teacher.backbone"]
    return [*words, "--config_overrides", f"{DECODER},num_attention_heads=4"], last_tokens(there.vit)


# A quick one of each way of reading them.
QUICK_FORMS = ("BEiT's layout, a classifier without its head", "an official file", "timm")
FORMS = (*SOURCES, *QUICK_FORMS[1:], "one model of a file", "a classifier of the mean")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[] if form in QUICK_FORMS else pytest.mark.slow) for form in FORMS]
)
def test_features_of_every_source_before_the_first_step_and_after_steps_at_a_rate_of_nothing(
    form, arguments_of, tmp_path
):
    """0 is not a learning rate. 1e-38 times a step is below the last bit of every weight."""
    words, expected = saved(form, tmp_path)
    words += ["--learning_rate", "1e-38", "--max_steps", "2", "--weight_decay", "0.3"]
    trainer, _ = prepare(arguments_of(*map(str, words), start=()))
    assert_close(last_tokens(trainer.model.vit), expected, rtol=0, atol=1e-5)
    trainer.train()
    assert trainer.state.global_step == 2
    assert_close(last_tokens(trainer.model.vit), expected, rtol=0, atol=1e-5)


def test_learned_positions_train_and_are_not_decayed(arguments_of, vit_dir):
    trainer = pretrain(*arguments_of("--max_steps", "2"))
    assert moved(trainer.model, vit_dir) == encoder_of(vit_dir).keys()
    undecayed = trainer.optimizer.param_groups[1]
    assert undecayed["weight_decay"] == 0
    positions = trainer.model.vit.embeddings.position_embeddings
    assert any(parameter is positions for parameter in undecayed["params"])
    assert trainer.record["positions_train"] is True


def test_learned_positions_train_in_a_second_stage_too(arguments_of, tmp_path, capsys):
    first = pretrain(*arguments_of("--max_steps", "1")).args.output_dir
    assert "positions learned" in capsys.readouterr().out
    second = pretrain(*arguments_of("--max_steps", "2", start=("--model_name_or_path", first), output="second"))
    said = f"Note: {first}: its positions are not sine-cosine, and pre-training trains them"
    assert said in capsys.readouterr().out
    before, after = (load_file(Path(run) / "model.safetensors") for run in (first, second.args.output_dir))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"decoder.decoder_pos_embed"}
    positions = second.model.vit.embeddings.position_embeddings
    assert any(parameter is positions for parameter in second.optimizer.param_groups[1]["params"])


@pytest.mark.parametrize(("warmup", "of_ten"), [("3", 3), ("0.7", 7)])
def test_the_decoder_alone_learns_at_first(warmup, of_ten, arguments_of, vit_dir, capsys):
    words = ("--decoder_warmup_steps", warmup, "--gradient_accumulation_steps", "2")
    words += ("--per_device_train_batch_size", "4")
    trainer = pretrain(*arguments_of(*words, "--max_steps", "3"))
    said = f"all 3 steps (--decoder_warmup_steps {warmup}), and the encoder in none"
    assert f"the decoder alone learns in {said}" in capsys.readouterr().out
    assert f"learns alone in {said}" in plan(arguments_of(*words, "--max_steps", "3", output="planned"))
    assert f"in the first {of_ten} steps" in plan(arguments_of(*words, "--max_steps", "10"))
    fresh, _ = prepare(arguments_of(*words, "--max_steps", "3", output="fresh"))
    assert moved(trainer.model, vit_dir) == set()
    before = fresh.model.decoder.state_dict()
    changed = {name for name, tensor in trainer.model.decoder.state_dict().items() if (tensor != before[name]).any()}
    assert changed == before.keys() - {"decoder_pos_embed"}


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_is_exact_in_the_warm_up_and_after_it(step, arguments_of, tmp_path, vit_dir):
    words = ("--decoder_warmup_steps", "3", "--layer_decay", "0.7", "--save_strategy", "steps", "--save_steps", "2")
    whole = pretrain(*arguments_of(*words))
    assert moved(whole.model, vit_dir) == encoder_of(vit_dir).keys()
    shutil.copytree(tmp_path / "out" / f"checkpoint-{step}", tmp_path / "cut" / f"checkpoint-{step}")
    resumed = pretrain(*arguments_of(*words, output="cut"))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 6
    there, here = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "cut"))
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    with pytest.raises(ValueError, match=r"decoder_warmup_steps: 3.0 there, None here"):
        prepare(arguments_of(*words[2:], output="cut"))


@pytest.mark.parametrize("count", [0, 1])
def test_frozen_blocks_stay(count, arguments_of, vit_dir, capsys):
    trainer = pretrain(*arguments_of("--freeze_blocks", str(count), "--max_steps", "2"))
    frozen = {name for name in encoder_of(vit_dir) if name.startswith(("embeddings.", "layers.0.")[: count + 1])}
    assert encoder_of(vit_dir).keys() - moved(trainer.model, vit_dir) == frozen
    assert ("embeddings and the first block frozen" if count else "embeddings frozen") in capsys.readouterr().out
    assert trainer.record["freeze_blocks"] == count and "positions_train" not in trainer.record


def test_rates_by_layer(arguments_of):
    trainer, _ = prepare(arguments_of("--layer_decay", "0.5"))
    trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    model = trainer.model
    found = SimpleNamespace(
        patches=model.vit.embeddings.patch_embeddings.projection.weight,
        first=model.vit.layers[0].mlp.fc1.weight,
        second=model.vit.layers[1].mlp.fc1.bias,
        norm=model.vit.layernorm.weight,
        decoder=model.decoder.decoder_layers[0].mlp.fc1.weight,
    )
    scales = {name: rates[id(parameter)] / 1e-3 for name, parameter in vars(found).items()}
    assert scales == pytest.approx({"patches": 0.125, "first": 0.25, "second": 0.5, "norm": 1, "decoder": 1})
    assert trainer._get_learning_rate() == pytest.approx(1e-3) and trainer.record["layer_decay"] == 0.5


def test_with_layer_decay_no_position_and_no_token_is_decayed(arguments_of):
    """As docs/adapt.md says; all of them have three dimensions, as no weight has."""
    trainer, _ = prepare(arguments_of("--layer_decay", "0.5", "--mid_mask_ratio", "0.25", "--mid_mask_layer_idx", "1"))
    trainer.create_optimizer()
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in trainer.model.named_parameters() if p.requires_grad and p.ndim == 3}
    tokens = ("vit.embeddings.cls_token", "vit.mid_mask_token", "decoder.mask_token")
    assert found == dict.fromkeys((*tokens, "vit.embeddings.position_embeddings"), 0)


def test_a_run_without_these_flags_has_the_record_that_it_had(arguments_of, encoder_dir):
    trainer, _ = prepare(arguments_of(start=("--model_name_or_path", str(encoder_dir))))
    new = {"decoder_warmup_steps", "layer_decay", "freeze_blocks", "positions_train", "encoder_from"}
    assert not new & trainer.record.keys()


def test_before_and_after_stand_in_terminal_and_card(arguments_of, capsys, tmp_path):
    words = ["--diagnostics_steps", "2", "--diagnostics_samples", "6", "--max_steps", "2", "--diagnostics", "features"]
    words += ["--label_column_name", "label", "--train_val_split", "0.4", "--probe_samples", "8"]
    trainer = pretrain(*arguments_of(*words))
    values = [e["diagnostics/knn_accuracy"] for e in trainer.state.log_history if "diagnostics/knn_accuracy" in e]
    card, printed = (tmp_path / "out" / "README.md").read_text(), capsys.readouterr().out
    assert f"| Nearest neighbours, accuracy | {values[0]:.4g} | {values[1]:.4g} |" in card
    assert "| The encoder | before the first step | after 2 steps |" in card
    line = next(line for line in printed.splitlines() if line.startswith("Nearest neighbours"))
    assert line.split()[-2:] == [f"{value:.4g}" for value in values]


@pytest.mark.parametrize("recipe", ["adapt_vit_base", "adapt_small_64px"])
def test_recipes_need_an_encoder(recipe, vit_dir):
    words = ["--config", recipe, "--dataset_name", "images", "--report_to", "none"]
    training = make_parser().parse([*words, "--encoder_from", str(vit_dir)]).training
    assert (training.decoder_warmup_steps, training.layer_decay, training.diagnostics_steps) == (0.1, 0.8, 0.1)
    with pytest.raises(ValueError, match="this run starts from scratch. Give --encoder_from"):
        prepare(make_parser().parse(words))


def test_refused_settings(arguments_of, vit_dir):
    with pytest.raises(ValueError, match="--freeze_blocks 3: the encoder has 2 blocks"):
        prepare(arguments_of("--freeze_blocks", "3"))
    with pytest.raises(ValueError, match="both name a checkpoint to start from"):
        prepare(arguments_of("--model_name_or_path", "elsewhere"))
    with pytest.raises(ValueError, match="--checkpoint_key is for --encoder_from"):
        prepare(arguments_of("--checkpoint_key", "teacher", start=()))
    with pytest.raises(ValueError, match="--decoder_warmup_steps guards what an encoder has learnt"):
        prepare(arguments_of("--decoder_warmup_steps", "3", start=()))


def test_images_of_bands(arguments_of, bands_dir, band_encoder_dir, capsys):
    """From a model of 8-bit images, whose patch projection is inflated, and from one of bands, which says how it wants
    them."""
    words = ("--dataset_name", bands_dir, "--max_steps", "2")
    inflated, _ = prepare(arguments_of(*words, "--inflate_channels", "mean"))
    said = capsys.readouterr().out
    assert inflated.model.config.num_channels == 5 and inflated.model.config.is_band_model
    assert "(not the source's); patch projection: inflated from 3 to 5 channels (mean)" in said
    same, _ = prepare(arguments_of(*words, "--config_overrides", "", start=("--encoder_from", str(band_encoder_dir))))
    there = ViTMAERobustForPreTraining.from_pretrained(band_encoder_dir)
    tensors = same.model.state_dict()
    assert same.model.config.band_settings() == there.config.band_settings() and "kept" in capsys.readouterr().out
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in there.state_dict().items())
