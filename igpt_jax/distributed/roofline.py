"""The least time of each kernel in the text of an optimised HLO module for a GPU: its floating-point operations, its bytes, and what the chip needs for them.

A kernel takes at least the larger of FLOP / peak and bytes / bandwidth. It reads its operands once and writes its results once; of an array of which it takes
or updates a slice, only the slice counts. The sum over all kernels of a step is a floor: real kernels are slower, launches take time, and only arrays
that stay in the cache from one kernel to the next are faster. Read with the CUDA 13 plugin of jax 0.10.2; TPUs have other instructions.
"""

import collections
import dataclasses
import math
import re
from typing import Any, NamedTuple, TypeAlias

from igpt_jax.distributed.hlo import ARRAY, CALLED, COLLECTIVE, NAME, array_bytes, collectives, computations_of, executions_of

KINDS = ("products", "attention", "elementwise", "copies", "optimiser", "collectives")
INSTRUCTION = re.compile(r"\s*(ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
CONTROL = ("while", "call", "conditional", "async-start")
FREE = {
    *CONTROL, "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all", "async-update", "async-done", "copy-done",
    "partition-id", "replica-id", "add-dependency", "domain",
}  # fmt: skip
MOVEMENT = {
    "copy", "copy-start", "transpose", "reshape", "reverse", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "broadcast", "iota",
}  # fmt: skip
WHOLE = {"reduce", "reduce-window", "dot", "convolution", "sort", "fusion", "call", "custom-call", "map"}  # read all of their operands for any result
ATTENTION, LIBRARY = "__cudnn$fmha", "__cublas"  # the beginnings of the targets of custom calls: cuDNN's attention, products
WORKSPACE = {("u", "8"), ("s", "8")}  # types of the scratch memory that a custom call lists among its results


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a step, with its executions; FLOP and bytes are those of one."""

    name: str  # the instruction's, without the number at its end
    kind: str  # one of KINDS
    executions: int
    flops: float  # of products and attention; others are bound by their bytes
    bytes: int  # read and written
    half_rate: bool  # float32 operands: TF32, which has half the rate of bfloat16 on NVIDIA's GPUs

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Return the least time of one execution for a chip with `peak` FLOP/s in bfloat16 and `bandwidth` bytes/s."""
        return max(self.flops * (2 if self.half_rate else 1) / peak, self.bytes / bandwidth)


class _Instruction(NamedTuple):
    name: str
    type: str
    operation: str
    operands: list[str]
    line: str
    root: bool

    @property
    def shape(self) -> list[int]:
        """Sizes of the first array of the result; of a number []."""
        array = ARRAY.search(self.type)
        return [int(size) for size in array[3].split(",") if size] if array else []

    @property
    def bytes(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(array_bytes(*array) for array in ARRAY.findall(self.type))


_Body: TypeAlias = dict[str, _Instruction]  # by name, in the order of the text
_Bodies: TypeAlias = dict[str, _Body]  # by the name of the computation


def roofline(text: str, peak: float, bandwidth: float) -> list[dict[str, Any]]:
    """Return rows {kind, kernels, flops, bytes, seconds} of one step, for each kind in KINDS, from an optimised HLO text for GPUs.

    `peak` is the chip's FLOP/s in bfloat16, `bandwidth` its bytes/s. Bytes of collectives are those of the whole arrays, as in `hlo.collectives`; their time is
    0, because it depends on the network.
    """
    rows: dict[str, Any] = {kind: {"kind": kind, "kernels": 0, "flops": 0.0, "bytes": 0, "seconds": 0.0} for kind in KINDS}
    for kernel in kernels(text):
        row = rows[kernel.kind]
        row["kernels"] += kernel.executions
        row["flops"] += kernel.executions * kernel.flops
        row["bytes"] += kernel.executions * kernel.bytes
        row["seconds"] += kernel.executions * kernel.seconds(peak, bandwidth)
    for exchanged in collectives(text):
        rows["collectives"]["kernels"] += exchanged["executions"]
        rows["collectives"]["bytes"] += exchanged["bytes"]
    return list(rows.values())


def kernels(text: str) -> list[Kernel]:
    """Return the kernels of a module in the order of its text, without the collectives."""
    computations = computations_of(text)
    counts, bodies = executions_of(computations), {name: _parse(lines) for name, lines in computations.items()}
    found = []
    for name in _scheduled(bodies):
        body = bodies[name]
        for instruction in body.values():
            if instruction.operation not in FREE and not COLLECTIVE.search(instruction.line) and not instruction.operation.endswith("-done"):
                found.append(_kernel(instruction, body, bodies, counts[name]))
    return found


def table(rows: list[dict[str, Any]], flops: float, peak: float) -> str:
    """Format the rows of one device as Markdown; `flops` are the model's for its part of the batch, which give the predicted MFU."""
    total = {name: sum(row[name] for row in rows) for name in ("kernels", "flops", "bytes", "seconds")}
    lines = ["| kind | kernels | TFLOP | GB | ms, at least | share |", "|---|---|---|---|---|---|"]
    for row in [*(row for row in rows if row["kernels"]), {"kind": "all"} | total]:
        amounts = f"{row['flops'] / 1e12:,.2f} | {row['bytes'] / 1e9:,.1f} | {1e3 * row['seconds']:,.2f} | {row['seconds'] / total['seconds']:.1%}"
        lines.append(f"| {row['kind']} | {row['kernels']:,} | {amounts} |")
    return "\n".join(lines) + f"\n\nMFU, at most: {mfu(rows, flops, peak):.1%}"


def mfu(rows: list[dict[str, Any]], flops: float, peak: float) -> float:
    """Return the model FLOPs utilisation of a step of `flops` on one device that takes the time of the rows."""
    return flops / peak / sum(row["seconds"] for row in rows)


def _parse(lines: list[str]) -> _Body:
    """The instructions of a computation."""
    body = {}
    for line in lines:
        if match := INSTRUCTION.match(line):
            root, name, kind, operation, rest = match.groups()
            body[name] = _Instruction(name, kind, operation, NAME.findall(re.split(r"\)(?:,|$)", rest, maxsplit=1)[0]), line, bool(root))
    return body


def _called(instruction: _Instruction, bodies: _Bodies) -> list[str]:
    """Names of the computations that an instruction calls."""
    return [name for names in CALLED.findall(instruction.line) for name in NAME.findall(names) if name in bodies]


def _scheduled(bodies: _Bodies) -> list[str]:
    """Names of the computations whose instructions are kernels: the entry, the bodies of loops and what else control flow calls."""
    found = ["ENTRY"]
    for name in found:
        for instruction in bodies[name].values():
            if instruction.operation in CONTROL:
                found += [called for called in _called(instruction, bodies) if called not in found]
    return found


def _kernel(instruction: _Instruction, body: _Body, bodies: _Bodies, executions: int) -> Kernel:
    inside = _inside(instruction, bodies)
    flops, half_rate = _flops(instruction, body, inside)
    if instruction.operation == "fusion":
        size = _fusion_bytes(instruction, body, bodies[_called(instruction, bodies)[0]])
    else:
        size = _operand_bytes(instruction, body)
    return Kernel(re.sub(r"[._]\d+$", "", instruction.name), _kind(instruction, inside), executions, flops, size, half_rate)


def _inside(instruction: _Instruction, bodies: _Bodies) -> list[tuple[_Instruction, _Body]]:
    """The instructions that a kernel executes, each with its computation: its own, or those of the computation that it fuses, also nested ones."""
    if instruction.operation != "fusion":
        return [(instruction, {})]
    body = bodies[_called(instruction, bodies)[0]]
    return [pair for inner in body.values() for pair in (_inside(inner, bodies) if inner.operation == "fusion" else [(inner, body)])]


def _kind(instruction: _Instruction, inside: list[tuple[_Instruction, _Body]]) -> str:
    """The kind of a kernel.

    `optimiser` is what jax names outside of the differentiated function: Adam, the norm of the gradient, the guard. Operations of the loss and of its
    gradient have `jvp(` in their names; copies and fills that the compiler inserts have none.
    """
    if _target(instruction).startswith(ATTENTION):
        return "attention"
    operations = {inner.operation for inner, _ in inside} - FREE
    if operations & {"dot", "convolution"} or _target(instruction).startswith(LIBRARY):
        return "products"
    name = re.search(r'op_name="([^"]*)"', instruction.line)
    if name and name[1].startswith("jit(") and "jvp(" not in name[1]:
        return "optimiser"
    of_arrays = {inner.operation for inner, _ in inside if inner.shape} - FREE or operations  # the others compute indices
    stacks = instruction.operation == "fusion" and {result.operation for result in _results(inside[0][1])} == {"dynamic-update-slice"}
    return "copies" if of_arrays <= MOVEMENT or stacks else "elementwise"


def _target(instruction: _Instruction) -> str:
    """Target of a custom call, "" of another operation."""
    target = re.search(r'custom_call_target="([^"]*)"', instruction.line)
    return target[1] if target else ""


def _results(body: _Body) -> list[_Instruction]:
    """What computes each result of a computation: its root, or the elements of its tuple, behind bitcasts."""
    root = next(instruction for instruction in body.values() if instruction.root or len(body) == 1)
    return [_behind(body[name], body) for name in root.operands] if root.operation == "tuple" else [_behind(root, body)]


def _behind(instruction: _Instruction, body: _Body) -> _Instruction:
    while instruction.operation == "bitcast" and instruction.operands[0] in body:
        instruction = body[instruction.operands[0]]
    return instruction


def _flops(instruction: _Instruction, body: _Body, inside: list[tuple[_Instruction, _Body]]) -> tuple[float, bool]:
    """FLOP of a kernel's attention or products, and whether their operands are float32."""
    target = _target(instruction)
    if target.startswith(ATTENTION):
        return _attention_flops(instruction, body), False
    products = [(instruction, body)] if target.startswith(LIBRARY) else [pair for pair in inside if pair[0].operation == "dot"]
    half_rate = any(operands[product.operands[0]].type.startswith("f32") for product, operands in products)
    return float(sum(_product_flops(product, operands) for product, operands in products)), half_rate


def _attention_flops(call: _Instruction, body: _Body) -> float:
    """FLOP of a flash kernel: forward two products of S x K x S for each head, backward five, one of them again; a causal mask halves them."""
    queries_BSNK = body[call.operands[0]].shape
    keys = int(re.findall(r'"dimensions": ?\[((?:"\d+"(?:, ?)?)+)\]', call.line)[0].split('"')[-2])  # of the logits, [B, N, S, keys]
    products = 5 if _target(call).endswith("Backward") else 2
    return 2.0 * products * math.prod(queries_BSNK) * keys / (2 if re.search(r'"mask_type": ?"CAUSAL"', call.line) else 1)


def _product_flops(product: _Instruction, body: _Body) -> int:
    """2 M N K of a product, whose lines give the contracted dimensions as HLO does or as the library's calls do."""
    dimensions = re.search(r'lhs_contracting_dim(?:s=\{|ensions": ?\[)([^}\]]*)', product.line)
    left = body[product.operands[0]].shape
    contracted = math.prod(left[int(index)] for index in re.findall(r"\d+", dimensions[1])) if dimensions else 1
    return 2 * math.prod(product.shape) * contracted


def _operand_bytes(instruction: _Instruction, body: _Body) -> int:
    """Bytes of an instruction that is its own kernel: its results without workspaces, and each operand once."""
    if instruction.operation in ("slice", "dynamic-slice"):
        return 2 * instruction.bytes
    if instruction.operation == "dynamic-update-slice":
        return 2 * body[instruction.operands[1]].bytes
    results = ARRAY.findall(instruction.type)
    if instruction.operation == "custom-call":
        results = [array for array in results if array[:2] not in WORKSPACE]
    if instruction.operation == "copy-start":  # (result, operand, context)
        results = results[:1]
    return sum(array_bytes(*array) for array in results) + sum(body[name].bytes for name in dict.fromkeys(instruction.operands))


def _fusion_bytes(fusion: _Instruction, body: _Body, fused: _Body) -> int:
    """Bytes that a fusion reads of its operands and writes."""
    results = _results(fused)
    in_place = {result.name: result for result in results if result.operation in ("dynamic-update-slice", "scatter")}
    written = sum(fused[result.operands[2 if result.operation == "scatter" else 1]].bytes if result.name in in_place else result.bytes for result in results)
    needed = _elements_needed(fused, in_place)
    read: dict[str, float] = collections.defaultdict(float)
    for instruction in fused.values():
        if instruction.operation == "parameter":
            operand = fusion.operands[int(re.search(r"parameter\((\d+)\)", instruction.line)[1])]  # type: ignore[index]
            share = needed[instruction.name] / max(1, math.prod(instruction.shape))
            read[operand] = min(body[operand].bytes, read[operand] + share * instruction.bytes)
    return round(written + sum(read.values()))


def _elements_needed(fused: _Body, in_place: _Body) -> dict[str, float]:
    """How many elements of each instruction the results of a fusion depend on: all, or those in the slices that are taken of it."""
    needed: dict[str, float] = dict.fromkeys(fused, 0.0)
    taken: set[tuple[str, str]] = set()  # slices of the same elements count once
    for instruction in reversed(fused.values()):
        if instruction.root:
            needed[instruction.name] = math.prod(instruction.shape) if instruction.operation != "tuple" else 1.0
        for index, name in enumerate(dict.fromkeys(instruction.operands)):
            size = math.prod(fused[name].shape) if ARRAY.search(fused[name].type) else 0
            if instruction.name in in_place and index == 0:
                amount = 0.0 if instruction.operation == "dynamic-update-slice" else math.prod(fused[instruction.operands[2]].shape)
            elif instruction.operation in ("tuple", "dynamic-update-slice", "scatter"):
                amount = size
            elif instruction.operation in WHOLE:
                amount = size if needed[instruction.name] else 0.0
            else:
                amount = needed[instruction.name]
            same = (name, instruction.line.partition(" = ")[2].partition(", metadata=")[0])
            if instruction.operation in ("slice", "dynamic-slice", "gather") and same in taken:
                continue
            taken.add(same)
            needed[name] = min(size, needed[name] + amount)
    return needed
