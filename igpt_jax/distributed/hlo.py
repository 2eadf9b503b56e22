"""Collectives in the text of an optimised HLO module: how often each runs in one step, and its bytes.

XLA does not document this text as an interface. The expressions here were tried on what jax 0.10.2 gives for three compilers: XLA:CPU, libtpu 0.0.42.1 and
the CUDA 13 plugin 0.10.2 (the rows of experiments/results/aot.json). tests/distributed/data has a text of each.
"""

import math
import re
from typing import Any, TypeAlias

Computations: TypeAlias = dict[str, list[str]]  # name -> lines; the entry is called "ENTRY"

COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|send|recv)(-start)?\(")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
NAME = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b(bf|f|s|u|pred)(\d*)(?:e\w+)?\[([\d,]*)\]")  # kind, bits, shape


def collectives(text: str) -> list[dict[str, Any]]:
    """Return the collectives of an optimised HLO module as rows {kind, in_loop, operations, executions, bytes}, of all executions in one step.

    Bytes are those of the whole array: after a gather, before a scatter, and on both sides of an all-reduce. An operation is a channel, because the
    compiler clones operations to overlap them, or moves one iteration out of a loop. TPU compilers write a reduce-scatter as an all-reduce inside a
    computation of that name.
    """
    computations = computations_of(text)
    counts = executions_of(computations)
    channels: dict[tuple[str, str], tuple[int, int]] = {}  # (channel, or line without one; kind) -> (executions, bytes of each)
    for name, lines in computations.items():
        for line in lines:
            match = COLLECTIVE.search(line)
            if not match or not counts[name]:
                continue
            types, operation, started = match.groups()
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else operation
            channel = re.search(r"channel_id=(\d+)", line)
            size = _bytes(types, operation, started=bool(started)) * (_group_size(line) if operation == "reduce-scatter" and not started else 1)
            executions = 1 if name.startswith("async_collective_fusion") else counts[name]  # the fusion continues one that another computation started
            key = (channel[1] if channel else line, kind)
            channels[key] = max(channels.get(key, (0, 0)), (executions, size))
    rows: dict[tuple[str, bool], dict[str, int]] = {}
    for (_, kind), (executions, size) in channels.items():
        row = rows.setdefault((kind, executions > 1), {"operations": 0, "executions": 0, "bytes": 0})
        row["operations"] += 1
        row["executions"] += executions
        row["bytes"] += executions * size
    return [{"kind": kind, "in_loop": in_loop} | row for (kind, in_loop), row in sorted(rows.items())]


def computations_of(text: str) -> Computations:
    """The lines of every computation of a module."""
    computations: Computations = {}
    lines: list[str] = []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = computations.setdefault("ENTRY" if header[1] else header[2], [])
        elif line.startswith(" "):
            lines.append(line)
    return computations


def executions_of(computations: Computations) -> dict[str, int]:
    """How many times each computation runs in one step; 0 for one that is never called."""
    counts = dict.fromkeys(computations, 0)

    def visit(name: str, count: int) -> None:
        counts[name] = max(counts[name], count)  # clones of one computation take turns
        for line in computations[name]:
            iterations = _iterations(line, computations) if " while(" in line else 1
            for names in CALLED.findall(line):
                for called in NAME.findall(names):
                    if called in computations and counts[called] < count * iterations:
                        visit(called, count * iterations)

    visit("ENTRY", 1)
    return counts


def _iterations(line: str, computations: Computations) -> int:
    """Iterations of a `while`: the compiler's count, else the bound in its condition over the step of its counter; 1 if neither is there."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    condition, body = (_definitions(_called(line, role, computations)) for role in ("condition", "body"))
    bounds = [int(match[1]) for value in condition.values() if (match := re.search(r"^[su]32\[\]\S* constant\((\d+)\)", value))]
    counters = [int(match[1]) for value in condition.values() if (match := re.search(r"^[su]32\[\].* get-tuple-element\(.*\), index=(\d+)", value))]
    step = _counter_step(body, counters[0]) if counters else 1
    return -(-max(bounds, default=1) // step)


def _called(line: str, role: str, computations: Computations) -> list[str]:
    """Lines of the computation that a `while` calls as its `condition` or `body`."""
    name = re.search(rf"{role}=%([\w.-]+)", line)
    return computations.get(name[1], []) if name else []


def _counter_step(body: dict[str, str], index: int) -> int:
    """The constant that a loop's body adds to element `index` of its tuple; 1 if it is no plain addition."""
    elements = NAME.findall(body.get("ROOT", "").partition(" tuple(")[2].partition(")")[0])
    value = body.get(elements[index], "") if index < len(elements) else ""
    if copy := re.search(r" copy\(%([\w.-]+)\)", value):
        value = body.get(copy[1], "")
    operands = NAME.findall(value.partition(" add(")[2].partition(")")[0])
    constants = [re.search(r" constant\((\d+)\)", body.get(name, "")) for name in operands]
    return next((int(constant[1]) for constant in constants if constant), 1)


def _definitions(lines: list[str]) -> dict[str, str]:
    """Name -> text after its `=`; the last instruction of a computation is called ROOT."""
    matches = (re.match(r"\s*(ROOT )?%([\w.-]+) = (.*)", line) for line in lines)
    return {"ROOT" if match[1] else match[2]: match[3] for match in matches if match}


def _bytes(types: str, operation: str, started: bool) -> int:
    """Bytes of the arrays in an instruction's type. The start of an asynchronous operation lists its operands and its results: the larger ones count."""
    types = re.sub(r"\{[^}]*\}", "", types)  # layouts, whose tiles have parentheses too
    several = re.match(r"\(\((.*?)\), (.*)\)$", types)
    groups = several.groups() if several else (types,)
    sizes = [[array_bytes(*array) for array in ARRAY.findall(group)] for group in groups]
    return max(sizes[0], default=0) if started and not several and operation != "all-reduce" else max(map(sum, sizes))


def array_bytes(kind: str, bits: str, shape: str) -> int:
    """Bytes of an array by the parts of its type: of bf16[8,128] they are bf, 16 and 8,128."""
    return math.prod(int(size) for size in shape.split(",") if size) * (1 if kind == "pred" else int(bits)) // (1 if kind == "pred" else 8)


def _group_size(line: str) -> int:
    """How many devices take part in an operation together; ValueError where its replica_groups have an unknown form."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(counted[1])
    if axes := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'\w+'", axes[2]))
    raise ValueError(f"replica_groups of an unknown form: {line.strip()[:200]}")
