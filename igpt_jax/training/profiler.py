"""How long a run compiles, and a trace of some of its steps for TensorBoard and Perfetto."""

import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from igpt_jax.files import copy_files, one_line
from igpt_jax.types import PathLike, Tree

COMPILING = "/jax/core/compile/"  # events of jax.monitoring: tracing to a jaxpr, lowering, and XLA's compilation or its result read from the cache on disk
COMPILED, READ = f"{COMPILING}backend_compile_duration", "/jax/compilation_cache/cache_retrieval_time_sec"  # the first is recorded for a cached program too


class Trace:
    """Trace the steps of a window by jax.profiler to WORKDIR/profile, what the host does and what its devices do.

    The first process traces, as in big_vision and by default in MaxText: every process does the same work. jax cannot write the file for Perfetto to a
    bucket (gs://): the trace of such a run is made in a temporary directory and copied. Whatever is wrong with a trace is said, and the run goes on.
    """

    def __init__(self, window: Sequence[int], workdir: PathLike, step: int, say: Callable[[str], None]):
        """`window` is (first step, last step) or empty, `step` the last that the run has made; `say` prints a line."""
        self.window = tuple(window) if jax.process_index() == 0 else ()
        self.folder, self.say = epath.Path(workdir) / "profile", say
        if self.window and self.window[1] <= step:
            self.say(f"nothing is traced: config.profile ends with step {self.window[1]}, and the run is at step {step}")
        self.steps: tuple[int, int] | None = None  # first and newest step of a trace that runs

    def start(self, step: int, state: Tree) -> None:
        """Call it before each step. In the window, start the trace if none runs, when the steps before it have computed `state`."""
        if not self.window or not self.window[0] <= step <= self.window[1]:
            return
        if self.steps is None:
            jax.block_until_ready(state)
            try:
                self.directory = pathlib.Path(tempfile.mkdtemp(prefix="igpt_jax-") if self._in_bucket() else self.folder)
                jax.profiler.start_trace(self.directory, create_perfetto_trace=True)
            except Exception as error:  # another trace runs, a disk is full, or what the profiler of a platform raises
                (_, last), self.window = self.window, ()
                return self.say(f"no trace of steps {step} to {last}: {one_line(error)}")
        self.steps = (step if self.steps is None else self.steps[0], step)

    def stop_after(self, step: int, values: Tree) -> bool:
        """Call it after each step. If it was the last of the window, wait for its `values`, write the trace, and return True."""
        if self.steps is None or step < self.window[1]:
            return False
        jax.block_until_ready(values)
        self.close()
        return True

    def close(self) -> None:
        """Write the trace if one runs, and say where it is and how to open it."""
        if self.steps is None:
            return
        (first, last), self.steps, self.window = self.steps, None, ()
        name = f"step {first}" if first == last else f"steps {first} to {last}"
        try:
            jax.profiler.stop_trace()
            file = max(self.directory.glob("plugins/profile/*/perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime).relative_to(self.directory)
            if self._in_bucket():
                copy_files(self.directory, self.folder)
                shutil.rmtree(self.directory)
        except Exception as error:  # each file system raises its own
            return self.say(f"the trace of {name} cannot be written to {self.folder}, its files are in {self.directory}: {one_line(error)}")
        self.say(f"{name} traced: tensorboard --logdir={self.folder} (with xprof installed), or open {self.folder / file} at https://ui.perfetto.dev")

    def _in_bucket(self) -> bool:
        return "://" in str(self.folder)


class CompileTime:
    """Measure how long this thread compiles in `with` blocks of it: tracing, lowering and XLA, but not the wait for what was compiled to run."""

    def __init__(self) -> None:
        self.compiled = self.read = 0  # programs, and those of them that came from the cache on disk
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "CompileTime":
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._record)

    def __str__(self) -> str:
        return f"compiled in {self.seconds:.1f} s{', read from the cache' if self.compiled == self.read else ''}"

    @property
    def seconds(self) -> float:
        """Time in which something was compiled."""
        return sum(end - start for start, end in self._spans)

    def _record(self, event: str, duration_secs: float, **_: Any) -> None:
        """Add an event that ends now. It may contain earlier ones: a function that is traced traces the functions that it calls."""
        if threading.get_ident() != self._thread:
            return
        self.compiled += event == COMPILED
        self.read += event == READ
        if event.startswith(COMPILING):
            end = time.monotonic()
            start = end - duration_secs
            while self._spans and self._spans[-1][1] > start:
                start = min(start, self._spans.pop()[0])
            self._spans.append((start, end))
