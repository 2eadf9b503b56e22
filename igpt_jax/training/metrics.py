"""Reports of a training run: throughput, model FLOPs utilisation, device memory, and their output (progress bar or log lines, JSONL, TensorBoard, wandb)."""

import json
import math
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from igpt_jax.files import copy_files, one_line, write_atomically
from igpt_jax.progress import duration
from igpt_jax.training.tracking import FILE, Tracker
from igpt_jax.types import PathLike

# Dense bf16 peak of one jax device in FLOP/s, with products summed in float32 and without sparsity (data sheets of "with sparsity" say twice as much), by
# the words in jax's device_kind. Sources: NVIDIA's and Google's documents as named.
PEAK_FLOPS = {
    "GB200": 2500e12,  # Blackwell data sheet, GB200 NVL72: 5 PFLOPS of one GPU with sparsity
    "B200": 2250e12,  # Blackwell data sheet, HGX B200: 4.5 PFLOPS of one GPU with sparsity
    "GH200": 989e12,  # GH200 data sheet: the GPU of an H100 SXM
    "H200": 989e12,  # H200 data sheet, SXM: 1,979 with sparsity
    "H200 NVL": 835.5e12,  # H200 data sheet: 1,671 with sparsity
    "H100": 989e12,  # H100 data sheet, SXM: 1,979 with sparsity
    "H100 NVL": 835.5e12,  # H100 data sheet: 1,671 with sparsity
    "H100 PCIe": 756e12,  # H100 data sheet of 2022: 1,513 with sparsity
    "A100": 312e12,  # A100 data sheet, SXM and PCIe
    "V100": 125e12,  # V100 data sheet, SXM2, float16: it has no bf16
    "V100-PCIE": 112e12,  # V100 data sheet
    "V100S": 130e12,  # V100 data sheet
    "L40S": 362e12,  # L40S data sheet: 362.05, 733 with sparsity
    "L40": 181e12,  # L40 data sheet: 181.05, 362.1 with sparsity
    "L4": 121e12,  # L4 data sheet: 242 with sparsity
    "A40": 149.7e12,  # A40 data sheet: 149.7, 299.4 with sparsity
    "A10": 125e12,  # A10 data sheet: 125, 250 with sparsity
    "A10G": 70e12,  # A10G data sheet: 70, 140 with sparsity
    "RTX A6000": 154.8e12,  # GA102 whitepaper, table 3: 154.8, 309.6 with sparsity
    "GeForce RTX 3090": 71.2e12,  # RTX Blackwell whitepaper: 71.2, 142.4 with sparsity; half of float16 summed in float16, as in all GeForce
    "GeForce RTX 4090": 165.2e12,  # Ada whitepaper, appendix A: 165.2, 330.4 with sparsity
    "GeForce RTX 5090": 209.5e12,  # RTX Blackwell whitepaper: 209.5, 419 with sparsity
    "TPU v2": 22.5e12,  # Cloud TPU documentation: 45 a chip; a device is one of its two cores
    "TPU v3": 61.5e12,  # Cloud TPU documentation: 123 a chip; a device is one of its two cores
    "TPU v4": 275e12,  # Cloud TPU documentation; a device is a chip from here on
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e, Trillium
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # Cloud TPU documentation of Ironwood: 2,307 a chip, which has two devices
}
# Words after a name that make it another device, and a slice of a GPU (MIG) anywhere: GeForce RTX 4090 Laptop GPU, GeForce RTX 3090 Ti, TPU v4 lite (v4i).
OTHER_DEVICE = r"(?! (?:Ti|SUPER|D|Laptop|lite)\b)(?!.*\bMIG\b)"


def peak_flops(device_kind: str) -> float | None:
    """Return the dense bf16 peak of a device in FLOP/s; None where it is not known (a CPU)."""
    names = [name for name in PEAK_FLOPS if re.search(rf"\b{name}\b{OTHER_DEVICE}", device_kind)]
    return PEAK_FLOPS[max(names, key=len)] if names else None  # H100 NVL is H100 too


def peak_memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """Return the highest use of memory so far of the fullest of these devices, {"memory_gib": GiB}; {} where they do not report it, as CPUs."""
    statistics = [device.memory_stats() or {} for device in devices]
    peaks = [each["peak_bytes_in_use"] for each in statistics if "peak_bytes_in_use" in each]
    return {"memory_gib": max(peaks) / 2**30} if peaks else {}


class Throughput:
    """Measure the speed between two reports."""

    def __init__(self, images_per_step: int, tokens_per_image: int, flops_per_image: float, peak: float | None):
        self.images_per_step, self.tokens_per_image, self.flops_per_image, self.peak = images_per_step, tokens_per_image, flops_per_image, peak
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start a new interval, so that the time of an evaluation or a save is not counted as training."""
        self.step, self.time = step, time.perf_counter()

    def report(self, step: int) -> dict[str, float]:
        """Return images/s, tokens/s and, if the peak of all devices together is known, mfu since the last report or restart; {} if no step was made."""
        if step == self.step:
            return {}
        images = (step - self.step) * self.images_per_step / max(time.perf_counter() - self.time, 1e-9)
        self.restart(step)
        rates = {"images_per_second": images, "tokens_per_second": images * self.tokens_per_image}
        return rates | ({"mfu": images * self.flops_per_image / self.peak} if self.peak else {})


FIRST_ESTIMATE = 60  # seconds after which a run says how long it will take, if no report has said it yet
# What a line on the screen shows of the metrics, in this order; all of them are in metrics.jsonl and TensorBoard.
SHOWN = {
    "loss": "loss {:.4f}", "nats_per_pixel": "{:.4f} nats per pixel", "nats_per_pixel_ema": "ema {:.4f}",
    "accuracy": "accuracy {:6.1%}", "accuracy_ema": "ema {:6.1%}", "images": "{:,.0f} images",
    "images_per_second": "{:7,.0f} images/s", "mfu": "{:.1%} MFU", "skipped": "{:.0f} updates skipped",
}  # fmt: skip


class Writer:
    """Write metrics and pictures to `metrics.jsonl`, TensorBoard events, wandb and the screen.

    A bucket (gs://) can neither append nor rename: its files are written in a local temporary directory, and `publish` copies them to the bucket.
    """

    def __init__(self, workdir: PathLike, first_step: int, steps: int, enabled: bool = True, track: str = "", recipe: dict[str, Any] | None = None):
        """Continue at `first_step` of `steps`; lines of later steps are removed. Not `enabled`, as on every process but the first, it writes nothing.

        `track` is config.track, and `recipe` what wandb stores beside the metrics.
        """
        self.enabled, self.steps = enabled, steps
        self.bar: Any = None  # tqdm's, on a terminal
        self.board: Any = None  # tensorboardX's SummaryWriter, if it is installed
        self.tracker: Tracker | None = None
        if not enabled:
            return
        self.bucket = epath.Path(workdir) if "://" in str(workdir) else None
        self.directory = pathlib.Path(workdir) if self.bucket is None else _copy_from_bucket(self.bucket)
        drop_after(self.directory / "metrics.jsonl", first_step)
        self.file = (self.directory / "metrics.jsonl").open("a")
        self.board = _tensorboard(self.directory / "tensorboard", first_step)
        if sys.stderr.isatty():
            import tqdm

            self.bar = tqdm.tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)
        self.estimated = self.bar is not None
        self.start_clock(first_step)
        if track:
            self.tracker = Tracker(track, self.directory, epath.Path(workdir).name, recipe or {}, self.say)

    def start_clock(self, step: int) -> None:
        """Estimate the time left from here on: call it after the first step, which compiles."""
        self.started, self.first_step = time.perf_counter(), step

    def write(self, step: int, values: dict[str, Any], prefix: str = "train") -> None:
        """Record `values`, numbers or arrays of one number, at `step` under `prefix`."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "time": time.time()} | {name: _finite(value) for name, value in named.items()}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in named.items():
                self.board.add_scalar(name, value, step)
        if self.tracker:
            self.tracker.write(step, named)
        if self.bar is not None and prefix == "train":
            self.bar.set_postfix_str(_bar_text(values))
        else:
            self.say(self._line(step, values, prefix))

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, 3], at `step` under a name such as "validation/completions"."""
        if self.board:
            self.board.add_image(name, picture, step, dataformats="HWC")
        if self.tracker:
            self.tracker.write(step, {name: picture})

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    @property
    def estimate_due(self) -> bool:
        """Whether the first minute has passed without a word on the time left."""
        return self.enabled and not self.estimated and time.perf_counter() - self.started > FIRST_ESTIMATE

    def say_estimate(self, step: int) -> None:
        """Print the time left; `step` is the last that the devices have finished."""
        self.say(f"step {step:>{len(str(self.steps))}}/{self.steps}  {self._time_left(step)}")

    def say(self, line: str) -> None:
        """Print a line above the progress bar if there is one."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.write(line)
        else:
            print(line, flush=True)

    def publish(self) -> bool:
        """Copy all files to the bucket, if the work directory is in one; return whether it has all of them.

        Call it before a checkpoint begins: lines after the checkpoint that are lost in a crash are written again by the run that continues from it.
        """
        if not self.enabled or self.bucket is None:
            return True
        try:
            copy_files(self.directory, self.bucket)
        except Exception as error:  # each file system raises its own; the run goes on, and the next copy has these lines too
            self.say(f"metrics cannot be written to {self.bucket}, they are in {self.directory}: {one_line(error)}")
            return False
        return True

    def close(self) -> None:
        """Flush and close every output."""
        if self.enabled:
            self.file.close()
            if self.board:
                self.board.close()
            if self.tracker:
                self.tracker.close()
            if self.publish() and self.bucket is not None:
                shutil.rmtree(self.directory)
            if self.bar is not None:
                self.bar.close()

    def _line(self, step: int, values: dict[str, float], prefix: str) -> str:
        shown = [form.format(values[name]) for name, form in SHOWN.items() if name in values and not (name == "nats_per_pixel" and "loss" in values)]
        parts = [f"step {step:>{len(str(self.steps))}}/{self.steps}", *([prefix] if prefix != "train" else []), *shown]
        return "  ".join([*parts, *filter(None, [self._time_left(step)])])

    def _time_left(self, step: int) -> str:
        done = step - self.first_step
        if not 0 < done or step >= self.steps:
            return ""
        self.estimated = True
        return f"{duration((time.perf_counter() - self.started) / done * (self.steps - step))} left"


def drop_after(path: pathlib.Path, step: int) -> None:
    """Remove the lines of a JSONL file after `step`, and incomplete ones: the run that continues from there writes them again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines += [line] if json.loads(line)["step"] <= step else []
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(line + "\n" for line in lines).encode())


def _tensorboard(directory: pathlib.Path, first_step: int) -> Any:
    """A TensorBoard writer; None without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=first_step)


def _copy_from_bucket(bucket: epath.Path) -> pathlib.Path:
    """A new temporary directory with the bucket's metrics.jsonl and wandb.json, if it has them."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="igpt_jax-"))
    for name in ("metrics.jsonl", FILE):
        if (bucket / name).exists():
            (directory / name).write_bytes((bucket / name).read_bytes())
    return directory


def _bar_text(values: dict[str, float]) -> str:
    """The few values that a progress bar shows."""
    units = {"loss": "{:.3f} nats", "images_per_second": "{:,.0f} images/s", "tokens_per_second": "{:,.0f} tokens/s", "mfu": "{:.1%} MFU"}
    return ", ".join(form.format(values[name]) for name, form in units.items() if name in values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

