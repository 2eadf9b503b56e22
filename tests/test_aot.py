"""Compiling for chips that are not here: names, and where a compiler is installed the real step."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import types

import jax
import pytest

from configs import base, finetune
from igpt_jax.distributed import sharding
from igpt_jax.distributed import topology as topology_module
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.training import compilation
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.step import LossConfig
from tests.runs import ROOT, call


@pytest.mark.parametrize("name", ["v4-127", "v5e-3", "tpu", "h100", "h100-12", "v9-8", "v5e-256x", "v4-1"])
def test_an_unknown_topology_lists_the_known(name):
    with pytest.raises(ValueError, match=f"topology '{name}' is unknown: one of v4-8, .*v5p-.*v5e-1, .*v6e-.*h100-"):
        topology_module.devices_of(name)


def test_gpus_of_a_topology_are_hosts_of_eight_as_in_a_cluster_and_make_the_recipes_mesh(monkeypatch):
    """With devices as XLA describes them for partitions x hosts x GPUs: slice_index is the partition's number."""
    from jax.experimental import topologies

    from tests.distributed.test_sharding import gpus, hosts

    def describe(platform, topology_name, target_config, topology):
        partitions, of_partition, each = map(int, topology.split("x"))
        assert platform == "cuda"
        return types.SimpleNamespace(devices=gpus(partitions * of_partition * each, of_host=of_partition * each))

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    for name, count in (("h100-1", 1), ("h100-4", 4), ("h100-64", 64), ("h100-8x2", 16)):
        devices, _ = topology_module.devices_of(name)
        assert len(devices) == count and len(hosts(devices)) == -(-count // 8)
    mesh = sharding.make_mesh(**importlib.import_module("configs.xl").get_config().mesh, devices=topology_module.devices_of("h100-64")[0])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 64, "tensor": 1} and all(len(hosts(mesh.devices.reshape(8, 8)[host])) == 1 for host in range(8))


def test_mesh_and_batch_are_refused_before_a_compile(monkeypatch):
    monkeypatch.setattr(compilation, "devices_of", lambda name: (jax.devices(), topology_module.CHIPS["v5e"]))
    config = importlib.import_module("configs.s").get_config()
    config.mesh.tensor = 3
    with pytest.raises(ValueError, match="does not make 8 devices"):
        compilation.compile_recipe(config, "v5e-8")
    config.mesh.tensor, config.batch_size = 1, 12
    with pytest.raises(ValueError, match="batch_size 12 is not divisible by 8 data shards"):
        compilation.compile_recipe(config, "v5e-8")


def test_no_plugin_looks_for_its_hardware(tmp_path):
    """Without this the CUDA plugin would check the libraries of a GPU, fail, and not register its compiler."""
    plugin = tmp_path / "jax_plugins" / "curious" / "__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text("def initialize():\n    import jax\n    print('platforms:', jax.config.jax_platforms)\n")
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "igpt_jax.aot", "--config=configs/digits.py", "--topology=h100-1", "--config.data.image_size=0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert "platforms: cpu" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def libtpu():
    return pytest.importorskip("libtpu", reason="needs the extra `aot`: the compiler for TPUs")


@pytest.mark.slow
def test_the_largest_model_fits_a_pod_and_its_parameters_are_gathered_layer_by_layer(libtpu, tmp_path):
    code, out, error = call("aot", "--config=configs/xl.py", "--topology=v4-128", f"--out={tmp_path / 'aot.json'}")
    assert code == 0, error
    assert "| v4-128 | fsdp 64 | splash | 6,810,875,904 |" in out and "v4-128: fits: the step needs" in out
    row = json.loads((tmp_path / "aot.json").read_text())[0]
    assert row["devices"] == 64 and row["peak_bytes"] < 1.1 * 3.861 * 2**30  # ../shared/reference/tpu_aot.md, the same recipe by hand
    assert any(one["kind"] == "all-gather" and one["in_loop"] for one in row["collectives"])
    stack = 4 * 60 * 12 * 3072**2  # bytes of all blocks
    assert all(one["in_loop"] or one["bytes"] < 0.05 * stack for one in row["collectives"])


@pytest.mark.slow
def test_what_does_not_fit_ends_in_one_line_and_code_1(libtpu):
    code, out, error = call("aot", "--config=configs/xl.py", "--topology=v5e-4", "--config.batch_size=4", "--config.data.image_size=32")
    said = error.strip().splitlines()[-1]
    assert code == 1 and said.startswith("error: v5e-4 has 15.75 GiB on a device and the step needs about") and "more devices" in said, error


@pytest.fixture
def cuda_plugin():
    return pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `aot-gpu`: the compiler for GPUs")


@pytest.mark.slow
def test_a_gpus_step_has_a_roofline_by_kind_of_kernel(cuda_plugin, tmp_path):
    sizes = ("--config.model.layers=2", "--config.model.width=256", "--config.model.heads=4", "--config.data.image_size=16", "--config.batch_size=32")
    code, out, error = call("aot", "--config=configs/s.py", "--topology=h100-1", *sizes, f"--out={tmp_path / 'aot.json'}")
    assert code == 0, error
    (row,) = json.loads((tmp_path / "aot.json").read_text())
    rows = {kind["kind"]: kind for kind in row["roofline"]}
    attention = 12 * 2 * 256 * 128 * 256 * 32  # what training_flops counts: twice the forward pass for the backward pass
    assert rows["products"]["flops"] == row["flops"] - attention and rows["attention"]["flops"] == attention * 7 / 6
    assert f"| products | {rows['products']['kernels']} |" in out and "MFU, at most: " in out
    assert row["peak_flops"] == 989e12


def test_the_table_of_a_roofline_gives_the_mfu_of_its_time_and_says_what_it_leaves_out():
    rows = [
        {"kind": "products", "kernels": 3, "flops": 6e12, "bytes": 2e9, "seconds": 0.03},
        {"kind": "copies", "kernels": 0, "flops": 0, "bytes": 0, "seconds": 0},
    ]
    row = compilation.Compiled("h100-8", 8, {}, "cudnn", "none", 1, 1, 1, 1, 1, 16e12, [{"kind": "all-reduce"}], 1.0, peak_flops=1e14, roofline=rows)
    head, _, _, _, products, total, _, mfu = compilation.roofline_table(row).splitlines()
    assert head == "h100-8: the least time of one step's kernels on a device; without the time of the network"
    assert products == "| products | 3 | 6.00 | 2.0 | 30.00 | 100.0% |" and total.startswith("| all | 3 | 6.00 | 2.0 | 30.00 |")
    assert mfu == "MFU, at most: 66.7%"  # 16e12 / 8 devices / 1e14 in 0.03 s
    assert "for GPUs alone" in compilation.roofline_table(dataclasses.replace(row, roofline=[]))


@pytest.mark.parametrize(("gib", "verdict"), [(3.0, "fits"), (3.8, "fits"), (3.81, "does not fit")])
def test_a_line_says_whether_the_step_fits(gib, verdict):
    row = compilation.Compiled("v5e-8", 8, {}, "splash", "full", 1, 1, 1, int(gib * 2**30), 4 * 2**30, 1.0, [], 1.0)
    assert compilation.describe_fit(row) == f"v5e-8: {verdict}: the step needs {gib:.2f} of the 4.00 GiB of each device, of which it may take 95%"


def test_the_verdict_is_the_condition_of_remat_auto(monkeypatch):
    """With a limit just below what the step needs without recomputation, auto takes more of it, and the verdict is that the step does not fit."""
    config, device = base.get_config(), jax.devices()[:1]
    config.model.update(layers=2, width=32, heads=2, vocabulary=16, positions=64, dtype="float32", attention="reference", remat="none", unroll=1)
    config.data.image_size, config.palette.size, config.batch_size = 8, 16, 4
    chip = dataclasses.replace(topology_module.CHIPS["h100"], bandwidth=0)
    monkeypatch.setattr(compilation, "devices_of", lambda name: (device, dataclasses.replace(chip, memory=limit)))
    limit = 1.0
    needed = compilation.compile_recipe(config, "h100-1").needed_bytes
    parts = OptimConfig(**config.optim), LossConfig(**config.loss), config.batch_size, 1
    for factor, fits in ((1.001, True), (0.999, False)):
        limit = factor * needed / compilation.ROOM / 2**30
        assert compilation.compile_recipe(config, "h100-1").fits is fits
        step = compilation.Step(sharding.make_mesh(devices=device), ModelConfig(**dict(config.model) | {"remat": "auto"}), *parts)
        assert (compilation.decide(step, limit * 2**30)[0].remat == "none") is fits


def test_the_tables_keep_a_step_that_does_not_fit_and_stop_at_another_error():
    from experiments.scale.aot_table import refusal

    row = compilation.Compiled("v5e-8", 8, {}, "splash", "full", 1, 1, 1, 9 * 2**30, 4 * 2**30, 1.0, [], 1.0)
    for line in (f"error: {compilation.describe_fit(row)}: {compilation.WAYS_OUT}", "error: v5e-4 has 15.75 GiB on a device and the step needs about 28 GiB"):
        assert refusal("command", types.SimpleNamespace(stderr=f"a warning\n{line}\n")) == line
    with pytest.raises(RuntimeError, match="command: error: no compiler"):
        refusal("command", types.SimpleNamespace(stderr="error: no compiler for h100-1\n"))


def test_a_recipe_that_takes_its_model_from_a_checkpoint_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="the recipe takes its model from a checkpoint"):
        compilation.compile_recipe(finetune.get_config(), "v5e-4")


def test_the_stored_table_of_pods_is_made_from_the_stored_rows():
    from experiments.scale import aot_table

    assert (ROOT / "experiments/results/aot.md").read_text() == aot_table.markdown(json.loads((ROOT / "experiments/results/aot.json").read_text()))
