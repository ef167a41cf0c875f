"""Images per second, by a clock that the test turns."""

from hf_mae_robust.training import progress


def test_images_per_second_since_the_last_entry(monkeypatch):
    seconds = iter([100.0, 102.0, 107.0, 108.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    throughput = progress.Throughput()
    assert throughput.images_per_second(10, 64) is None
    assert throughput.images_per_second(15, 64) == 5 * 64 / 2
    assert throughput.images_per_second(15, 64) is None  # no step in between
    assert throughput.images_per_second(16, 64) == 64
