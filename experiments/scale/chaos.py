"""Does a run survive faults? `python -m experiments.scale.chaos [--minutes=20] [--seed=0]`, or `make chaos`.

A small run is started, disturbed by a fault, and started again by the same command, until it is complete. Then the next run begins. The faults are: kill -9
at any moment and during a save; SIGTERM during a save; SIGTERM and SIGUSR1 between two steps; a full disk; a checkpoint that temporarily cannot be written;
the same command started twice; and, after a kill, the newest checkpoint corrupted, truncated, half removed, left uncommitted, or temporarily unreadable. A
start while it is unreadable must end with an error of one line and change nothing. After each fault the run must continue from the newest step that was
complete on disk. At its end, the parameters, the state of the optimiser and the logged losses must equal those of an undisturbed run, bit for bit.

Prints a table of faults tried, faults survived and steps lost, and writes experiments/results/chaos.json. Exits with code 1 if a fault was not survived. The
full disk needs the right to mount a small tmpfs; without it this fault is left out, and the table says so.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from configs import digits
from experiments.report.provenance import provenance
from igpt_jax.cli import Parser, integer, prepare_file, program, real
from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from igpt_jax.training.step import abstract_state

FAULTS = (
    "kill -9", "kill -9 at the start", "kill -9 in a save", "SIGTERM", "SIGTERM in a save", "SIGUSR1", "full disk", "full disk for a moment",
    "newest corrupted", "newest truncated", "newest half removed", "newest uncommitted", "unreadable for a moment", "started twice",
)  # fmt: skip
ON_A_FULL_DISK = ("full disk", "full disk for a moment")
DAMAGES = ("newest corrupted", "newest truncated", "newest half removed", "newest uncommitted")
STEPS, SAVE_EVERY = 600, 20
DISK = 48 * 2**20  # bytes of the tmpfs
PATIENCE = 180  # seconds to wait for an event
CHANGES = {
    "palette.size": 8, "model.layers": 2, "model.width": 32, "model.heads": 2, "batch_size": 16, "steps": STEPS, "save_every": SAVE_EVERY,
    "eval_every": STEPS, "log_every": 1, "optim.warmup_steps": 10,
}  # fmt: skip


@dataclasses.dataclass
class Fault:
    """A fault, the step from which the run must continue, and the step from which it did."""

    kind: str
    at_step: int
    expected: int
    or_else: int | None = None  # also correct: the flipped bit, or what was cut off, may be unused; checksums are compared, and the end is
    continued_from: int | None = None
    survived: bool = False

    @property
    def lost(self) -> int:
        """Logged steps that were computed again."""
        return max(0, self.at_step - (self.expected if self.continued_from is None else self.continued_from))


class Run:
    """One run in a directory, which is started repeatedly by the same command."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        workdir.mkdir(parents=True)
        Palette(np.repeat(np.linspace(-1, 1, 8, dtype=np.float32)[:, None], 3, axis=1)).save(workdir / "palette.npy")
        self.command = [sys.executable, "-m", "igpt_jax.train", "--config=configs/digits.py", f"--workdir={workdir}"]
        self.command += [f"--config.{key}={value}" for key, value in CHANGES.items()]
        self.log = workdir.parent / f"{workdir.name}.log"

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        self.read_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as log:
            return subprocess.Popen(self.command, cwd=pathlib.Path(__file__).parents[2], env=environment, stdout=log, stderr=subprocess.STDOUT)

    def output(self) -> str:
        """Return what was printed since the last start."""
        with self.log.open() as file:
            file.seek(self.read_from)
            return file.read()

    def last_step(self) -> int:
        """Return the last step that was logged since the last start, 0 if none was."""
        steps = re.findall(rf"^step +(\d+)/{STEPS}  loss", self.output(), re.M)
        return int(steps[-1]) if steps else 0

    def first_step(self) -> int | None:
        """Return the step from which the last start continues, None if it is not printed yet."""
        match = re.search(rf"from step (\d+) to {STEPS}", self.output())
        return int(match[1]) if match else None

    def committed(self) -> list[int]:
        """Return the steps of complete checkpoints on disk."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    def saving(self) -> bool:
        """Return whether a checkpoint is being written."""
        folder = self.workdir / "checkpoints"
        return folder.exists() and any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir())

    def finished(self) -> bool:
        return (self.workdir / "result.json").exists()

    def arrays(self) -> list[np.ndarray]:
        """Return every array of the last checkpoint."""
        config = digits.get_config()
        for key, value in CHANGES.items():
            config.update_from_flattened_dict({key: value})
        abstract = abstract_state(ModelConfig(**config.model), sharding.make_mesh(devices=jax.devices()[:1]))
        state, _ = checkpoints.restore_state(self.workdir, abstract)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]

    def losses(self) -> list[tuple]:
        lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def main() -> None:
    parser = Parser(prog="python -m experiments.scale.chaos", description=__doc__)
    at_least_0 = real("a number of at least 0", lambda minutes: minutes >= 0)
    parser.add_argument("--minutes", type=at_least_0, default=20, help="stop after this time; every kind of fault is tried at least once")
    parser.add_argument("--seed", type=integer(), default=0, help="seed of the order and the moments of the faults")
    parser.add_argument("--out", type=pathlib.Path, default="experiments/results/chaos.json", help="JSON file to write")
    arguments = parser.parse_args()
    prepare_file(arguments.out)
    generator, until = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as place, _small_disk(pathlib.Path(place) / "disk") as disk:
        undisturbed = Run(pathlib.Path(place) / "undisturbed")
        if undisturbed.start().wait() or not undisturbed.finished():
            sys.exit(f"error: the run fails without any fault: {undisturbed.output()[-500:]}")
        kinds = [kind for kind in FAULTS if disk or kind not in ON_A_FULL_DISK]
        faults, runs = [], 0
        while time.monotonic() < until or len({fault.kind for fault in faults}) < len(kinds):
            missing = [kind for kind in kinds if kind not in {fault.kind for fault in faults}]
            run = Run((disk or pathlib.Path(place)) / f"run{runs}")
            faults += disturb(run, missing or kinds, len(missing), generator, until, disk)
            equal = same(run, undisturbed)
            runs += 1
            print(f"run {runs}: {len(faults)} faults so far, the end {'equals' if equal else 'DIFFERS FROM'} that of the undisturbed run", flush=True)
            if not equal:
                faults.append(Fault("end differs", STEPS, STEPS))
                break
            shutil.rmtree(run.workdir)
        report(faults, runs, kinds, arguments)


def disturb(
    run: Run, kinds: list[str], least: int, generator: random.Random, until: float, disk: pathlib.Path | None
) -> list[Fault]:
    """Run to the end with a fault in every start; after the time `until`, only until there are `least` faults. Every kind comes in turn, in random order."""
    faults, waiting = [], []
    while not run.finished():
        process = run.start()
        began = _wait(run.first_step, process)
        if faults and faults[-1].continued_from is None and not judge(faults[-1], began, run):
            process.kill()
            break
        waiting = waiting or generator.sample(kinds, len(kinds))
        enough = time.monotonic() > until and len(faults) >= least
        ahead = 0 if waiting[-1] == "kill -9 at the start" else generator.randint(1, 3 * SAVE_EVERY)
        if enough or not _reach(run, began + ahead, process):
            process.wait(PATIENCE)  # the run is near its end
            continue
        kind = waiting.pop()
        if kind in DAMAGES and not _wait(lambda: len(run.committed()) > 1 or None, process):  # there must be an older checkpoint
            process.wait(PATIENCE)
            continue
        refused = kind != "started twice" or second_start_refused(run, process)
        inflict(kind, run, process, generator, disk)
        at_step = max(run.last_step(), began)
        newest = max(run.committed(), default=0)
        expected = max(damage(kind, run, generator), default=0) if kind in DAMAGES else newest
        if kind == "unreadable for a moment" and newest:
            refused = refused_while_unreadable(run, generator)
        faults.append(Fault(kind, at_step, expected, newest if kind in ("newest corrupted", "newest truncated") else None))
        if not refused:
            break  # not survived
    return faults


def judge(fault: Fault, began: int | None, run: Run) -> bool:
    """Return whether the start after a fault continued from the newest step that was complete."""
    fault.continued_from, fault.survived = began, began in (fault.expected, fault.or_else)
    print(f"{fault.kind}: at step {fault.at_step}, continued from {began}, expected {fault.expected}", flush=True)
    if not fault.survived:
        print(run.output()[-2000:], flush=True)
    return fault.survived


def inflict(kind: str, run: Run, process: subprocess.Popen, generator: random.Random, disk: pathlib.Path | None) -> None:
    """Disturb the process and wait for its end."""
    if kind.endswith("in a save"):
        _wait(lambda: run.saving() or None, process)
    if kind.startswith(("kill", "newest", "unreadable", "started")):
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
    elif kind.startswith("SIG"):
        process.send_signal(getattr(signal, kind.split()[0]))
    else:
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:  # the run writes to the disk at the same time
            file.write(bytes(max(0, shutil.disk_usage(disk).free - generator.randint(0, 300_000))))
        if kind == "full disk for a moment":
            _wait(lambda: "cannot be written" in run.output() or None, process)
            ballast.unlink()
            _reach(run, run.last_step() + SAVE_EVERY, process)
            process.kill()
        else:
            process.wait(PATIENCE)
            ballast.unlink()
    process.wait(PATIENCE)


def damage(kind: str, run: Run, generator: random.Random) -> list[int]:
    """Damage the newest checkpoint of a run that is not running; return the steps that are still complete."""
    *older, newest = run.committed() or [None]
    if newest is None:
        return []
    folder = run.workdir / "checkpoints" / str(newest)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    largest = max(files, key=lambda path: path.stat().st_size)  # it holds arrays
    if kind == "newest corrupted":
        content = bytearray(largest.read_bytes())
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        largest.write_bytes(content)
    elif kind == "newest truncated":
        os.truncate(largest, generator.randrange(largest.stat().st_size))
    elif kind == "newest half removed":
        shutil.rmtree(folder / generator.choice(["model", "training", "meta"]))
    else:
        folder.rename(folder.with_name(f"{newest}.orbax-checkpoint-tmp"))
    return older


def second_start_refused(run: Run, process: subprocess.Popen) -> bool:
    """Return whether the same command, started during the run, ends with an error of one line. The run is stopped meanwhile, so that it does not end."""
    process.send_signal(signal.SIGSTOP)
    log, read_from = run.log, run.read_from
    run.log = run.log.with_suffix(".second")
    try:
        return _ends_in_one_line(run, "is in use by process")
    finally:
        run.log, run.read_from = log, read_from
        process.send_signal(signal.SIGCONT)


def refused_while_unreadable(run: Run, generator: random.Random) -> bool:
    """Return whether a start ends with an error of one line and changes nothing while the newest checkpoint, or all of them, cannot be read."""
    folder = run.workdir / "checkpoints"
    place = generator.choice([folder, *(folder / str(max(run.committed())) / name for name in ("model", "training", "meta"))])
    aside = run.workdir / "aside"
    before = _contents(run.workdir)
    place.rename(aside)
    place.symlink_to(place)  # opening it is an OSError, also for root
    refused = _ends_in_one_line(run, "")
    place.unlink()
    aside.rename(place)
    return refused and _contents(run.workdir) == before


def _ends_in_one_line(run, message) -> bool:
    """Whether a start ends by itself with code 1 and one line that has this message."""
    code, output = run.start().wait(PATIENCE), run.output()
    refused = code == 1 and "Traceback" not in output and output.splitlines()[-1].startswith("error: ") and message in output
    if not refused:
        print(f"a start that should have been refused ended with {code}: {output[-2000:]}", flush=True)
    return refused


def _contents(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "lock"}


def same(run: Run, undisturbed: Run) -> bool:
    """Return whether all arrays and losses of two finished runs are equal, bit for bit."""
    arrays = zip(run.arrays(), undisturbed.arrays(), strict=True)
    return run.finished() and run.losses() == undisturbed.losses() and all(a.tobytes() == b.tobytes() for a, b in arrays)


def report(faults: list[Fault], runs: int, kinds: list[str], arguments: argparse.Namespace) -> None:
    """Print the table and write the JSON file; exit with code 1 if a fault was not survived."""
    rows = []
    for kind in (*FAULTS, "end differs"):
        tried = [fault for fault in faults if fault.kind == kind]
        if tried:
            lost, survived = [fault.lost for fault in tried], sum(fault.survived for fault in tried)
            rows.append({"fault": kind, "tried": len(tried), "survived": survived, "lost_mean": float(np.mean(lost)), "lost_most": max(lost)})
    print(f"{'fault':24} tried  survived  steps lost (mean, most)")
    for row in rows:
        print(f"{row['fault']:24} {row['tried']:5}  {row['survived']:8}  {row['lost_mean']:6.1f} {row['lost_most']:5}")
    survived = sum(fault.survived for fault in faults)
    left_out = [kind for kind in FAULTS if kind not in kinds]
    print(f"{len(faults)} faults tried, {survived} survived, {runs} runs ended bit-equal" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    result = {"faults": len(faults), "survived": survived, "runs": runs, "steps": STEPS, "save_every": SAVE_EVERY, "seed": arguments.seed}
    result |= {"minutes": arguments.minutes, "left_out": left_out, "rows": rows}
    result |= provenance(f"python -m experiments.scale.chaos --minutes={arguments.minutes:g}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if survived < len(faults):
        sys.exit(1)


def readme_block(chaos: dict) -> str:
    """Return README's block from the contents of chaos.json."""
    rows = "; ".join(f"{row['fault']} {row['survived']} of {row['tried']}" for row in chaos["rows"])
    most = max(row["lost_most"] for row in chaos["rows"])
    return (
        f"{chaos['faults']} faults, {chaos['survived']} survived, {chaos['runs']} runs ended bit-equal ({rows}); at most {most} steps were done again, "
        f"a checkpoint every {chaos['save_every']} (`{chaos['command']}`, commit {chaos['commit']}, {chaos['hardware']}).\n"
    )


def _wait(event, process):
    """The first value of `event()` that is not None; None if the process ended before."""
    until = time.monotonic() + PATIENCE
    while (value := event()) is None:
        if process.poll() is not None:
            return event()
        if time.monotonic() > until:
            raise TimeoutError(f"no event in {PATIENCE} s")
        time.sleep(0.002)
    return value


def _reach(run, step, process) -> bool:
    """Wait until the run has logged `step`; False if it ended before."""
    return bool(_wait(lambda: True if run.last_step() >= step else None, process)) and process.poll() is None


class _small_disk:
    """A context with a small file system that can be filled; None without the right to mount one."""

    def __init__(self, place):
        self.place = place

    def __enter__(self):
        self.place.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(self.place)]
        self.mounted = shutil.which("mount") is not None and subprocess.run(options, capture_output=True).returncode == 0
        return self.place if self.mounted else None

    def __exit__(self, *_):
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.place)], check=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    program(main)
