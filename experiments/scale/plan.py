"""The plan on paper for XL: what a step computes and sends, and how long a run takes, from layers, width and mesh: `python -m experiments.scale.plan`.

Writes experiments/results/plan.json and plan.md and prints the Markdown. Where
experiments/results/aot.json holds a row of the same pod, the bytes of the formulas stand beside those that the compiler's program moves. Nothing was run:
times are arithmetic on the makers' peaks and link speeds, and those of the communication are lower bounds (every link busy, no latency).
"""

import dataclasses
import json
import math
import pathlib

from configs import xl
from experiments.report.provenance import provenance
from igpt_jax.cli import Parser, prepare_folder, program
from igpt_jax.distributed.topology import CHIPS
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.training.metrics import peak_flops

RESULTS = pathlib.Path(__file__).parents[1] / "results"
SIDES = (32, 64)
UTILISATIONS = (0.4, 0.5, 0.6)
TOLERANCE = 0.03  # between the formulas' bytes and the compiler's: it pads matrices to whole tiles, and the formulas leave the norms out
DAY = 86_400
BOOK = "https://jax-ml.github.io/scaling-book"


@dataclasses.dataclass(frozen=True)
class Links:
    """Bytes a second that leave one chip, one way."""

    device_kind: str
    link: float  # of one link to a neighbour
    outside: float  # of one chip to other slices: the data centre's network; 0: not asked here
    source: str


LINKS = {
    # BOOK/tpus: ICI one way per link, DCN "typically" per chip. Google's pages give both directions of all links: v5p 1,200 GB/s of 6 links, v5e 400 of 4
    # and v6e 800 of 4, which is 100, 50 and 100 GB/s a link, a tenth above the book. The smaller numbers stand here.
    "v4": Links("TPU v4", 4.5e10, 6.25e9, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v4: bisection of 16x16x16 24 TB/s, 47 GB/s a link"),
    "v5p": Links("TPU v5", 9e10, 6.25e9, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v5p: 1,200 GB/s both ways, DCN 50 Gbit/s"),
    "v5e": Links("TPU v5 lite", 4.5e10, 3.125e9, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v5e: 400 GB/s both ways, 2 x 100 Gbit/s a host of 8"),
    "v6e": Links("TPU v6 lite", 9e10, 1.25e10, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v6e: 3,200 Gbit/s, 4 x 200 Gbit/s a host of 8"),
    # NVLink 900 GB/s both ways is 450 out of a GPU; 8 x 400 Gbit/s InfiniBand is 400 GB/s out of a host. A gather over hosts brings each byte into a host
    # once for its 8 GPUs, so the slower of the two bounds it (BOOK/gpus, collectives above the node).
    "h100": Links("H100", min(4.5e11, 4e11), 0.0, f"{BOOK}/gpus; developer.nvidia.com: HGX H100, NVLink 900 GB/s both ways; DGX H100 guide: 8 x ConnectX-7"),
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """Devices, and how the recipe is laid on them."""

    topology: str
    links: int  # that the busiest chip has for fsdp: 6 or 4 on a torus, 3 or 2 at the corner of a block too small to be one
    tensor: int = 1  # neighbours on part of a ring of 16: a line, whose ends have one link
    data: int = 1
    batch: int = 64

    @property
    def kind(self) -> str:
        return self.topology.partition("-")[0]

    @property
    def chips(self) -> int:
        count, _, slices = self.topology.partition("-")[2].partition("x")
        return int(count) // CHIPS[self.kind].cores * int(slices or 1)

    @property
    def fsdp(self) -> int:
        return self.chips // (self.tensor * self.data)

    def command(self, side: int) -> str:
        """The row of aot.json, as experiments/scale/aot_table.py names it."""
        words = [f"configs/xl.py --topology={self.topology}"]
        words += ["--config.data.image_size=32"] if side == 32 else []
        words += [f"--config.mesh.tensor={self.tensor}"] if self.tensor > 1 else []
        return " ".join(words + ([f"--config.mesh.data={self.data} --config.batch_size={self.batch}"] if self.data > 1 else []))


PODS = (
    Pod("v4-128", links=6),  # 4x4x4, a torus
    Pod("v5e-256", links=4, tensor=4),  # 16x16, a torus
    Pod("v5p-64", links=3),  # 2x4x4, no torus
    Pod("v5e-256x2", links=4, tensor=4, data=2, batch=128),
    Pod("v6e-64", links=2),  # 8x8, no torus
    Pod("h100-64", links=1),
)


def model_config(side: int) -> ModelConfig:
    """XL's model for images of this side."""
    config = xl.get_config()
    config.data.image_size = side
    return ModelConfig(**config.model)


def paper_flops(model: ModelConfig, causal: bool) -> float:
    """FLOPs of training on one image by hand: 6 for each weight of 12 L D^2 + V D and token, 12 L D for each pair of tokens or each half of them."""
    weights = 12 * model.layers * model.width**2 + model.vocabulary * model.width
    pairs = model.positions**2 / (2 if causal else 1)
    return 6 * weights * model.positions + 12 * model.layers * model.width * pairs


def hardware_flops(model: ModelConfig) -> float:
    """What a device computes for one image: under remat=full the blocks' forward pass once more, which is a fourth third of all but the logits."""
    logits = 6 * model.vocabulary * model.width * model.positions
    blocks = model.training_flops() - logits
    return logits + blocks * (4 / 3 if model.remat == "full" else 1)


def layer_weights(model: ModelConfig) -> int:
    """Weights in the matrices of one block."""
    return 4 * model.width**2 + (2 if model.activation == "gelu" else 3) * model.width * model.mlp


def moved(model: ModelConfig, pod: Pod, batch: int) -> dict[str, float]:
    """Bytes of the arrays that one device's collectives over the layers give or take in a step, whole: how aot.json counts them.

    gather: every matrix in the forward pass and again in the backward; scatter: its gradient once; tensor: all-reduces of activations, two forward, two
    backward and under remat the attention's once more; slices: the device's own part of the gradient. All in `dtype`, in which the products are.
    """
    size = 4 if model.dtype == "float32" else 2
    weights = size * model.layers * layer_weights(model) / pod.tensor
    reduces = 0 if pod.tensor == 1 else 5 if model.remat == "full" else 4
    return {
        "gather": 2 * weights,
        "scatter": weights,
        "tensor": reduces * _activations(model, pod, batch),
        "slices": weights / pod.fsdp if pod.data > 1 else 0,
    }


def sent(model: ModelConfig, pod: Pod, batch: int) -> dict[str, float]:
    """Bytes that one device sends in a step, and receives as many: on a ring of n, (n - 1) / n of the array, twice that for an all-reduce."""
    share = {"gather": _ring(pod.fsdp), "scatter": _ring(pod.fsdp), "tensor": 2 * _ring(pod.tensor), "slices": 2 * _ring(pod.data)}
    return {name: share[name] * size for name, size in moved(model, pod, batch).items()}


def communication_seconds(model: ModelConfig, pod: Pod, batch: int) -> dict[str, float]:
    """Seconds of a step's communication inside the slices, where fsdp and tensor share the links, and between them."""
    bytes_, links = sent(model, pod, batch), LINKS[pod.kind]
    inside = (bytes_["gather"] + bytes_["scatter"]) / (pod.links * links.link) + bytes_["tensor"] / links.link
    return {"inside": inside, "between": bytes_["slices"] / links.outside if pod.data > 1 else 0.0}


def compute_seconds(model: ModelConfig, pod: Pod, batch: int, utilisation: float) -> float:
    """Seconds of a step at this share of the chips' peak, in FLOPs of the model (MFU)."""
    return batch * model.training_flops() / (pod.chips * peak_flops(LINKS[pod.kind].device_kind) * utilisation)


def hiding_batch(model: ModelConfig, pod: Pod, utilisation: float) -> float:
    """The images from which a step computes as long as it communicates; infinite where activations alone take longer than the products on them."""
    compute = compute_seconds(model, pod, 1, utilisation)
    fixed, one = communication_seconds(model, pod, 0), communication_seconds(model, pod, 1)
    spare = compute - (one["inside"] - fixed["inside"])
    return max(fixed["inside"] / spare, fixed["between"] / compute) if spare > 0 else math.inf


def pod_row(pod: Pod, side: int) -> dict:
    """Everything said of one pod at one size."""
    model, config = model_config(side), xl.get_config()
    images = config.batch_size * config.steps
    top = model.training_flops() / hardware_flops(model)  # the MFU of a chip that computes at its peak
    days = {f"{share:.0%}": images / pod.batch * compute_seconds(model, pod, pod.batch, share) / DAY for share in UTILISATIONS}
    hides = {name: hiding_batch(model, pod, share) for name, share in (("50%", 0.5), ("peak", top))}
    return {
        "topology": pod.topology,
        "side": side,
        "chips": pod.chips,
        "mesh": {"data": pod.data, "fsdp": pod.fsdp, "tensor": pod.tensor},
        "batch": pod.batch,
        "steps": images // pod.batch,
        "sent_bytes": sent(model, pod, pod.batch),
        "communication_seconds": communication_seconds(model, pod, pod.batch),
        "step_seconds": {f"{share:.0%}": compute_seconds(model, pod, pod.batch, share) for share in UTILISATIONS},
        "days": days,
        "chip_days": {share: pod.chips * value for share, value in days.items()},
        "hiding_batch": {name: math.ceil(value) if math.isfinite(value) else None for name, value in hides.items()},
        "least_batch": pod.fsdp * pod.data,
    }


def compare(model: ModelConfig, pod: Pod, row: dict) -> list[dict]:
    """The formulas beside the collectives of a row of aot.json inside its loop over layers: {what, formula, compiled, ratio, kinds, note}.

    Where the compiler moves shards round a ring during the products (collective-permute), gathers and scatters are compared together. The norms' gradients
    are left out.
    """
    batch = row["flops"] / model.training_flops()
    formula, kinds = moved(model, pod, batch), {one["kind"]: one for one in row["collectives"] if one["in_loop"]}
    sizes = {name: one["bytes"] for name, one in kinds.items()}
    norms = 4 * 2 * model.width * model.layers
    sizes["all-reduce"] = max(0, sizes.get("all-reduce", 0) - norms)
    if kinds.get("collective-permute", {"executions": 0})["executions"] > 12 * model.layers:
        formula["gather and scatter"] = formula["gather"] + formula["scatter"]
        found = {"gather and scatter": ("all-gather, collective-permute", sizes.get("all-gather", 0) + sizes["collective-permute"])}
    else:
        gradients = "reduce-scatter" if "reduce-scatter" in sizes else "all-reduce"
        found = {"gather": ("all-gather", sizes.get("all-gather", 0)), "scatter": (gradients, sizes[gradients])}
    if pod.tensor > 1:
        found["tensor"] = ("all-reduce", sizes["all-reduce"])
    if pod.data > 1:
        found["slices"] = ("send", sizes.get("send", 0) - norms)
    checks = []
    for what, (kind, size) in found.items():
        one = {"what": what, "formula": formula[what], "compiled": size, "ratio": size / formula[what], "kind": kind}
        note = _note(model, one, kinds)
        if note.endswith("twice the traffic"):
            note += f", {sent(model, pod, batch)[what] / (pod.links * LINKS[pod.kind].link):.3f} s more a step"
        checks.append(one | {"note": note})
    return checks


def _activations(model, pod, batch):
    """Bytes of one activation of every layer on one device, whole along the width."""
    return (4 if model.dtype == "float32" else 2) * model.layers * model.positions * model.width * batch / (pod.fsdp * pod.data)


def _note(model, check, kinds):
    """What the compiler does otherwise; "" where it does as the formula says."""
    what, kind, agrees = check["what"], check["kind"], abs(check["ratio"] - 1) <= TOLERANCE
    if what == "scatter" and kind == "all-reduce" and agrees:
        return "all-reduce in place of reduce-scatter: twice the traffic"
    if agrees:
        return ""
    if what == "gather and scatter":
        return f"shards go round rings during the products: {check['ratio']:.2f} x the bytes"
    counted, formula = round(kinds[kind]["executions"] / model.layers), {"gather": 8, "scatter": 4, "tensor": 5, "slices": 4}[what]
    return f"{counted} {kind}s a layer where the formula has {formula}: {check['ratio']:.2f} x the bytes"


def plan(aot_rows: dict) -> dict:
    """The whole plan; `aot_rows` are the rows of aot.json, {} without."""
    rows, checks = [pod_row(pod, side) for side in SIDES for pod in PODS], []
    for side in SIDES:
        for pod in PODS:
            row = aot_rows.get(pod.command(side), {})
            if "collectives" in row:
                compared = compare(model_config(side), pod, row)
                checks += [{"topology": pod.topology, "side": side} | check for check in compared]
    flops = {}
    for side in SIDES:
        model = model_config(side)
        flops[str(side)] = {
            "causal": paper_flops(model, True),
            "full": paper_flops(model, False),
            "training_flops": model.training_flops(),
            "hardware": hardware_flops(model),
        }
    links = {name: dataclasses.asdict(one) | {"peak": peak_flops(one.device_kind)} for name, one in LINKS.items()}
    return {"links": links, "flops": flops, "pods": rows, "checks": checks}


def markdown(found: dict) -> str:
    """plan.md, from plan.json alone."""
    parts = ["# XL on paper", _flops_text(found), _pods_table(found), _legend(found), _links_table(found)]
    return "\n\n".join(parts + ([_checks_table(found)] if found["checks"] else [])) + "\n"


def readme_block(found: dict) -> str:
    """What README says of it, from plan.json alone."""
    agree = sum(not one["note"] for one in found["checks"])
    said = f"Of {len(found['checks'])} comparisons with the compiled programs' bytes {agree} agree within {TOLERANCE:.0%}; the others, with"
    more = f"{said if found['checks'] else 'With'} link speeds and their sources: [plan.md](experiments/results/plan.md)."
    return "\n\n".join([_pods_table(found), f"{_legend(found)} {more}"]) + "\n"


def _flops_text(found):
    return "\n".join(
        ["| XL, one image | model FLOPs (`training_flops`) | by hand, causal | by hand, full attention | computed under remat=full |", "|---|---|---|---|---|"]
        + [
            f"| {side} x {side} | {one['training_flops'] / 1e12:.1f} T | {one['causal'] / 1e12:.1f} T | {one['full'] / 1e12:.1f} T "
            f"| {one['hardware'] / 1e12:.1f} T ({one['hardware'] / one['training_flops']:.2f} x) |"
            for side, one in found["flops"].items()
        ]
    )


def _pods_table(found):
    head = ("pod, side", "chips", "mesh", "batch", "GB sent by a device: fsdp, tensor, between slices", "seconds of it")
    head += ("step at 40, 50, 60 % MFU, s", "days", "chip-days", "hides from (50 % MFU; peak)")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found["pods"]:
        bytes_, seconds = row["sent_bytes"], row["communication_seconds"]
        volumes = [bytes_["gather"] + bytes_["scatter"], bytes_["tensor"], bytes_["slices"]]
        cells = [f"{row['topology']}, {row['side']}", str(row["chips"])]
        cells += [" x ".join(f"{name} {size}" for name, size in row["mesh"].items() if size > 1), str(row["batch"])]
        cells += [", ".join(f"{size / 1e9:.2f}" if size else "-" for size in volumes)]
        cells += [f"{seconds['inside']:.3f}" + (f" + {seconds['between']:.3f}" if seconds["between"] else "")]
        for name, form in (("step_seconds", ".2f"), ("days", ".1f"), ("chip_days", ",.0f")):
            cells.append(", ".join(f"{value:{form}}" for value in row[name].values()))
        cells.append("; ".join(f"{size:,}" if size else "never" for size in row["hiding_batch"].values()))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _legend(found):
    row = found["pods"][0]
    runs, flops = row["batch"] * row["steps"] / 1e6, found["flops"][str(row["side"])]
    return (
        f"Arithmetic by `python -m experiments.scale.plan`, not run. Days are for the paper's {runs:,.0f} million images: {row['steps']:,} "
        f"steps of {row['batch']}, or half the steps of twice the batch. 60 % MFU is {0.6 * flops['hardware'] / flops['training_flops']:.0%} of the peak under "
        "remat=full. "
        "A device receives as much as it sends: bfloat16 matrices gathered forward and again backward, their gradients scattered, activations summed over "
        "`tensor`. Seconds are a lower bound: every link busy, no latency; fsdp uses all links of the chip with the fewest, tensor the one at the end of its "
        "line; after `+` the data centre's network, which works at the same time. `hides from` is the batch in images from which a step computes as long as it "
        "communicates, where its products run at 50 % MFU, and where at the peak; `never` where summing activations alone takes longer. The mesh takes no "
        "batch below its data x fsdp."
    )


def _links_table(found):
    lines = ["| chip | bf16 peak, TFLOP/s | link, GB/s one way | other slices, GB/s | source |", "|---|---|---|---|---|"]
    for name, one in found["links"].items():
        outside = f"{one['outside'] / 1e9:g}" if one["outside"] else "-"
        lines.append(f"| {name} | {one['peak'] / 1e12:g} | {one['link'] / 1e9:g} | {outside} | {one['source']} |")
    return "\n".join(lines)


def _checks_table(found):
    lines = [
        "The formulas' arrays beside those of the compiled program (`experiments/results/aot.json`), GB in the loop over layers on one device; "
        f"within {TOLERANCE:.0%} is agreement (at tensor 4 the 12 rows of `attention_output` on a device are padded to 16):",
        "",
        "| pod, side | what | formula | compiled | ratio | by | the compiler |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["checks"]:
        sizes = f"{one['formula'] / 1e9:.2f} | {one['compiled'] / 1e9:.2f} | {one['ratio']:.2f}"
        lines.append(f"| {one['topology']}, {one['side']} | {one['what']} | {sizes} | {one['kind']} | {one['note'] or 'agrees'} |")
    return "\n".join(lines)


def _ring(size):
    return (size - 1) / size


def main() -> None:
    parser = Parser(prog="python -m experiments.scale.plan", description=__doc__)
    parser.add_argument("--aot", type=pathlib.Path, default=RESULTS / "aot.json", help="the compiled rows to compare with")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="directory of plan.json and plan.md")
    arguments = parser.parse_args()
    prepare_folder(arguments.out)
    rows = json.loads(arguments.aot.read_text())["rows"] if arguments.aot.exists() else {}
    found = provenance("python -m experiments.scale.plan") | plan(rows)
    (arguments.out / "plan.json").write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads((arguments.out / "plan.json").read_text())
    (arguments.out / "plan.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    program(main)
