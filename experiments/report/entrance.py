"""README's short tables; the pages of docs/reference have the whole ones. `python -m experiments.report.readme` writes the blocks."""

import pathlib

from experiments.bench import rounds
from experiments.report import claims, claims_table, findings
from experiments.report.measurements import read_results

CHOSEN = {  # sentence of the claims -> what the paper has for it
    "the best inner layer is above the last": "iGPT-L on CIFAR-10: 96.4 % at layer 21 of 48, last 94.0 % (figure 2)",
    "better generative models have better features": "S, M, L: 90.6, 95.2, 96.3 % at 2.0895, 2.0614, 2.0467 nats (figure 3)",
    "features of a model probe better than raw pixels": "taken for granted",
    "next pixel probes better than masked pixels": "on CIFAR-10 and ImageNet, with the best layer (figure 4)",
    "fine-tuning is above the linear probe": "CIFAR-10 99.0 after 96.3 % (tables 1 and 3)",
    "more labels are better": "73.2, 87.6, 94.3 % with 4, 25, 400 labels of each class (table 4)",
}
SPEED = (  # file, peer that it stands beside, what was measured
    ("bench_train", "torch-compiled", "training step, CPU, beside PyTorch compiled"),
    ("bench_sample", "hugging-face", "completions, CPU, beside Hugging Face's generate"),
    ("gpu/bench_train_s_torch", "torch-compiled", "training step of S, GPU, beside PyTorch compiled"),
    ("gpu/bench_sample_s_hf", "hugging-face", "completions by S, GPU, beside Hugging Face's generate"),
)


def findings_block(results: pathlib.Path) -> str:
    """Return a row for each of CHOSEN: the paper, and how many comparisons here support or contradict it; KeyError if there is no such sentence."""
    found = read_results(results / "claims.json")["claims"]
    lines = ["| sentence of the paper | there | here: supported, contradicted, undecided |", "|---|---|---|"]
    for text, paper in CHOSEN.items():
        rows = claims_table.rows_about(found, text)
        if not rows:
            raise KeyError(f"no claim is about the sentence {text!r}: {claims.COMMAND} writes them")
        lines.append(f"| {text} | {paper} | {', '.join(findings.counts(rows))} ({findings.span(rows)}) |")
    return "\n".join([*lines, ""])


def speed_block(results: pathlib.Path) -> str:
    """Return a row for each of SPEED: how many times as fast as the peer, in how many rounds, and the hardware; "not run" where there is no file."""
    lines = ["| work | times as fast | rounds | hardware |", "|---|---|---|---|"]
    for name, peer, what in SPEED:
        path = results / f"{name}.json"
        if path.exists():
            result = rounds.read(path, "gpu" if name.startswith("gpu/") else "cpu")
            beside = result["programs"][peer]
            times, turns = (beside["failed"], "") if "failed" in beside else (f"{beside['ours_is_faster_by']:.2f}", len(beside["ratios"]))
            lines.append(f"| {what} | {times} | {turns} | {result['hardware']} |")
        else:
            lines.append(f"| {what} | not run | | |")
    return "\n".join([*lines, ""])
