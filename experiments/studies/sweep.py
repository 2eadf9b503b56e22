"""Many jobs, one figure: what the sweeps of this folder share.

    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/layers               every job, one after the other
    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/layers --shard=2/8   jobs 2, 10, 18, ... alone: shards from 0
    sbatch --array=0-7 --wrap='python -m experiments.studies.accuracy_by_layer ... --shard=$SLURM_ARRAY_TASK_ID/8'     the same on a cluster

A job is one pretrained model and all that is measured of it, so that no job waits for another. What it finds is one file, WORKDIR/jobs/NAME.json, that
appears whole; a job whose file is there is not run again. One that fails is tried again from where it stopped (--tries), told in a line, with its stack
trace in WORKDIR/jobs/NAME.error, and the others go on; the exit code is 1 where one failed in the end. All hosts see the same WORKDIR; a call with --shard
does its jobs and no more, and when all have ended one without gathers: it does what is still missing and writes FIGURE.json and FIGURE.png, to WORKDIR and to
--results. --tries=0 does no job, and draws what there is.
"""

import dataclasses
import json
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.report.provenance import provenance, typed
from igpt_jax.cli import fail
from igpt_jax.palette.palette import write_whole
from igpt_jax.progress import Progress
from igpt_jax.training.recipe import differences, keep_config, read_config

# Of a recipe: where and how often, not what is computed.
FREE_KEYS = ("mesh.", "log_every", "eval_every", "eval_images", "save_every", "keep_last", "keep_every", "data.workers", "data.directory")


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece of work that makes one file."""

    name: str  # of the file: letters, digits, ._-
    work: Callable[[], dict]  # returns what is written; called again after a failure, it goes on from where it was


@dataclasses.dataclass(frozen=True)
class Figure:
    """What becomes of the files of the jobs that are done."""

    name: str
    summary: Callable[[list[dict]], dict]  # rows, one a job -> the numbers drawn
    table: Callable[[dict], list[str]]  # summary -> lines to print
    draw: Callable[[dict], Any]  # summary -> matplotlib's Figure


def run(figure: Figure, jobs: list[Job], config, settings: dict, workdir, results=None, shard=None, tries=2) -> dict | None:
    """Do what is missing of `jobs` and write `figure` of all that are done; with a `shard` only the first. Returns what is in its JSON.

    `config` and `settings` are what every job depends on: ValueError in one line where WORKDIR holds jobs of others. Exits with 1 where a job failed.
    """
    workdir = pathlib.Path(workdir)
    mine = share(jobs, shard)
    if jax.process_count() > 1:
        raise ValueError(f"a sweep is one process, this is one of {jax.process_count()} joined ones: start one for each --shard, each on its own")
    kept, before = config.to_dict() | {"sweep": settings}, read_config(workdir)
    if listed := ", ".join(f"{key} {a!r} -> {b!r}" for key, (a, b) in differences(before or kept, kept).items() if not key.startswith(FREE_KEYS)):
        raise ValueError(f"{workdir} holds a run of another recipe: {listed}. Take another --workdir, or the values it has")
    keep_config(workdir, kept)
    failed = perform(mine, workdir, tries)
    found = None
    if shard:
        done = sum(_path(job, workdir).exists() for job in jobs)
        print(f"{figure.name}: {done} of {len(jobs)} jobs are done; when all are, the same command without --shard draws the figure", flush=True)
    else:
        found = gather(figure, jobs, workdir, config, settings)
        if found:
            write(figure, found, [workdir] + ([pathlib.Path(results)] if results else []))
    if failed:
        fail(f"{len(failed)} of {len(mine)} jobs failed, {', '.join(failed)}: the same command tries them again, the others are kept")
    return found


def share(jobs: list[Job], shard: str | None) -> list[Job]:
    """The jobs of a shard "i/n", i from 0; None: all. Each job is in exactly one of the n shards."""
    names = [job.name for job in jobs]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
        raise ValueError(f"jobs must have names of their own, of letters, digits, ._-, not {', '.join(names)}")
    if shard is None:
        return jobs
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--shard={shard} must be i/n with i from 0 to n - 1, as 0/4 for the first of four hosts")
    return jobs[int(match[1]) :: int(match[2])]


def perform(jobs: list[Job], workdir: pathlib.Path, tries: int) -> list[str]:
    """Do the jobs that have no file yet; returns the names of those that failed each of `tries` times (0: none is tried)."""
    missing = [job for job in jobs if tries and not _path(job, workdir).exists()]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are " + ("done already" if tries else "left as they are"), flush=True)
    (workdir / "jobs").mkdir(parents=True, exist_ok=True)
    failed = []
    with Progress("jobs", len(missing), "jobs") as progress:
        for job in missing:
            if not any(_attempt(job, _path(job, workdir), turn, tries) for turn in range(1, tries + 1)):
                failed.append(job.name)
            jax.clear_caches()  # the next job is another model: its programs would only add up
            progress.advance(1)
    return failed


def gather(figure: Figure, jobs: list[Job], workdir: pathlib.Path, config, settings: dict) -> dict | None:
    """All that the figure shows, and of which jobs; None, after a line, where no job is done."""
    missing = [job.name for job in jobs if not _path(job, workdir).exists()]
    rows = [json.loads(_path(job, workdir).read_text()) for job in jobs if job.name not in missing]
    if not rows:
        print(f"{figure.name}: not drawn, none of {len(jobs)} jobs is done", file=sys.stderr, flush=True)
        return None
    if missing:
        print(f"{figure.name}: drawn without {len(missing)} of {len(jobs)} jobs, {', '.join(missing)}", flush=True)
    found = figure.summary([row["found"] for row in rows]) | {"missing": missing, "settings": settings}
    found |= {"jobs": rows, "recipe": config.to_dict()} | _provenance()
    return json.loads(json.dumps(found, default=str))  # what is drawn is what is written


def write(figure: Figure, found: dict, folders: list[pathlib.Path]) -> None:
    """FIGURE.json and FIGURE.png in each folder; its table on the screen."""
    picture = figure.draw(found)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{figure.name}.json", (json.dumps(found, indent=1) + "\n").encode())
        picture.savefig(folder / f"{figure.name}.png", dpi=150)
    print("\n".join([*figure.table(found), *(f"written: {folder / figure.name}.json, .png" for folder in folders)]), flush=True)


def spread(values, digits: int) -> str:
    """Mean, and where there are several the deviation, as text."""
    return f"{np.mean(values):.{digits}f}" + (f" +- {deviation(values):.{digits}f}" if len(values) > 1 else "")


def deviation(values) -> float:
    """Of a sample; 0 of a single value."""
    return float(np.std(values, ddof=min(1, len(values) - 1)))


def flags(flags) -> dict:
    """The flags that every sweep has."""
    return {
        "results": flags.DEFINE_string("results", None, "also write the figure's JSON and PNG to this folder"),
        "shard": flags.DEFINE_string("shard", None, "i/n: only every n-th job, from the i-th on, i from 0; without: all, and the figure"),
        "tries": flags.DEFINE_integer("tries", 2, "how often a job that fails is begun; 0: draw what there is", lower_bound=0),
    }


def _attempt(job, path, turn, tries):
    """Whether the job's file could be written."""
    began = time.monotonic()
    try:
        found = job.work()
        row = {"job": job.name, "seconds": round(time.monotonic() - began, 1), "found": found} | _provenance()
        write_whole(path, (json.dumps(row, indent=1) + "\n").encode())
    except Exception as error:  # whatever it is: the other jobs go on
        path.with_suffix(".error").write_text(traceback.format_exc())
        told = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"job {job.name} failed, try {turn} of {tries}: {told} ({path.with_suffix('.error')})", file=sys.stderr, flush=True)
        return False
    path.with_suffix(".error").unlink(missing_ok=True)
    return True


def _path(job, workdir):
    return workdir / "jobs" / f"{job.name}.json"


def _provenance():
    return provenance(typed(pathlib.Path(sys.argv[0]).stem))
