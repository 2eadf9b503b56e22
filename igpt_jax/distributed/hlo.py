"""What a compiler says of its program: the collectives in the text of an optimised HLO module, how often each runs in a step, and their bytes."""

import math
import re


def collectives(text: str) -> list[dict]:
    """The collectives of an optimised HLO module: {kind, in_loop, operations, executions, bytes}; bytes are those of the whole arrays, of all executions.

    The whole array is what a device has after a gather, before a scatter, and on both sides of an all-reduce. An operation is a channel: the compiler
    clones one to overlap it, or takes a turn of the loop out of it. On a TPU a reduce-scatter is written as an all-reduce inside a computation of that name.
    """
    computations = _computations(text)
    times = _times(computations)
    channels = {}
    for name, lines in computations.items():
        for line in lines:
            found = re.search(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|send|recv)(-start)?\(", line)
            if found and times.get(name):
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else found[2]
                channel = re.search(r"channel_id=(\d+)", line)
                size = _bytes(found[1], found[2], started=bool(found[3])) * (_group(line) if found[2] == "reduce-scatter" and not found[3] else 1)
                part = name.startswith("async_collective_fusion")  # of one begun elsewhere, moved on beside other work
                key = (channel[1] if channel else line, kind)
                channels[key] = max(channels.get(key, (0, 0)), (1 if part else times[name], size))
    rows = {}
    for (_, kind), (executions, size) in channels.items():
        row = rows.setdefault((kind, executions > 1), {"operations": 0, "executions": 0, "bytes": 0})
        row["operations"] += 1
        row["executions"] += executions
        row["bytes"] += executions * size
    return [{"kind": kind, "in_loop": in_loop} | row for (kind, in_loop), row in sorted(rows.items())]


def _computations(text):
    """Name -> lines of every computation of a module; the entry is called "ENTRY"."""
    found, lines = {}, []
    for line in text.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = found.setdefault("ENTRY" if opened[1] else opened[2], [])
        elif line.startswith(" "):
            lines.append(line)
    return found


def _times(computations):
    """How many times each computation runs in one step; loops say how often they turn."""
    times = dict.fromkeys(computations, 0)

    def visit(name, count):
        times[name] = max(times[name], count)  # clones of one computation run in turns
        for line in computations[name]:
            turns = _turns(line, computations) if " while(" in line else 1
            for called in re.findall(r"(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)", line):
                for other in re.findall(r"%([\w.-]+)", called):
                    if other in computations and times[other] < count * turns:
                        visit(other, count * turns)

    visit("ENTRY", 1)
    return times


def _turns(line, computations):
    """How often a loop turns: as the compiler notes it, or the bound of its condition over the step of its counter; 1 where neither is plain."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(noted[1])
    condition, body = (_definitions(computations.get(re.search(rf"{name}=%([\w.-]+)", line)[1], [])) for name in ("condition", "body"))
    bounds = [int(found[1]) for one in condition.values() if (found := re.search(r"^[su]32\[\]\S* constant\((\d+)\)", one))]
    place = [int(found[1]) for one in condition.values() if (found := re.search(r"^[su]32\[\].* get-tuple-element\(.*\), index=(\d+)", one))]
    step = _step(body, place[0]) if place else 1
    return -(-max(bounds, default=1) // step)


def _step(body, place):
    """By how much a loop's body raises the number at that place of what it carries."""
    operands = re.findall(r"%([\w.-]+)", body.get("ROOT", "").partition(" tuple(")[2].partition(")")[0])
    raised = body.get(operands[place], "") if place < len(operands) else ""
    if copied := re.search(r" copy\(%([\w.-]+)\)", raised):
        raised = body.get(copied[1], "")
    numbers = [re.search(r" constant\((\d+)\)", body.get(name, "")) for name in re.findall(r"%([\w.-]+)", raised.partition(" add(")[2].partition(")")[0])]
    return next((int(number[1]) for number in numbers if number), 1)


def _definitions(lines):
    """Name -> what stands behind its `=`; the last of a computation is called ROOT."""
    found = (re.match(r"\s*(ROOT )?%([\w.-]+) = (.*)", line) for line in lines)
    return {"ROOT" if one[1] else one[2]: one[3] for one in found if one}


def _bytes(types, kind, started):
    """Bytes of the arrays in an instruction's type; the beginning of an asynchronous operation names operands and results, of which the larger counts."""
    types = re.sub(r"\{[^}]*\}", "", types)  # layouts, whose tiles have brackets too
    several = re.match(r"\(\((.*?)\), (.*)\)$", types)
    groups = several.groups() if several else (types,)
    sizes = [[_size(*found) for found in re.findall(r"\b(bf|f|s|u|pred)(\d*)(?:e\w+)?\[([\d,]*)\]", group)] for group in groups]
    return max(sizes[0], default=0) if started and not several and kind != "all-reduce" else max(map(sum, sizes))


def _size(kind, bits, shape):
    """Bytes of an array of HLO's type, as bf 16 and 8,128."""
    return math.prod(int(size) for size in shape.split(",") if size) * (1 if kind == "pred" else int(bits)) // (1 if kind == "pred" else 8)


def _group(line):
    """How many devices take part in an operation together."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(counted[1])
    sizes = dict(re.findall(r"('\w+')=(\d+)", line))
    return math.prod(int(sizes[name]) for name in re.findall(r"'\w+'", re.search(r"replica_groups=mesh\[.*?\] \{(.*?)\}", line)[1]))
