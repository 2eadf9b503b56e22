"""Compiling for chips that are not here: names, the reading of the compiler's text, and where a compiler is installed the real step."""

import importlib
import json

import pytest

from igpt_jax import aot
from tests.runs import call

HLO = """HloModule jit_step

%all-reduce-scatter.1 (input: f32[1024,512]) -> f32[256,512] {
  %all-reduce.7 = f32[1024,512]{1,0} all-reduce(%input), channel_id=4, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %all-gather-start.1 = (bf16[2,16]{1,0}, bf16[8,16]{1,0:T(8,128)(2,1)}) all-gather-start(%p), channel_id=1, dimensions={0}
  %all-gather-done.1 = bf16[8,16]{1,0} all-gather-done(%all-gather-start.1)
  %again = bf16[8,16]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  %fusion.1 = f32[256,512]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (carry: (s32[], bf16[8,16])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  ROOT %less = pred[] compare(%index, %bound), direction=LT
}

ENTRY %main (p: bf16[2,16]) -> bf16[8,16] {
  %while.1 = (s32[], bf16[8,16]) while(%start), condition=%condition, body=%body
  %all-reduce.2 = (f32[10]{0}, f32[3,2]{1,0}) all-reduce(%y, %z), channel_id=2, to_apply=%add
  %scatter = f32[3,2]{1,0} reduce-scatter(%y), channel_id=5, replica_groups=GROUPS, dimensions={0}, to_apply=%add
  %both = ((bf16[8,3]{1,0:T(8,128)(2,1)}, f32[8]{0}), (bf16[2,3]{1,0}, f32[2]{0})) reduce-scatter-start(%y, %z), channel_id=6, to_apply=%add
  %sum-start = (f32[5]{0}, f32[4]{0}) all-reduce-start(%y, %z), channel_id=7, to_apply=%add
}
"""
GROUPS = ("{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['a'=2,'b'=4] {'b'}", "mesh['a'=2,'b'=2] {'a','b'}")


@pytest.mark.parametrize("groups", GROUPS)
def test_collectives_are_counted_once_for_each_channel_and_turn_of_the_loop(groups):
    assert aot.collectives(HLO.replace("GROUPS", groups)) == [
        {"kind": "all-gather", "in_loop": True, "operations": 1, "executions": 24, "bytes": 24 * 2 * 8 * 16},
        {"kind": "all-reduce", "in_loop": False, "operations": 2, "executions": 2, "bytes": 4 * (10 + 6) + 4 * 9},
        {"kind": "reduce-scatter", "in_loop": False, "operations": 2, "executions": 2, "bytes": 4 * 4 * 6 + 2 * 24 + 4 * 8},
        {"kind": "reduce-scatter", "in_loop": True, "operations": 1, "executions": 24, "bytes": 24 * 4 * 1024 * 512},
    ]


@pytest.mark.parametrize("name", ["v4-127", "v5e-3", "tpu", "h100", "v9-8", "v5e-256x", "v4-1"])
def test_an_unknown_topology_lists_the_known(name):
    with pytest.raises(ValueError, match=f"topology '{name}' is unknown: one of v4-8, .*v5p-.*v5e-1, .*v6e-.*h100-"):
        aot.devices_of(name)


def test_mesh_and_batch_are_refused_before_a_compile(monkeypatch):
    import jax

    monkeypatch.setattr(aot, "devices_of", lambda name: (jax.devices(), aot.CHIPS["v5e"]))
    config = importlib.import_module("configs.s").get_config()
    config.mesh.tensor = 3
    with pytest.raises(ValueError, match="does not make 8 devices"):
        aot.compile_recipe(config, "v5e-8")
    config.mesh.tensor, config.batch_size = 1, 12
    with pytest.raises(ValueError, match="batch_size 12 is not divisible by 8 data shards"):
        aot.compile_recipe(config, "v5e-8")


@pytest.fixture
def libtpu():
    return pytest.importorskip("libtpu", reason="needs the extra `aot`: the compiler for TPUs")


@pytest.mark.slow
def test_the_largest_model_fits_a_pod_and_its_parameters_are_gathered_layer_by_layer(libtpu, tmp_path):
    code, out, error = call("aot", "--config=configs/xl.py", "--topology=v4-128", f"--out={tmp_path / 'aot.json'}")
    assert code == 0, error
    assert "| v4-128 | fsdp 64 | splash | 6,810,875,904 |" in out
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
