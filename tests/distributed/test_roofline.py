"""The least time of kernels, from texts whose operations and bytes are counted by hand."""

import gzip
import pathlib

import pytest

from igpt_jax.distributed import roofline

GPU_TEXT = pathlib.Path(__file__).parent / "data" / "xla_gpu.txt.gz"
HLO = """HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%gemm_fusion_computation (x: bf16[64,32], w: f32[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = f32[32,16]{1,0} parameter(1)
  %small = bf16[32,16]{1,0} convert(%w)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%x, %small), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%split_computation (x: f32[4,8,16], y: f32[4,8,32]) -> f32[4,16,32] {
  %x.1 = f32[4,8,16]{2,1,0} parameter(0)
  %y.1 = f32[4,8,32]{2,1,0} parameter(1)
  ROOT %dot.2 = f32[4,16,32]{2,1,0} dot(%x.1, %y.1), lhs_batch_dims={0}, lhs_contracting_dims={1}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}

%stack (stacked: bf16[24,64,16], index: s32[], layer: bf16[64,16]) -> bf16[24,64,16] {
  %stacked = bf16[24,64,16]{2,1,0} parameter(0)
  %layer = bf16[64,16]{1,0} parameter(2)
  %minus_layer = bf16[64,16]{1,0} negate(%layer)
  %one = bf16[1,64,16]{2,1,0} bitcast(%minus_layer)
  %index = s32[] parameter(1)
  %minus = s32[] constant(-1)
  %last = s32[] add(%index, %minus)
  %zero = s32[] constant(0)
  ROOT %update = bf16[24,64,16]{2,1,0} dynamic-update-slice(%stacked, %one, %last, %zero, %zero)
}

%take (stacked: bf16[24,64,16], index: s32[]) -> (bf16[1,64,16], f32[1,64,16]) {
  %stacked.1 = bf16[24,64,16]{2,1,0} parameter(0)
  %index.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice = bf16[1,64,16]{2,1,0} dynamic-slice(%stacked.1, %index.1, %zero.1, %zero.1), dynamic_slice_sizes={1,64,16}
  %again = bf16[1,64,16]{2,1,0} dynamic-slice(%stacked.1, %index.1, %zero.1, %zero.1), dynamic_slice_sizes={1,64,16}
  %wide = f32[1,64,16]{2,1,0} convert(%again)
  ROOT %both = (bf16[1,64,16]{2,1,0}, f32[1,64,16]{2,1,0}) tuple(%slice, %wide)
}

%pick (stacked: bf16[24,64,16], index: s32[]) -> bf16[1,64,16] {
  %stacked.3 = bf16[24,64,16]{2,1,0} parameter(0)
  %index.2 = s32[] parameter(1)
  %zero.3 = s32[] constant(0)
  %other = s32[] subtract(%zero.3, %index.2)
  ROOT %slice.2 = bf16[1,64,16]{2,1,0} dynamic-slice(%stacked.3, %other, %zero.3, %zero.3), dynamic_slice_sizes={1,64,16}
}

%fill () -> f32[24,8] {
  %nought = f32[] constant(0)
  ROOT %zeros = f32[24,8]{1,0} broadcast(%nought), dimensions={}
}

%body (carry: (s32[], bf16[24,64,16])) -> (s32[], bf16[24,64,16]) {
  %carry = (s32[], bf16[24,64,16]{2,1,0}) parameter(0)
  %at = s32[] get-tuple-element(%carry), index=0
  %kept = bf16[24,64,16]{2,1,0} get-tuple-element(%carry), index=1
  %x.2 = bf16[64,32]{1,0} constant({...})
  %w.2 = f32[32,16]{1,0} constant({...})
  %gemm_fusion_dot.7 = bf16[64,16]{1,0} fusion(%x.2, %w.2), kind=kCustom, calls=%gemm_fusion_computation, metadata={op_name="jit(step)/jvp()/dot_general"}
  %loop_update_fusion.3 = bf16[24,64,16]{2,1,0} fusion(%kept, %at, %gemm_fusion_dot.7), kind=kLoop, calls=%stack, metadata={op_name="jit(step)/jvp()/while"}
  %loop_take_fusion.1 = (bf16[1,64,16]{2,1,0}, f32[1,64,16]{2,1,0}) fusion(%loop_update_fusion.3, %at), kind=kLoop, calls=%take
  %loop_pick_fusion = bf16[1,64,16]{2,1,0} fusion(%loop_update_fusion.3, %at), kind=kLoop, calls=%pick
  ROOT %next = (s32[], bf16[24,64,16]{2,1,0}) tuple(%at, %loop_update_fusion.3)
}

%condition (carry: (s32[], bf16[24,64,16])) -> pred[] {
  ROOT %true = pred[] constant(true)
}

%side (y: f32[24,8]) -> f32[8,24] {
  %y.2 = f32[24,8]{1,0} parameter(0)
  ROOT %transpose.1 = f32[8,24]{1,0} transpose(%y.2), dimensions={1,0}
}

%adam (p: f32[24,8], g: f32[24,8]) -> f32[24,8] {
  %p = f32[24,8]{1,0} parameter(0)
  %g = f32[24,8]{1,0} parameter(1)
  ROOT %subtract = f32[24,8]{1,0} subtract(%p, %g)
}

%norm (g: f32[24,8]) -> f32[24] {
  %g.1 = f32[24,8]{1,0} parameter(0)
  %nought.1 = f32[] constant(0)
  ROOT %reduce = f32[24]{0} reduce(%g.1, %nought.1), dimensions={1}, to_apply=%sum
}

ENTRY %main (p: f32[24,8], q: bf16[2,64,4,8]) -> f32[24,8] {
  %p.1 = f32[24,8]{1,0} parameter(0)
  %q = bf16[2,64,4,8]{3,2,1,0} parameter(1)
  %stacked.2 = bf16[24,64,16]{2,1,0} parameter(2)
  %start = (s32[], bf16[24,64,16]{2,1,0}) tuple(%zero.2, %stacked.2)
  %while.1 = (s32[], bf16[24,64,16]{2,1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %fwd.1 = (bf16[2,4,64,8]{3,1,2,0}, f32[2,4,64]{2,1,0}, u8[512]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"intermediate_tensor_shape": {"dimensions": ["2", "4", "64", "64"]}, "mask_type": "CAUSAL"}
  %out = bf16[2,64,4,8]{3,2,1,0} bitcast(%q)
  %bwd.1 = (bf16[2,4,64,8]{3,1,2,0}, bf16[2,4,64,8]{3,1,2,0}) custom-call(%q, %out), custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={"intermediate_tensor_shape": {"dimensions": ["2", "4", "64", "64"]}, "mask_type": "NO_MASK"}
  %left = f32[4,8,16]{2,1,0} parameter(3)
  %right = f32[4,8,32]{2,1,0} parameter(4)
  %gemm_fusion_dot.8 = f32[4,16,32]{2,1,0} fusion(%left, %right), kind=kCustom, calls=%split_computation
  %many = bf16[64,32]{1,0} parameter(5)
  %few = bf16[32,16]{1,0} parameter(6)
  %cublas-gemm.1 = (bf16[64,16]{1,0}, s8[4096]{0}) custom-call(%many, %few), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %loop_broadcast_fusion = f32[24,8]{1,0} fusion(), kind=kLoop, calls=%fill
  %moved = ((f32[24,8]{1,0}), f32[8,24]{1,0}) async-start(%loop_broadcast_fusion), calls=%side
  %done = f32[8,24]{1,0} async-done(%moved)
  %loop_select_fusion = f32[24,8]{1,0} fusion(%p.1, %loop_broadcast_fusion), kind=kLoop, calls=%adam, metadata={op_name="jit(step)/jit(_where)/select_n"}
  %input_reduce_fusion.2 = f32[24]{0} fusion(%p.1), kind=kInput, calls=%norm, metadata={op_name="jit(step)/transpose(jvp())/reduce_sum"}
  %twice = f32[24,8]{1,0} fusion(%p.1, %p.1), kind=kLoop, calls=%adam
  %copy.1 = f32[24,8]{1,0} copy(%loop_select_fusion), metadata={op_name="state.model.bias"}
  %all-reduce.1 = f32[24]{0} all-reduce(%input_reduce_fusion.2), channel_id=2, to_apply=%sum
  %all-reduce-start.1 = f32[8]{0} all-reduce-start(%input_reduce_fusion.2), channel_id=3, to_apply=%sum
  %all-reduce-done.1 = f32[8]{0} all-reduce-done(%all-reduce-start.1)
  ROOT %result = f32[24,8]{1,0} bitcast(%copy.1)
}
"""
LAYER, P = 64 * 16, 24 * 8  # elements
ONE_Q = 2 * 2 * 64 * 4 * 8  # bytes of q
EXPECTED = {  # name -> kind, executions, FLOP and bytes of one, half rate
    "gemm_fusion_dot": ("products", 3, 2 * 64 * 32 * 16, 2 * 64 * 32 + 4 * 32 * 16 + 2 * LAYER, False),
    "loop_update_fusion": ("copies", 3, 0, 2 * 2 * LAYER + 4, False),  # of 24 layers one is read and written
    "loop_take_fusion": ("elementwise", 3, 0, 2 * LAYER + 4 + (2 + 4) * LAYER, False),  # two slices of the same are one
    "loop_pick_fusion": ("copies", 3, 0, 2 * 2 * LAYER + 4, False),
    "fwd": ("attention", 1, 2 * 2 * (2 * 4) * 64 * 64 * 8 / 2, ONE_Q + ONE_Q + 4 * 2 * 4 * 64, False),  # the three operands are one array
    "bwd": ("attention", 1, 5 * 2 * (2 * 4) * 64 * 64 * 8, 2 * ONE_Q + 2 * ONE_Q, False),
    "gemm_fusion_dot of float32": ("products", 1, 2 * 4 * 16 * 32 * 8, 4 * 4 * (8 * 16 + 8 * 32 + 16 * 32), True),
    "cublas-gemm": ("products", 1, 2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16 + 64 * 16), False),  # without its workspace
    "loop_broadcast_fusion": ("copies", 1, 0, 4 * P, False),
    "transpose": ("copies", 1, 0, 8 * P, False),
    "loop_select_fusion": ("optimiser", 1, 0, 12 * P, False),
    "input_reduce_fusion": ("elementwise", 1, 0, 4 * P + 4 * 24, False),
    "twice": ("elementwise", 1, 0, 8 * P, False),  # one array as both operands
    "copy": ("copies", 1, 0, 8 * P, False),
}


def test_operations_and_bytes_of_every_kind_of_kernel():
    found = {}
    for kernel in roofline.kernels(HLO):
        name = kernel.name + (" of float32" if kernel.half_rate else "")
        found[name] = (kernel.kind, kernel.executions, kernel.flops, kernel.bytes, kernel.half_rate)
    assert found == EXPECTED


def test_a_kernel_takes_the_longer_of_its_two_times_and_kinds_are_summed_over_executions():
    rows = {row["kind"]: row for row in roofline.roofline(HLO, peak=1e3, bandwidth=1e3)}
    assert tuple(rows) == roofline.KINDS
    for kind, row in rows.items():
        own = [entry for entry in EXPECTED.values() if entry[0] == kind]
        if kind != "collectives":
            assert row["kernels"] == sum(count for _, count, *_ in own) and row["bytes"] == sum(count * size for _, count, _, size, _ in own)
            assert row["seconds"] == pytest.approx(sum(count * max(flops * (1 + half), size) / 1e3 for _, count, flops, size, half in own))
    assert rows["collectives"] == {"kind": "collectives", "kernels": 2, "flops": 0.0, "bytes": 4 * 24 + 4 * 8, "seconds": 0.0}
    assert roofline.mfu(list(rows.values()), flops=1e3 * sum(row["seconds"] for row in rows.values()), peak=2e3) == pytest.approx(0.5)


def test_only_what_a_fusion_needs_of_an_operand_counts():
    """A gather of 3 rows of 8; a slice that is taken of a converted array; both rows of a fusion that is read twice."""
    text = """
%fused (table: f32[100,8], codes: s32[3], long: bf16[50,8], row: f32[8]) -> f32[3,8] {
  %table = f32[100,8]{1,0} parameter(0)
  %codes = s32[3]{0} parameter(1)
  %rows = f32[3,8]{1,0} gather(%table, %codes), offset_dims={1}
  %long = bf16[50,8]{1,0} parameter(2)
  %converted = f32[50,8]{1,0} convert(%long)
  %first = f32[3,8]{1,0} slice(%converted), slice={[0:3], [0:8]}
  %row = f32[8]{0} parameter(3)
  %each = f32[3,8]{1,0} broadcast(%row), dimensions={1}
  %both = f32[3,8]{1,0} add(%rows, %first)
  ROOT %sum = f32[3,8]{1,0} add(%both, %each)
}

%scattered (zeros: f32[100,8], codes: s32[3], updates: f32[3,8]) -> f32[100,8] {
  %zeros = f32[100,8]{1,0} parameter(0)
  %codes.1 = s32[3]{0} parameter(1)
  %updates = f32[3,8]{1,0} parameter(2)
  ROOT %scatter = f32[100,8]{1,0} scatter(%zeros, %codes.1, %updates), to_apply=%add
}

ENTRY %main () -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = s32[3]{0} parameter(1)
  %c = bf16[50,8]{1,0} parameter(2)
  %d = f32[8]{0} parameter(3)
  %gathered.1 = f32[3,8]{1,0} fusion(%a, %b, %c, %d), kind=kLoop, calls=%fused
  ROOT %scattered.1 = f32[100,8]{1,0} fusion(%a, %b, %gathered.1), kind=kInput, calls=%scattered
}
"""
    gathered, scattered = roofline.kernels(text)
    assert gathered.bytes == 4 * 3 * 8 + 4 * 3 + 2 * 3 * 8 + 4 * 8 + 4 * 3 * 8
    assert scattered.bytes == 3 * 4 * 3 * 8 + 4 * 3  # updates read; the rows that they change read and written
    assert {gathered.kind, scattered.kind} == {"elementwise"}


def test_the_text_of_a_gpus_compiler():
    """configs/s.py for h100-1 with 3 layers of width 256, 4 heads, 256 positions, 64 colours and 32 images, in a loop over layers: jax 0.10.2."""
    rows = {row["kind"]: row for row in roofline.roofline(gzip.decompress(GPU_TEXT.read_bytes()).decode(), 989e12, 3.35e12)}
    L, D, S, V, B = 3, 256, 256, 64, 32
    parameters = 2_459_648
    assert rows["products"]["flops"] == 3 * 2 * B * S * (12 * L * D**2 + D * V)  # forward, and twice as much backward
    assert rows["attention"]["flops"] == (2 + 5) * L * 2 * B * S**2 * D / 2
    assert rows["attention"]["kernels"] == 2 * L
    qkv_and_out, statistics = 2 * 4 * B * S * D, 4 * B * S * 4  # bytes
    assert rows["attention"]["bytes"] == L * (qkv_and_out + statistics + 2 * qkv_and_out + statistics)
    adam, norm = 4 * 7 * parameters, 4 * parameters  # parameter, two moments and gradient read, three written; the gradient read again
    assert rows["optimiser"]["bytes"] == pytest.approx(adam + norm, rel=1e-3)
    assert rows["collectives"]["kernels"] == 0
