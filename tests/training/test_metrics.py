"""What a run reports: numbers that are right, files that survive a kill."""

import json
from types import SimpleNamespace

import jax
import pytest

from igpt_jax.training import metrics

KINDS = {  # device_kind as jax gives it -> TFLOP/s, None where it is not known
    "NVIDIA GB200": 2500, "NVIDIA B200": 2250, "NVIDIA GH200 480GB": 989, "NVIDIA H200": 989, "NVIDIA H200 NVL": 835.5, "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 NVL": 835.5, "NVIDIA H100 PCIe": 756, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100 80GB PCIe": 312, "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-PCIE-32GB": 112, "Tesla V100S-PCIE-32GB": 130,
    "NVIDIA L40S": 362, "NVIDIA L40": 181, "NVIDIA L4": 121, "NVIDIA A40": 149.7, "NVIDIA A10": 125, "NVIDIA A10G": 70, "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 3090": 71.2, "NVIDIA GeForce RTX 4090": 165.2, "NVIDIA GeForce RTX 5090": 209.5,
    "TPU v2": 22.5, "TPU v3": 61.5, "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5": 459, "TPU v5p": 459, "TPU v6 lite": 918, "TPU v6e": 918,
    "TPU7x": 1153.5,
    "cpu": None, "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None, "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None, "NVIDIA GeForce RTX 3090 Ti": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None, "NVIDIA GeForce RTX 4090 D": None, "NVIDIA RTX 6000 Ada Generation": None, "Quadro RTX 6000": None,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": None, "NVIDIA GB10": None, "NVIDIA H20": None, "NVIDIA A100X": None, "TPU v4 lite": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_peaks_are_found_by_the_name_jax_gives(kind):
    assert metrics.peak_flops(kind) == (KINDS[kind] and KINDS[kind] * 1e12)


def test_every_peak_is_found_by_a_name():
    assert {metrics.peak_flops(kind) for kind in KINDS if KINDS[kind]} == set(metrics.PEAK_FLOPS.values())
    assert all(metrics.peak_flops(name) == peak for name, peak in metrics.PEAK_FLOPS.items())


def test_memory_is_that_of_the_fullest_device_that_reports_it():
    devices = [SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in ({"peak_bytes_in_use": 2**30}, {"peak_bytes_in_use": 3 * 2**29}, {}, None)]
    assert metrics.peak_memory(devices) == {"memory_gib": 1.5}
    assert metrics.peak_memory(devices[2:]) == {} == metrics.peak_memory(jax.devices("cpu"))


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
    assert "step  1/10  loss nan" in capsys.readouterr().out


def test_a_line_is_aligned_and_its_time_left_does_not_count_the_compilation(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    writer = metrics.Writer(tmp_path, 0, 1000)
    clock[0] = 100.0  # the first step compiled
    writer.start_clock(1)
    clock[0] = 110.0
    values = {"gradient_norm": 2.0, "learning_rate": 1e-3, "loss": 2.5, "nats_per_pixel": 2.5, "images_per_second": 1234.5, "tokens_per_second": 9e4}
    writer.write(6, values)
    evaluated = {"nats_per_pixel": 2.25, "nats_per_pixel_ema": 2.2, "bits_per_pixel": 3.2, "images": 144, "accuracy": 0.5, "accuracy_ema": 0.75}
    writer.write(6, evaluated, "validation")
    clock[0] = 300.0
    writer.write(101, values)
    writer.close()
    assert capsys.readouterr().out.splitlines() == [
        "step    6/1000  loss 2.5000    1,234 images/s  33.1 min left",  # 10 s for 5 steps, 994 are left
        "step    6/1000  validation  2.2500 nats per pixel  ema 2.2000  accuracy  50.0%  ema  75.0%  144 images  33.1 min left",
        "step  101/1000  loss 2.5000    1,234 images/s  30.0 min left",
    ]


def test_a_run_says_after_its_first_minute_how_long_it_takes(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    writer = metrics.Writer(tmp_path, 0, 1000)
    assert not writer.estimate_due and not metrics.Writer(tmp_path, 0, 1000, enabled=False).enabled
    clock[0] = 61.0
    assert writer.estimate_due
    writer.say_estimate(4)
    assert capsys.readouterr().out == "step    4/1000  4.2 h left\n" and not writer.estimate_due
    writer.close()


def test_only_the_first_process_writes(tmp_path, capsys):
    writer = metrics.Writer(tmp_path, 0, 10, enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.say("x")
    writer.advance(1)
    writer.close()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out
