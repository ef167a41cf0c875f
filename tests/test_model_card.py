import pytest
from huggingface_hub import ModelCard

from hf_mae_robust.model_card import METRICS, PIPELINES, save_card


@pytest.mark.parametrize("task", sorted(PIPELINES))
def test_the_card_says_what_was_measured_as_the_hub_reads_it(task, tmp_path):
    results = {key: 0.1 + 0.01 * i for i, (key, *_) in enumerate(METRICS[task])}
    (tmp_path / "loss.png").write_bytes(b"x")
    save_card(
        tmp_path,
        task=task,
        description="Fine-tuning this on that",
        dataset_name="user/pictures",
        split="validation",
        results={**results, "eval_runtime": 3.0},
        pictures=("loss.png", "nothing.png"),
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", PIPELINES[task])
    assert card.data.datasets == ["user/pictures"]
    assert [result.metric_value for result in card.data.eval_results] == pytest.approx(list(results.values()))
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert "Fine-tuning this on that" in card.text and "![loss.png]" in card.text and "nothing.png" not in card.text
    assert ("trust_remote_code=True" in card.text) is (task == "detection")


def test_without_an_evaluation_there_are_no_results(tmp_path):
    save_card(tmp_path, task="detection", description="x", dataset_name=str(tmp_path), split="none", results={})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and card.data.datasets is None
