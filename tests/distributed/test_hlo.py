"""The collectives in a compiler's text: channels, loops and bytes."""

import pathlib

import pytest

from igpt_jax.distributed import hlo

HLO = """HloModule jit_step

%all-reduce-scatter.1 (input: f32[1024,512]) -> f32[256,512] {
  %all-reduce.7 = f32[1024,512]{1,0} all-reduce(%input), channel_id=4, to_apply=%add
}

%all-reduce-scatter.2 (input: f32[1024,512]) -> f32[256,512] {
  %all-reduce.8 = f32[1024,512]{1,0} all-reduce(%input), channel_id=4, to_apply=%add
}

%async_collective_fusion.1 (input: f32[8]) -> f32[16] {
  %all-gather.9 = f32[16]{0} all-gather(%input), channel_id=9, dimensions={0}
}

%fused_computation.1 (input: f32[8]) -> f32[16] {
  %all-gather.10 = f32[16]{0} all-gather(%input), channel_id=9, dimensions={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %all-gather-start.1 = (bf16[2,16]{1,0}, bf16[8,16]{1,0:T(8,128)(2,1)}) all-gather-start(%p), channel_id=1, dimensions={0}
  %all-gather-done.1 = bf16[8,16]{1,0} all-gather-done(%all-gather-start.1)
  %again = bf16[8,16]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  %fusion.1 = f32[256,512]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.2 = f32[16] fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %while.2 = (bf16[4,2], u32[]) while(%begin), condition=%more, body=%ring
}

%ring (parts: (bf16[4,2], u32[])) -> (bf16[4,2], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %before = u32[]{:T(128)} get-tuple-element(%parts), index=1
  %after = u32[]{:T(128)} add(%before, %two)
  %collective-permute-start.1 = (bf16[4,2]{1,0}, bf16[4,2]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part), channel_id=8
  ROOT %carry = (bf16[4,2]{1,0}, u32[]) tuple(%collective-permute-done.1, /*index=1*/%after)
}

%more (parts: (bf16[4,2], u32[])) -> pred[] {
  %sixteen = u32[]{:T(128)} constant(16)
  %counter = u32[]{:T(128)} get-tuple-element(%parts), index=1
  ROOT %less.1 = pred[] compare(%counter, %sixteen), direction=LT
}

%condition (carry: (s32[], bf16[8,16])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  ROOT %less = pred[] compare(%index, %bound), direction=LT
}

ENTRY %main (p: bf16[2,16]) -> bf16[8,16] {
  %fusion.3 = f32[256,512]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2
  %fusion.4 = f32[16] fusion(%x), kind=kCustom, calls=%fused_computation.1
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
    assert hlo.collectives(HLO.replace("GROUPS", groups)) == [
        {"kind": "all-gather", "in_loop": False, "operations": 1, "executions": 1, "bytes": 4 * 16},
        {"kind": "all-gather", "in_loop": True, "operations": 1, "executions": 24, "bytes": 24 * 2 * 8 * 16},
        {"kind": "all-reduce", "in_loop": False, "operations": 2, "executions": 2, "bytes": 4 * (10 + 6) + 4 * 9},
        {"kind": "collective-permute", "in_loop": True, "operations": 1, "executions": 24 * 8, "bytes": 24 * 8 * 2 * 8},
        {"kind": "reduce-scatter", "in_loop": False, "operations": 2, "executions": 2, "bytes": 4 * 4 * 6 + 2 * 24 + 4 * 8},
        {"kind": "reduce-scatter", "in_loop": True, "operations": 1, "executions": 24, "bytes": 24 * 4 * 1024 * 512},
    ]


LAYER, DATA = 512 * 512, pathlib.Path(__file__).parent / "data"


def test_the_texts_of_two_compilers():
    """In each of 3 layers one matrix is gathered forward, again backward, and its gradient is summed. Only XLA:CPU writes the iterations of a loop."""
    loss = {"kind": "all-reduce", "in_loop": False, "operations": 1, "executions": 1, "bytes": 4}
    assert hlo.collectives((DATA / "xla_cpu.txt").read_text()) == [
        {"kind": "all-gather", "in_loop": True, "operations": 2, "executions": 6, "bytes": 6 * 4 * LAYER},
        loss,
        {"kind": "all-reduce", "in_loop": True, "operations": 1, "executions": 3, "bytes": 3 * 4 * LAYER},
    ]
    assert hlo.collectives((DATA / "libtpu.txt").read_text()) == [
        {"kind": "all-gather", "in_loop": True, "operations": 2, "executions": 6, "bytes": 6 * 2 * LAYER},  # of bfloat16
        loss,
        {"kind": "reduce-scatter", "in_loop": True, "operations": 1, "executions": 3, "bytes": 3 * 4 * LAYER},
    ]


def test_groups_of_an_unknown_form_are_an_error():
    with pytest.raises(ValueError, match="replica_groups of an unknown form: %scatter"):
        hlo.collectives(HLO.replace("GROUPS", "all"))
