"""What a run reports: numbers that are right, files that survive a kill."""

import json

import pytest

from igpt_jax.training import metrics


def test_peaks_are_found_by_the_name_jax_gives():
    assert metrics.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert metrics.peak_flops("TPU v5 lite") == 197e12 and metrics.peak_flops("TPU v5") == 459e12
    assert metrics.peak_flops("cpu") is None


def test_throughput_counts_images_tokens_and_flops(monkeypatch):
    clock = [10.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    speed = metrics.Throughput(images_per_step=4, tokens_per_image=64, flops_per_image=1e6, peak=1e8)
    clock[0] = 12.0
    assert speed.report(5) == pytest.approx({"images_per_second": 10, "tokens_per_second": 640, "mfu": 0.1})
    clock[0] = 100.0
    speed.restart(5)  # an evaluation
    clock[0] = 101.0
    assert speed.report(6)["images_per_second"] == 4
    assert "mfu" not in metrics.Throughput(4, 64, 1e6, None).report(1)
    assert metrics.Throughput(4, 64, 1e6, 1e8).report(0) == {}  # no step, no speed


def test_lines_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    metrics.drop_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    metrics.drop_after(tmp_path / "none.jsonl", 2)


def test_what_json_cannot_say_is_null(tmp_path, capsys):
    writer = metrics.Writer(tmp_path, 0, 10)
    writer.write(1, {"loss": float("nan"), "speed": 12345.6})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] is None
    assert "step 1/10  train  loss nan  speed 12,346" in capsys.readouterr().out


def test_only_the_first_process_writes(tmp_path, capsys):
    writer = metrics.Writer(tmp_path, 0, 10, enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.say("x")
    writer.advance(1)
    writer.close()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out
