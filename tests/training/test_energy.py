"""Energy that the machine counts: never a guess."""

import pytest
from transformers import TrainerState, TrainingArguments

from hf_mae_robust.training import energy
from hf_mae_robust.training.energy import EnergyCallback, GpuCounters, RaplCounters


@pytest.fixture
def powercap(tmp_path):
    """Two packages, and a zone within the first that must not be counted twice."""
    for name, microjoules in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 900_000), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
    return tmp_path


def count(powercap, name, microjoules):
    (powercap / name / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_are_added_also_when_a_counter_starts_again(powercap):
    counters = RaplCounters(powercap)
    assert counters.kwh == 0
    count(powercap, "intel-rapl:0", 9_000_000)  # 4 J
    count(powercap, "intel-rapl:0:0", 9_000_000)
    counters.update()
    count(powercap, "intel-rapl:0", 2_000_000)  # 3 J: 1 to the end of the range, 2 after it
    count(powercap, "intel-rapl:1", 1_900_000)  # 1 J
    counters.update()
    assert counters.kwh == pytest.approx(8 / 3.6e6)


def test_without_a_counter_that_may_be_read_there_is_no_figure(tmp_path, powercap):
    assert RaplCounters(tmp_path / "none").kwh is None
    (powercap / "intel-rapl:1" / "energy_uj").unlink()  # as where only root may read it
    assert RaplCounters(powercap).kwh is None
    assert GpuCounters(0).kwh is None


def test_a_counter_that_goes_away_ends_the_figure_and_not_the_training(powercap):
    counters = RaplCounters(powercap)
    count(powercap, "intel-rapl:0", 9_000_000)
    counters.update()
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    counters.update()
    counters.update()
    assert counters.kwh is None


def test_a_run_counts_on_one_machine_only(powercap, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RaplCounters", lambda: RaplCounters(powercap))
    args, state = TrainingArguments(str(tmp_path / "out"), use_cpu=True), TrainerState(is_world_process_zero=True)
    callback = EnergyCallback()
    assert callback.metrics() == {}
    callback.on_train_begin(args, state, None)
    count(powercap, "intel-rapl:1", 4_500_000)
    callback.on_step_end(args, state, None)
    assert callback.metrics() == {"train_cpu_kwh": pytest.approx(3.6 / 3.6e6)}
    elsewhere = EnergyCallback()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # of more processes than this one of one
    elsewhere.on_train_begin(args, state, None)
    assert elsewhere.metrics() == {}
