"""What a run reports: throughput, model FLOPs utilisation, and the writers (progress bar or log lines, JSONL, TensorBoard)."""

import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time

from etils import epath

# Dense bf16 peak of one device in FLOP/s, by a part of jax's device_kind; from the vendors' data sheets.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "V100": 125e12,
    "TPU v2": 22.5e12,  # one core, half a chip
    "TPU v3": 61.5e12,  # one core, half a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None where it is not known (a CPU)."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


class Throughput:
    """Speed between two reports."""

    def __init__(self, images_per_step: int, tokens_per_image: int, flops_per_image: float, peak: float | None):
        self.images_per_step, self.tokens_per_image, self.flops_per_image, self.peak = images_per_step, tokens_per_image, flops_per_image, peak
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin a new interval, so that an evaluation or a save is not counted as training."""
        self.step, self.time = step, time.perf_counter()

    def report(self, step: int) -> dict[str, float]:
        """images/s, tokens/s and (where the peak is known) mfu since the last report or restart, {} where no step was since then.

        `peak` is that of all devices together.
        """
        if step == self.step:
            return {}
        images = (step - self.step) * self.images_per_step / max(time.perf_counter() - self.time, 1e-9)
        self.restart(step)
        rates = {"images_per_second": images, "tokens_per_second": images * self.tokens_per_image}
        return rates | ({"mfu": images * self.flops_per_image / self.peak} if self.peak else {})


class Writer:
    """Writes metrics to `metrics.jsonl`, TensorBoard events and the screen; `enabled` is False on every process but the first.

    A bucket (gs://) can neither append nor rename: its files grow in a temporary directory here, and `publish` copies them there whole.
    """

    def __init__(self, workdir, first_step: int, steps: int, enabled: bool = True):
        self.enabled, self.steps, self.bar, self.board = enabled, steps, None, None
        if not enabled:
            return
        self.bucket = epath.Path(workdir) if "://" in str(workdir) else None
        self.directory = pathlib.Path(workdir) if self.bucket is None else _fetched(self.bucket)
        drop_after(self.directory / "metrics.jsonl", first_step)
        self.file = (self.directory / "metrics.jsonl").open("a")
        self.board = _tensorboard(self.directory / "tensorboard", first_step)
        if sys.stderr.isatty():
            import tqdm

            self.bar = tqdm.tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)
        self.started, self.first_step = time.perf_counter(), first_step

    def write(self, step: int, values: dict[str, float], prefix: str = "train") -> None:
        """Record `values` at `step` under `prefix`."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "time": time.time()} | {f"{prefix}/{k}": _finite(v) for k, v in values.items()}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{prefix}/{name}", value, step)
        text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self.bar is not None and prefix == "train":
            self.bar.set_postfix_str(_brief(values))
        else:
            self.say(f"step {step}/{self.steps}  {prefix}  {text}  {self._left(step)}")

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def say(self, line: str) -> None:
        """Print a line without tearing the progress bar."""
        if self.enabled:
            self.bar.write(line) if self.bar is not None else print(line, flush=True)

    def publish(self) -> bool:
        """Copy what was written so far to the bucket, if the work directory is in one, and return whether it is all there.

        To be called before a checkpoint is begun: lines lost in a crash are written again by the run that goes on from the checkpoint.
        """
        if not self.enabled or self.bucket is None:
            return True
        try:
            for path in self.directory.rglob("*"):
                if path.is_file():
                    (self.bucket / path.relative_to(self.directory)).write_bytes(path.read_bytes())
        except Exception as error:  # each file system raises its own, and none is worth the run: the next copy holds these lines too
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self.say(f"metrics cannot be written to {self.bucket}, so far they are in {self.directory}: {reason}")
            return False
        return True

    def close(self) -> None:
        """Flush and close every output."""
        if self.enabled:
            self.file.close()
            if self.board:
                self.board.close()
            if self.publish() and self.bucket is not None:
                shutil.rmtree(self.directory)
            if self.bar is not None:
                self.bar.close()

    def _left(self, step):
        done = step - self.first_step
        if not 0 < done or step >= self.steps:
            return ""
        seconds = (time.perf_counter() - self.started) / done * (self.steps - step)
        return f"left {seconds / 3600:.1f} h" if seconds > 5400 else f"left {seconds / 60:.1f} min"


def drop_after(path: pathlib.Path, step: int) -> None:
    """Forget the lines of a JSONL file after `step`, or torn by a kill: the run that goes on from there writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            kept += [line] if json.loads(line)["step"] <= step else []
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def _tensorboard(directory, first_step):
    """A TensorBoard writer, or None on a machine without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=first_step)


def _fetched(bucket):
    """A temporary directory with the bucket's metrics.jsonl, where the run before left one."""
    directory, left = pathlib.Path(tempfile.mkdtemp(prefix="igpt_jax-")), bucket / "metrics.jsonl"
    if left.exists():
        (directory / left.name).write_bytes(left.read_bytes())
    return directory


def _brief(values):
    """What a progress bar has room for."""
    units = {"loss": "{:.3f} nats", "images_per_second": "{:,.0f} images/s", "tokens_per_second": "{:,.0f} tokens/s", "mfu": "{:.1%} MFU"}
    return ", ".join(form.format(values[name]) for name, form in units.items() if name in values)


def _finite(value):
    return value if math.isfinite(value) else None


def _short(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
