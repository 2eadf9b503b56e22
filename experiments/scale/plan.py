"""The plan of an XL run: what a step computes and sends, and how long the run takes: `python -m experiments.scale.plan`.

Writes experiments/results/plan.json and plan.md, and prints the Markdown. Everything is computed from layers, width and mesh. If
experiments/results/aot.json has a row of the same pod, the bytes of the formulas are compared with those of the compiled program. Nothing was run: times are
arithmetic from the makers' peaks and link speeds. Times of communication are lower bounds (every link busy, no latency).
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
RESOLUTIONS = (32, 64)
UTILISATIONS = (0.4, 0.5, 0.6)
TOLERANCE = 0.03  # between the bytes of the formulas and of the compiler, which pads matrices to tiles; the formulas leave out the norms
DAY = 86_400
BOOK = "https://jax-ml.github.io/scaling-book"


@dataclasses.dataclass(frozen=True)
class Links:
    """Bytes per second that one chip can send."""

    device_kind: str
    link: float  # of one link to a neighbour
    outside: float  # of one chip to other slices, through the data centre's network; 0: not needed here
    source: str


LINKS = {
    # BOOK/tpus: ICI one way per link, DCN "typically" per chip. Google's pages give both directions of all links: v5p 1,200 GB/s of 6 links, v5e 400 of 4
    # and v6e 800 of 4. That is 100, 50 and 100 GB/s per link, a tenth more than the book says. These are the smaller numbers.
    "v4": Links("TPU v4", 4.5e10, 6.25e9, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v4: bisection of 16x16x16 24 TB/s, 47 GB/s a link"),
    "v5p": Links("TPU v5", 9e10, 6.25e9, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v5p: 1,200 GB/s both ways, DCN 50 Gbit/s"),
    "v5e": Links("TPU v5 lite", 4.5e10, 3.125e9, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v5e: 400 GB/s both ways, 2 x 100 Gbit/s a host of 8"),
    "v6e": Links("TPU v6 lite", 9e10, 1.25e10, f"{BOOK}/tpus; docs.cloud.google.com/tpu/docs/v6e: 3,200 Gbit/s, 4 x 200 Gbit/s a host of 8"),
    # NVLink with 900 GB/s both ways is 450 GB/s out of a GPU; InfiniBand with 8 x 400 Gbit/s is 400 GB/s out of a host. A gather over hosts brings each byte
    # into a host once for its 8 GPUs, so the slower of the two is the bound (BOOK/gpus, collectives above the node).
    "h100": Links("H100", min(4.5e11, 4e11), 0.0, f"{BOOK}/gpus; developer.nvidia.com: HGX H100, NVLink 900 GB/s both ways; DGX H100 guide: 8 x ConnectX-7"),
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod, and the mesh of the recipe on it."""

    topology: str
    links: int  # of the chip with the fewest for fsdp: 6 or 4 on a torus, 3 or 2 at the corner of a block too small for a torus
    tensor: int = 1  # neighbours on part of a ring of 16, which is a line: a chip at its end has one link
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

    def command(self, resolution: int) -> str:
        """Return the key of the row in aot.json, as in experiments/scale/aot_table.py."""
        words = [f"configs/xl.py --topology={self.topology}"]
        words += ["--config.data.image_size=32"] if resolution == 32 else []
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


def model_config(resolution: int) -> ModelConfig:
    """Return XL's model for images of this resolution."""
    config = xl.get_config()
    config.data.image_size = resolution
    return ModelConfig(**config.model)


def paper_flops(model: ModelConfig, causal: bool) -> float:
    """Return the FLOPs of training on one image by hand: 6 (12 L D^2 + V D) for each token, and 12 L D for each pair of tokens; `causal`: half the pairs."""
    weights = 12 * model.layers * model.width**2 + model.vocabulary * model.width
    pairs = model.positions**2 / (2 if causal else 1)
    return 6 * weights * model.positions + 12 * model.layers * model.width * pairs


def hardware_flops(model: ModelConfig) -> float:
    """Return the FLOPs computed for one image; remat=full computes the forward pass of the blocks twice, so 4/3 of everything but the logits."""
    logits = 6 * model.vocabulary * model.width * model.positions
    blocks = model.training_flops() - logits
    return logits + blocks * (4 / 3 if model.remat == "full" else 1)


def layer_weights(model: ModelConfig) -> int:
    """Return the number of weights in the matrices of one block."""
    return 4 * model.width**2 + (2 if model.activation == "gelu" else 3) * model.width * model.mlp


def moved(model: ModelConfig, pod: Pod, batch: int) -> dict[str, float]:
    """Return the bytes of the full arrays in one device's collectives over the layers in a step, as aot.json counts them.

    gather: every matrix, in the forward pass and again in the backward pass. scatter: its gradient once. tensor: all-reduces of activations, two in the
    forward pass, two in the backward pass, and with remat one more of attention. slices: the device's own part of the gradient. All arrays have the `dtype`
    of the products.
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
    """Return the bytes that one device sends in a step; it receives as many. On a ring of n this is (n - 1) / n of the array, for an all-reduce twice that."""
    share = {"gather": _ring(pod.fsdp), "scatter": _ring(pod.fsdp), "tensor": 2 * _ring(pod.tensor), "slices": 2 * _ring(pod.data)}
    return {name: share[name] * size for name, size in moved(model, pod, batch).items()}


def communication_seconds(model: ModelConfig, pod: Pod, batch: int) -> dict[str, float]:
    """Return the seconds of a step's communication inside the slices, whose links fsdp and tensor share, and between slices."""
    volume, links = sent(model, pod, batch), LINKS[pod.kind]
    inside = (volume["gather"] + volume["scatter"]) / (pod.links * links.link) + volume["tensor"] / links.link
    return {"inside": inside, "between": volume["slices"] / links.outside if pod.data > 1 else 0.0}


def compute_seconds(model: ModelConfig, pod: Pod, batch: int, utilisation: float) -> float:
    """Return the seconds of a step at this utilisation of the chips' peak, counting FLOPs of the model (MFU)."""
    return batch * model.training_flops() / (pod.chips * peak_flops(LINKS[pod.kind].device_kind) * utilisation)


def hiding_batch(model: ModelConfig, pod: Pod, utilisation: float) -> float:
    """Return the batch from which computation takes as long as communication; infinite if sending activations takes longer than the products on them."""
    compute = compute_seconds(model, pod, 1, utilisation)
    fixed, with_image = communication_seconds(model, pod, 0), communication_seconds(model, pod, 1)
    spare = compute - (with_image["inside"] - fixed["inside"])
    return max(fixed["inside"] / spare, fixed["between"] / compute) if spare > 0 else math.inf


def pod_row(pod: Pod, resolution: int) -> dict:
    """Return the row of plan.json of one pod at one resolution."""
    model, config = model_config(resolution), xl.get_config()
    images = config.batch_size * config.steps
    top = model.training_flops() / hardware_flops(model)  # the MFU of a chip that computes at its peak
    days = {f"{share:.0%}": images / pod.batch * compute_seconds(model, pod, pod.batch, share) / DAY for share in UTILISATIONS}
    hides = {name: hiding_batch(model, pod, share) for name, share in (("50%", 0.5), ("peak", top))}
    return {
        "topology": pod.topology,
        "resolution": resolution,
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
    """Compare the formulas with the collectives in the loop over layers of a row of aot.json: a list of {what, formula, compiled, ratio, kind, note}.

    If the compiler moves shards round a ring during the products (collective-permute), gathers and scatters are compared together. The gradients of the
    norms are left out.
    """
    batch = row["flops"] / model.training_flops()
    formula, kinds = moved(model, pod, batch), {collective["kind"]: collective for collective in row["collectives"] if collective["in_loop"]}
    sizes = {name: collective["bytes"] for name, collective in kinds.items()}
    norms = 4 * 2 * model.width * model.layers
    sizes["all-reduce"] = max(0, sizes.get("all-reduce", 0) - norms)
    if kinds.get("collective-permute", {"executions": 0})["executions"] > 12 * model.layers:
        formula["gather and scatter"] = formula["gather"] + formula["scatter"]
        compiled = {"gather and scatter": ("all-gather, collective-permute", sizes.get("all-gather", 0) + sizes["collective-permute"])}
    else:
        gradients = "reduce-scatter" if "reduce-scatter" in sizes else "all-reduce"
        compiled = {"gather": ("all-gather", sizes.get("all-gather", 0)), "scatter": (gradients, sizes[gradients])}
    if pod.tensor > 1:
        compiled["tensor"] = ("all-reduce", sizes["all-reduce"])
    if pod.data > 1:
        compiled["slices"] = ("send", sizes.get("send", 0) - norms)
    checks = []
    for what, (kind, size) in compiled.items():
        check = {"what": what, "formula": formula[what], "compiled": size, "ratio": size / formula[what], "kind": kind}
        note = _note(model, check, kinds)
        if note.endswith("twice the traffic"):
            note += f", {sent(model, pod, batch)[what] / (pod.links * LINKS[pod.kind].link):.3f} s more a step"
        checks.append(check | {"note": note})
    return checks


def _activations(model, pod, batch):
    """Bytes of one activation of every layer on one device, with its full width."""
    return (4 if model.dtype == "float32" else 2) * model.layers * model.positions * model.width * batch / (pod.fsdp * pod.data)


def _note(model, check, kinds):
    """How the compiled program differs from the formula; "" if it agrees."""
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
    """Return the contents of plan.json without its origin; `aot_rows` are the rows of aot.json, {} if there is none."""
    rows, checks = [pod_row(pod, resolution) for resolution in RESOLUTIONS for pod in PODS], []
    for resolution in RESOLUTIONS:
        for pod in PODS:
            row = aot_rows.get(pod.command(resolution), {})
            if "collectives" in row:
                compared = compare(model_config(resolution), pod, row)
                checks += [{"topology": pod.topology, "resolution": resolution} | check for check in compared]
    flops = {}
    for resolution in RESOLUTIONS:
        model = model_config(resolution)
        flops[str(resolution)] = {
            "causal": paper_flops(model, True),
            "full": paper_flops(model, False),
            "training_flops": model.training_flops(),
            "hardware": hardware_flops(model),
        }
    links = {name: dataclasses.asdict(chip) | {"peak": peak_flops(chip.device_kind)} for name, chip in LINKS.items()}
    return {"links": links, "flops": flops, "pods": rows, "checks": checks}


def markdown(plan: dict) -> str:
    """Return plan.md from the contents of plan.json."""
    parts = ["# XL on paper", _flops_table(plan), _pods_table(plan), _legend(plan), _links_table(plan)]
    return "\n\n".join(parts + ([_checks_table(plan)] if plan["checks"] else [])) + "\n"


def readme_block(plan: dict) -> str:
    """Return README's block from the contents of plan.json."""
    agree = sum(not check["note"] for check in plan["checks"])
    comparisons = f"Of {len(plan['checks'])} comparisons with the compiled programs' bytes {agree} agree within {TOLERANCE:.0%}; the others, with"
    more = f"{comparisons if plan['checks'] else 'With'} link speeds and their sources: [plan.md](experiments/results/plan.md)."
    return "\n\n".join([_pods_table(plan), f"{_legend(plan)} {more}"]) + "\n"


def _flops_table(plan):
    return "\n".join(
        ["| XL, one image | model FLOPs (`training_flops`) | by hand, causal | by hand, full attention | computed under remat=full |", "|---|---|---|---|---|"]
        + [
            f"| {resolution} x {resolution} | {flops['training_flops'] / 1e12:.1f} T | {flops['causal'] / 1e12:.1f} T | {flops['full'] / 1e12:.1f} T "
            f"| {flops['hardware'] / 1e12:.1f} T ({flops['hardware'] / flops['training_flops']:.2f} x) |"
            for resolution, flops in plan["flops"].items()
        ]
    )


def _pods_table(plan):
    head = ("pod, resolution", "chips", "mesh", "batch", "GB sent by a device: fsdp, tensor, between slices", "seconds of it")
    head += ("step at 40, 50, 60 % MFU, s", "days", "chip-days", "hides from (50 % MFU; peak)")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in plan["pods"]:
        volume, seconds = row["sent_bytes"], row["communication_seconds"]
        volumes = [volume["gather"] + volume["scatter"], volume["tensor"], volume["slices"]]
        cells = [f"{row['topology']}, {row['resolution']}", str(row["chips"])]
        cells += [" x ".join(f"{name} {size}" for name, size in row["mesh"].items() if size > 1), str(row["batch"])]
        cells += [", ".join(f"{size / 1e9:.2f}" if size else "-" for size in volumes)]
        cells += [f"{seconds['inside']:.3f}" + (f" + {seconds['between']:.3f}" if seconds["between"] else "")]
        for name, form in (("step_seconds", ".2f"), ("days", ".1f"), ("chip_days", ",.0f")):
            cells.append(", ".join(f"{value:{form}}" for value in row[name].values()))
        cells.append("; ".join(f"{size:,}" if size else "never" for size in row["hiding_batch"].values()))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _legend(plan):
    row = plan["pods"][0]
    runs, flops = row["batch"] * row["steps"] / 1e6, plan["flops"][str(row["resolution"])]
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


def _links_table(plan):
    lines = ["| chip | bf16 peak, TFLOP/s | link, GB/s one way | other slices, GB/s | source |", "|---|---|---|---|---|"]
    for name, chip in plan["links"].items():
        outside = f"{chip['outside'] / 1e9:g}" if chip["outside"] else "-"
        lines.append(f"| {name} | {chip['peak'] / 1e12:g} | {chip['link'] / 1e9:g} | {outside} | {chip['source']} |")
    return "\n".join(lines)


def _checks_table(plan):
    lines = [
        "The formulas' arrays beside those of the compiled program (`experiments/results/aot.json`), GB in the loop over layers on one device; "
        f"within {TOLERANCE:.0%} is agreement (at tensor 4 the 12 rows of `attention_output` on a device are padded to 16):",
        "",
        "| pod, resolution | what | formula | compiled | ratio | by | the compiler |",
        "|---|---|---|---|---|---|---|",
    ]
    for check in plan["checks"]:
        sizes = f"{check['formula'] / 1e9:.2f} | {check['compiled'] / 1e9:.2f} | {check['ratio']:.2f}"
        lines.append(f"| {check['topology']}, {check['resolution']} | {check['what']} | {sizes} | {check['kind']} | {check['note'] or 'agrees'} |")
    return "\n".join(lines)


def _ring(size):
    return (size - 1) / size


def main() -> None:
    parser = Parser(prog="python -m experiments.scale.plan", description=__doc__)
    parser.add_argument("--aot", type=pathlib.Path, default=RESULTS / "aot.json", help="aot.json with the compiled rows to compare with")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder of plan.json and plan.md")
    arguments = parser.parse_args()
    prepare_folder(arguments.out)
    rows = json.loads(arguments.aot.read_text())["rows"] if arguments.aot.exists() else {}
    text = json.dumps(provenance("python -m experiments.scale.plan") | plan(rows), indent=1)
    (arguments.out / "plan.json").write_text(text + "\n")
    (arguments.out / "plan.md").write_text(markdown(json.loads(text)))
    print(markdown(json.loads(text)))


if __name__ == "__main__":
    program(main)
