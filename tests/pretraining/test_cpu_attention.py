"""Dropped edges, and training in bf16, on a CPU: "drop_edge_cpu" among transformers' attention functions."""

import pytest
import torch
from torch.testing import assert_close
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.pretrain import make_parser, prepare
from hf_mae_robust.pretraining import cpu_attention
from hf_mae_robust.pretraining.cpu_attention import NAME, default_attention, drop_edge_attention
from tests.fresh import run_without_the_package
from tests.helpers import TINY_OVERRIDES, as_flags
from tests.model_helpers import build, gradients, images


def arrays(*lengths, **options):
    return [torch.randn(3, 4, n, 8, **options) for n in lengths]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_attention_done_step_by_step(dtype):
    """Against the same done step by step, with the edges that were dropped read off the output for one-hot values."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 4, n, 8, dtype=dtype, requires_grad=True) for n in (11, 17, 17))

    def ours(value):
        torch.manual_seed(1)
        return drop_edge_attention(None, query, key, value, None, dropout=0.3, scaling=0.5)[0].transpose(1, 2)

    kept = ours(torch.eye(17, dtype=dtype).expand(3, 4, 17, 17)) > 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.03)  # of 2,244 edges: 3 standard deviations
    probabilities = torch.softmax(query @ key.transpose(2, 3) * 0.5, dim=-1)
    expected = (probabilities * kept / 0.7) @ value
    output = ours(value)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert_close(output, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(output)
    inputs = (query, key, value)
    for got, wanted in zip(*(torch.autograd.grad((result * weights).sum(), inputs) for result in (output, expected))):
        assert_close(got, wanted, rtol=tolerance, atol=5 * tolerance)


@pytest.fixture
def has_bf16(monkeypatch):
    """As on a processor that multiplies bf16 matrices."""
    monkeypatch.setattr(cpu_attention, "_multiplies_bf16", lambda: True)


def test_bfloat16_equals_pytorchs_attention_and_draws_nothing(has_bf16):
    torch.manual_seed(0)
    inputs = [tensor.requires_grad_() for tensor in arrays(11, 17, 17, dtype=torch.bfloat16)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact).transpose(1, 2)
    weights, state = torch.randn_like(expected), torch.get_rng_state()
    output, _ = drop_edge_attention(torch.nn.Module(), *inputs, None)
    assert output.dtype == torch.bfloat16 and torch.equal(torch.get_rng_state(), state)
    assert_close(output.double(), expected, rtol=0.02, atol=0.02)
    for got, wanted in zip(
        torch.autograd.grad((output * weights).sum(), inputs), torch.autograd.grad((expected * weights).sum(), exact)
    ):
        assert_close(got.double(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("capable", [True, False])
def test_training_in_bfloat16_avoids_the_slow_backward_pass_where_plain_products_are_fast(monkeypatch, capable):
    """Of PyTorch, which takes longer than that of float32 (benchmarks/cpu_bf16.py)."""
    monkeypatch.setattr(cpu_attention, "_multiplies_bf16", lambda: capable)
    model = build().train()
    model.set_attn_implementation(NAME)

    def kernels(bf16):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(images()).loss
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            loss.backward()
        return {event.key for event in profile.key_averages()}

    slow = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    assert slow in kernels(bf16=False)
    assert (slow in kernels(bf16=True)) is not capable


def test_edges_are_dropped_independently_with_the_probability_asked_for():
    query = torch.zeros(64, 4, 50, 8)
    value = torch.eye(50).expand(64, 4, 50, 50)
    kept = drop_edge_attention(None, query, query, value, None, dropout=0.05, scaling=1.0)[0] > 0
    # 640,000 edges: a standard deviation of 0.0003.
    assert kept.float().mean().item() == pytest.approx(0.95, abs=0.0012)
    neighbours = (~kept[..., 1:] & ~kept[..., :-1]).float().mean().item()
    assert neighbours == pytest.approx(0.05**2, abs=0.0005)


def test_second_derivatives_raise_instead_of_being_wrong():
    query, key, value = arrays(5, 5, 5, requires_grad=True)
    output, _ = drop_edge_attention(torch.nn.Module(), query, key, value, None, dropout=0.3, scaling=1.0)
    (first,) = torch.autograd.grad((output**2).sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("nothing is dropped", torch.float32),
        ("a mask is given", torch.float32),
        ("a mask is given", torch.bfloat16),
        ("evaluation", torch.bfloat16),
    ],
)
def test_is_sdpa_where_it_has_nothing_to_offer(has_bf16, case, dtype):
    query, key, value = arrays(5, 7, 7, dtype=dtype)
    module = torch.nn.Module().train(case != "evaluation")
    mask = torch.zeros(3, 1, 5, 7).index_fill_(-1, torch.tensor([2]), -torch.inf) if case == "a mask is given" else None
    mask = mask if mask is None else mask.to(dtype)
    dropout = 0.3 if case == "a mask is given" else 0.0
    results = []
    for attend in (drop_edge_attention, sdpa_attention_forward):
        torch.manual_seed(3)
        results.append(attend(module, query, key, value, mask, dropout=dropout)[0])
        results.append(torch.get_rng_state())
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_scores_are_scaled_by_default():
    query, key, value = arrays(5, 5, 5)
    results = []
    for scaling in ({}, {"scaling": 8**-0.5}):
        torch.manual_seed(3)
        results.append(drop_edge_attention(torch.nn.Module(), query, key, value, None, dropout=0.3, **scaling)[0])
    assert torch.equal(*results)


def test_a_model_with_it_evaluates_as_with_sdpa():
    model, inputs = build().eval(), {"pixel_values": images(), "noise": torch.rand(2, 16)}
    expected = model(**inputs)
    model.set_attn_implementation(NAME)
    state = torch.get_rng_state()
    outputs = model(**inputs)
    assert torch.equal(outputs.loss, expected.loss) and torch.equal(outputs.logits, expected.logits)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow  # dropped edges compile in test_training_step.py
def test_a_model_with_it_compiles():
    model = build().train()
    model.set_attn_implementation(NAME)
    model.compile(fullgraph=True, backend="aot_eager")
    loss = model(images()).loss
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


@pytest.mark.parametrize(
    ("device", "torch_compile", "expected"),
    [("cpu", False, NAME), ("cpu", True, "sdpa"), ("cuda", False, "sdpa"), ("cuda", True, "sdpa")],
)
def test_default(device, torch_compile, expected):
    assert default_attention(torch.device(device), torch_compile) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], NAME),
        pytest.param(["--torch_compile"], "sdpa", marks=pytest.mark.slow),  # compiles a function
        *((["--attn_implementation", n], n) for n in ("sdpa", "eager", NAME)),
    ],
)
def test_a_run_takes_and_names_it(photos_dir, tmp_path, capsys, words, expected):
    flags = {"dataset_name": photos_dir, "config_overrides": TINY_OVERRIDES, "output_dir": tmp_path}
    flags |= {"per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none"}
    trainer, _ = prepare(make_parser(prog="run_pretrain.py").parse(as_flags(flags, *words)))
    model = trainer.model
    assert model.config._attn_implementation == model.decoder.config._attn_implementation == expected
    assert f"attention {expected})" in capsys.readouterr().out


LOAD = """
from transformers import AutoModelForPreTraining

model = AutoModelForPreTraining.from_pretrained("model", trust_remote_code=True).train()
print(model.config._attn_implementation)
"""


def test_a_checkpoint_does_not_need_it(tmp_path):
    model = build()
    model.set_attn_implementation(NAME)
    model.save_pretrained(tmp_path / "model")
    assert NAME not in (tmp_path / "model" / "config.json").read_text()
    assert ViTMAERobustForPreTraining.from_pretrained(tmp_path / "model").config._attn_implementation == "sdpa"
    assert run_without_the_package(LOAD, tmp_path).split() == ["sdpa"]
