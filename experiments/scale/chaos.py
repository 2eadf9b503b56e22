"""Does a run survive everything? `python -m experiments.scale.chaos [--minutes=20] [--seed=0]`, or `make chaos`.

A small real run is started, hurt and started again by the same command, until it is done; then the next. The faults: kill -9 at any moment and in the
middle of a save, SIGTERM in the middle of a save, SIGTERM and SIGUSR1 between two steps, a full disk, a checkpoint that cannot be written for a moment,
the same command started twice, and, after a kill, the newest checkpoint corrupted, truncated, half removed, left uncommitted, or unreadable for a moment:
then a start must end in one line and change nothing. After each fault the run must go on from the newest step that was whole on the disk, and in the end every
number of it (optimiser too, and the logged losses) must equal, bit for bit, that of a run never hurt.

Prints a table: faults tried, survived, steps lost; writes experiments/results/chaos.json. Exits 1 where a fault was not survived. The full disk needs the
right to mount a small tmpfs; without it that fault is left out, and the table says so.
"""

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
PATIENCE = 180  # seconds in which something must happen
CHANGES = {
    "palette.size": 8, "model.layers": 2, "model.width": 32, "model.heads": 2, "batch_size": 16, "steps": STEPS, "save_every": SAVE_EVERY,
    "eval_every": STEPS, "log_every": 1, "optim.warmup_steps": 10,
}  # fmt: skip


@dataclasses.dataclass
class Fault:
    """What was done to a run, and from which step it must go on; then from which it did."""

    kind: str
    at_step: int
    expected: int
    or_else: int | None = None  # a bit may have flipped where nothing is written
    went_on_from: int | None = None
    survived: bool = False

    @property
    def lost(self) -> int:
        """Steps done and logged that were done again."""
        return max(0, self.at_step - (self.expected if self.went_on_from is None else self.went_on_from))


class Run:
    """One run in a directory, started again and again by the same command."""

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

    def said(self) -> str:
        """What the last start has printed."""
        with self.log.open() as file:
            file.seek(self.read_from)
            return file.read()

    def last_step(self) -> int:
        """The last step that is in the log of the last start."""
        found = re.findall(rf"^step (\d+)/{STEPS}  train", self.said(), re.M)
        return int(found[-1]) if found else 0

    def began_at(self) -> int | None:
        found = re.search(rf"from step (\d+) to {STEPS}", self.said())
        return int(found[1]) if found else None

    def committed(self) -> list[int]:
        """Steps that are whole on the disk."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        folder = self.workdir / "checkpoints"
        return folder.exists() and any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir())

    def finished(self) -> bool:
        return (self.workdir / "result.json").exists()

    def arrays(self) -> list[np.ndarray]:
        """Every array of the last checkpoint."""
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
    parser.add_argument("--minutes", type=at_least_0, default=20, help="no new fault after so long; every kind is tried once in any case")
    parser.add_argument("--seed", type=integer(), default=0)
    parser.add_argument("--out", type=pathlib.Path, default="experiments/results/chaos.json")
    arguments = parser.parse_args()
    prepare_file(arguments.out)
    generator, until = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as place, _small_disk(pathlib.Path(place) / "disk") as disk:
        whole = Run(pathlib.Path(place) / "whole")
        if whole.start().wait() or not whole.finished():
            sys.exit(f"error: the run fails without any fault: {whole.said()[-500:]}")
        kinds = [kind for kind in FAULTS if disk or kind not in ON_A_FULL_DISK]
        faults, runs = [], 0
        while time.monotonic() < until or len({fault.kind for fault in faults}) < len(kinds):
            missing = [kind for kind in kinds if kind not in {fault.kind for fault in faults}]
            run = Run((disk or pathlib.Path(place)) / f"run{runs}")
            faults += hurt(run, missing or kinds, len(missing), generator, until, disk)
            equal = same(run, whole)
            runs += 1
            print(f"run {runs}: {len(faults)} faults so far, the end {'equals' if equal else 'DIFFERS FROM'} that of the run never hurt", flush=True)
            if not equal:
                faults.append(Fault("end differs", STEPS, STEPS))
                break
            shutil.rmtree(run.workdir)
        report(faults, runs, kinds, arguments)


def hurt(run, kinds, least, generator, until, disk) -> list[Fault]:
    """Drive one run to its end with a fault in every start, `least` of them even after `until`; the kinds in turn, in a random order."""
    faults, waiting = [], []
    while not run.finished():
        process = run.start()
        began = _wait(run.began_at, process)
        if faults and faults[-1].went_on_from is None and not judge(faults[-1], began, run):
            process.kill()
            break
        waiting = waiting or generator.sample(kinds, len(kinds))
        enough = time.monotonic() > until and len(faults) >= least
        ahead = 0 if waiting[-1] == "kill -9 at the start" else generator.randint(1, 3 * SAVE_EVERY)
        if enough or not _reach(run, began + ahead, process):
            process.wait(PATIENCE)  # it comes to its end
            continue
        kind = waiting.pop()
        if kind in DAMAGES and not _wait(lambda: len(run.committed()) > 1 or None, process):  # with a single one damaged nothing is whole
            process.wait(PATIENCE)
            continue
        refused = kind != "started twice" or refused_beside(run, process)
        inflict(kind, run, process, generator, disk)
        at_step = max(run.last_step(), began)
        newest = max(run.committed(), default=0)
        expected = max(damage(kind, run, generator), default=0) if kind in DAMAGES else newest
        if kind == "unreadable for a moment" and newest:
            refused = refused_while_unreadable(run, generator)
        faults.append(Fault(kind, at_step, expected, newest if kind == "newest corrupted" else None))
        if not refused:
            break  # not survived
    return faults


def judge(fault, began, run) -> bool:
    """Whether the start after a fault went on from the newest step that was whole."""
    fault.went_on_from, fault.survived = began, began in (fault.expected, fault.or_else)
    print(f"{fault.kind}: at step {fault.at_step}, went on from {began}, expected {fault.expected}", flush=True)
    if not fault.survived:
        print(run.said()[-2000:], flush=True)
    return fault.survived


def inflict(kind, run, process, generator, disk) -> None:
    """Hurt the process and return when it has ended."""
    if kind.endswith("in a save"):
        _wait(lambda: run.saving() or None, process)
    if kind.startswith(("kill", "newest", "unreadable", "started")):
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
    elif kind.startswith("SIG"):
        process.send_signal(getattr(signal, kind.split()[0]))
    else:
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:  # the run itself takes room meanwhile
            file.write(bytes(max(0, shutil.disk_usage(disk).free - generator.randint(0, 300_000))))
        if kind == "full disk for a moment":
            _wait(lambda: "cannot be written" in run.said() or None, process)
            ballast.unlink()
            _reach(run, run.last_step() + SAVE_EVERY, process)
            process.kill()
        else:
            process.wait(PATIENCE)
            ballast.unlink()
    process.wait(PATIENCE)


def damage(kind, run, generator) -> list[int]:
    """Spoil the newest checkpoint of a run that is not running; the steps that are whole then."""
    *older, newest = run.committed() or [None]
    if newest is None:
        return []
    folder = run.workdir / "checkpoints" / str(newest)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    largest = max(files, key=lambda path: path.stat().st_size)  # the numbers themselves
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


def refused_beside(run, process) -> bool:
    """Whether the same command, started while the run is at it (held meanwhile, so that it does not end before), ends in one line."""
    process.send_signal(signal.SIGSTOP)
    log, read_from = run.log, run.read_from
    run.log = run.log.with_suffix(".second")
    try:
        return _ends_in_one_line(run, "is in use by process")
    finally:
        run.log, run.read_from = log, read_from
        process.send_signal(signal.SIGCONT)


def refused_while_unreadable(run, generator) -> bool:
    """Whether a start ends in one line and changes nothing while the newest checkpoint, or all of them, cannot be read."""
    folder = run.workdir / "checkpoints"
    place = generator.choice([folder, *(folder / str(max(run.committed())) / name for name in ("model", "training", "meta"))])
    kept = run.workdir / "kept"
    before = _contents(run.workdir)
    place.rename(kept)
    place.symlink_to(place)  # to open it is an OSError, for root too
    refused = _ends_in_one_line(run, "")
    place.unlink()
    kept.rename(place)
    return refused and _contents(run.workdir) == before


def _ends_in_one_line(run, message) -> bool:
    """Whether a start ends by itself, with 1 and one line that has this message."""
    code, said = run.start().wait(PATIENCE), run.said()
    fine = code == 1 and "Traceback" not in said and said.splitlines()[-1].startswith("error: ") and message in said
    if not fine:
        print(f"a start that should have been refused ended with {code}: {said[-2000:]}", flush=True)
    return fine


def _contents(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "lock"}


def same(run, whole) -> bool:
    """Whether every number of two finished runs is the same, bit for bit."""
    arrays = zip(run.arrays(), whole.arrays(), strict=True)
    return run.finished() and run.losses() == whole.losses() and all(a.tobytes() == b.tobytes() for a, b in arrays)


def report(faults, runs, kinds, arguments) -> None:
    """Print the table and write it."""
    rows = []
    for kind in (*FAULTS, "end differs"):
        mine = [fault for fault in faults if fault.kind == kind]
        if mine:
            lost, survived = [fault.lost for fault in mine], sum(fault.survived for fault in mine)
            rows.append({"fault": kind, "tried": len(mine), "survived": survived, "lost_mean": float(np.mean(lost)), "lost_most": max(lost)})
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


def readme_block(found: dict) -> str:
    """What README says of it."""
    rows = "; ".join(f"{row['fault']} {row['survived']} of {row['tried']}" for row in found["rows"])
    most = max(row["lost_most"] for row in found["rows"])
    return (
        f"{found['faults']} faults, {found['survived']} survived, {found['runs']} runs ended bit-equal ({rows}); at most {most} steps were done again, "
        f"a checkpoint every {found['save_every']} (`{found['command']}`, commit {found['commit']}, {found['hardware']}).\n"
    )


def _wait(happened, process):
    """The first value of `happened()` that is not None; None where the process ended before."""
    until = time.monotonic() + PATIENCE
    while (found := happened()) is None:
        if process.poll() is not None:
            return happened()
        if time.monotonic() > until:
            raise TimeoutError(f"nothing happened in {PATIENCE} s")
        time.sleep(0.002)
    return found


def _reach(run, step, process) -> bool:
    """Wait until the run has done `step`; False where it ended before."""
    return bool(_wait(lambda: True if run.last_step() >= step else None, process)) and process.poll() is None


class _small_disk:
    """A small file system of its own, to be filled; None where there is no right to mount one."""

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
