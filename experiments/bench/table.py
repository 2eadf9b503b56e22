"""README's tables of speed, on a CPU and on a GPU, from the JSON files of the benchmarks; `python -m experiments.report.readme` writes them."""

import pathlib

from experiments.bench import rounds

GPU_FILES = ("train_s", "train_s_torch", "train_m", "train_l", "train_l_32", "train_l_64", "sample_s_hf", "sample_m")  # in results/gpu
PEERS = {"torch": "torch's DataLoader, same functions", "torch-pillow": "torch's DataLoader, plain Pillow"}  # of bench_data.json
WORK = {  # file -> what it measures
    "train": "training step",
    "sample": "whole images, pixel by pixel",
    "encode": "colours to codes",
    "features": "features of all layers beside logits alone",
    "probe": "probes of all layers and values of C",
}


def block(results: pathlib.Path) -> str:
    """Return both tables."""
    return "\n".join([on_a_cpu(results), "", *_gpu(results / "gpu"), ""])


def on_a_cpu(results: pathlib.Path) -> str:
    """Return the table of a CPU: a row for each program beside ours, and one for each benchmark that was not run."""
    lines = ["| work, on a CPU | ours, s | beside | s | ours is faster by (least to most of the rounds) |", "|---|---|---|---|---|"]
    origins = set()
    for name, what in WORK.items():
        path = results / f"bench_{name}.json"
        if not path.exists():
            lines.append(f"| {what} | not run | | | |")
            continue
        result = rounds.read(path, "cpu")
        origins.add(f"commit {result['commit']}, {result['hardware']}")
        for peer, program in result["programs"].items():
            if peer != "ours":
                lines.append(f"| {_link(name, what)} | {_seconds(result['programs']['ours'])} | {peer} | {_comparison(program)} |")
    lines += _data(results, origins) + _palette(results)
    return "\n".join([*lines, "", f"By `make bench`; {'; '.join(sorted(origins))}. Medians of rounds in turns; below 1 the other is the faster."])


def _gpu(results):
    """The table of one GPU: a row for each file of GPU_FILES that is there, with its peer if one was run."""
    head = "| work, on one GPU, bfloat16 | ours | MFU | peak GiB | beside | ours is faster by | rounds | commit, hardware |"
    lines = [head, "|---" * head.count(" |") + "|"]
    for name in GPU_FILES:
        path = results / f"bench_{name}.json"
        if not path.exists():
            continue
        result = rounds.read(path, "gpu")
        size, ours = result["sizes"], result["programs"]["ours"]
        work = "training step" if "mfu" in ours else "whole images, pixel by pixel"
        shape = f"{size['layers']} layers of width {size['width']}, {size['positions']} positions, batch {result['batch']}"
        what = f"[{work}](experiments/results/gpu/bench_{name}.json): {shape}"
        mfu, peak = (f"{ours['mfu']:.1%}", f"{ours['peak_gib']:.1f}") if "mfu" in ours else ("", "")
        [(peer, theirs)] = [item for item in result["programs"].items() if item[0] != "ours"] or [("", None)]
        beside = f"{peer}, {theirs['tokens_per_second']:,.0f} tokens/s | {theirs['ours_is_faster_by']:.2f}" if theirs else " | "
        origin = f"{len(ours['ratios'])} | {result['commit']}, {result['hardware']}"
        lines.append(f"| {what} | {ours['tokens_per_second']:,.0f} tokens/s | {mfu} | {peak} | {beside} | {origin} |")
    return lines


def _data(results, origins):
    path = results / "bench_data.json"
    if not path.exists():
        return ["| images of the input pipeline | not run | | | |"]
    result, lines = rounds.read(path, "cpu"), []
    origins.add(f"commit {result['commit']}, {result['hardware']}")
    for source, measured in result["sources"].items():
        for mine, engine in (("ours", "threads"), ("ours-processes", "processes")):
            if mine not in measured["rounds"]:
                continue
            if "failed" in measured["rounds"][mine][-1]:
                lines.append(f"| {_link('data', f'batches from {source}')} by {engine} | failed: {measured['rounds'][mine][-1]['failed'][:60]} | | | |")
                continue
            peers = {name: turns for name, turns in measured["rounds"].items() if name in PEERS}
            summary = rounds.summary({"ours": measured["rounds"][mine]} | peers, result["batch"], "images")
            by = f" by {engine}" if source == "jpeg" else ""
            what = f"{_link('data', f'batches from {source}')}{by}, {summary['ours']['images_per_second']:,.0f} images/s"
            lines += [f"| {what} | {_seconds(summary['ours'])} | {PEERS[name]} | {_comparison(summary[name])} |" for name in peers]
    return lines


def _palette(results):
    """Compare each peer with the fastest of ours whose error is not above the peer's in any round; without one, with ours until convergence."""
    result = rounds.read(results / "bench_palette.json", "cpu")
    lines = []
    for name, theirs in result["rounds"].items():
        if name.startswith("ours"):
            continue
        accurate = [program for program in result["rounds"] if program.startswith("ours") and _never_worse(result["rounds"][program], theirs)]
        mine = min(accurate, key=lambda program: result["median"][program]["seconds"], default="ours")
        ours, peer = (result["median"][program]["mse"] for program in (mine, name))
        summary = rounds.summary({"ours": result["rounds"][mine], name: theirs})
        what = f"{_link('palette', 'k-means, 512 colours')}, error {ours:.6f}" + (f", {result['early']} steps a level" if mine != "ours" else "")
        lines.append(f"| {what} | {_seconds(summary['ours'])} | {name} (error {peer:.6f}) | {_comparison(summary[name])} |")
    return lines


def _never_worse(ours, theirs):
    return all(our["mse"] <= their["mse"] for our, their in zip(ours, theirs, strict=True))


def _comparison(program):
    if "failed" in program:
        return f"failed: {program['failed'][:60]} |"
    return f"{_seconds(program)} | {program['ours_is_faster_by']:.2f} ({min(program['ratios']):.2f} to {max(program['ratios']):.2f})"


def _seconds(program):
    return f"{program['seconds']:.3g}"


def _link(name, what):
    return f"[{what}](experiments/results/bench_{name}.json)"
