"""Weights & Biases: metrics, pictures and recipe of a run at wandb.ai, for config.track = "wandb:PROJECT" or "wandb:ENTITY/PROJECT".

WORKDIR/wandb.json holds the id of the run, so that a run which is continued goes on in the same run there. A run that is continued from an older checkpoint
repeats some steps. wandb ignores what is written for a step before its last one, so the steps of the training are a value, `step`, and the axis of all
charts; wandb's own step counts the reports. WANDB_MODE=offline writes to WORKDIR/wandb without a network, for `wandb sync`.
"""

import json
import pathlib
import re
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from igpt_jax.extras import install
from igpt_jax.files import one_line, write_atomically
from igpt_jax.provenance import provenance

SECONDS = 60  # that a run waits for wandb at its start and at its end, at most
FILE = "wandb.json"  # in the work directory: {track, id, rows}


def check(track: str) -> None:
    """ValueError or ImportError, one line with the way out, where config.track cannot be done: its form, no wandb, no key. Nothing is sent."""
    if not track:
        return
    if not isinstance(track, str) or not re.fullmatch(r"wandb:([^/:]+/)?[^/:]+", track):
        raise ValueError(f"config.track must be wandb:PROJECT or wandb:ENTITY/PROJECT, or empty for none, not {track!r}")
    try:
        import wandb
    except ImportError:
        raise ImportError(f"config.track={track} needs wandb: {install('wandb')}, or leave config.track out") from None
    way_out = "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to send it later by `wandb sync`"
    try:
        ready = wandb.setup().settings.mode != "online" or wandb.login(prompt=False, verify=False)
    except Exception as error:  # a key of a wrong form, a damaged file of settings
        raise ValueError(f"config.track={track}: wandb cannot log in ({one_line(error)}): {way_out}") from None
    if not ready:
        raise ValueError(f"config.track={track}: wandb is not logged in on this machine: {way_out}")


class Tracker:
    """A run at wandb. Whatever fails after `check` is said in a line, and the training goes on."""

    def __init__(self, track: str, directory: pathlib.Path, name: str, recipe: dict[str, Any], say: Callable[[str], None]):
        """Begin or continue the run of the local work `directory`; `name` is what wandb shows, `say` prints a line."""
        self.say, self.file = say, directory / FILE
        self.state: dict[str, Any] = {"track": track, "id": uuid.uuid4().hex[:8], "rows": 0} | _read(self.file, track)
        self.run: Any = None
        *entity, project = track.removeprefix("wandb:").split("/")
        arguments = {"project": project, "entity": entity[0] if entity else None, "id": self.state["id"], "resume": "allow", "reinit": "create_new"}
        arguments |= {"name": name, "dir": str(directory), "config": recipe | {"provenance": provenance("")}, "allow_val_change": True}
        if not self._begin(arguments):
            import wandb

            wandb.teardown()  # ends the service, in which the id of the run that failed is in use
            self._begin(arguments | {"mode": "offline"})

    def _begin(self, arguments: dict[str, Any]) -> bool:
        import wandb

        try:
            settings = wandb.Settings(silent=True, console="off", init_timeout=SECONDS, finish_timeout=SECONDS)
            self.run = wandb.init(**arguments, settings=settings)
            self.run.define_metric("*", step_metric="step")
        except Exception as error:  # no network, a project that may not be written, a full disk
            self._fail(error, "offline" if "mode" not in arguments else "no")
            return False
        write_atomically(self.file, json.dumps(self.state).encode())
        place = f"offline, `wandb sync {pathlib.Path(self.run.dir).parent}` sends it" if self.run.offline else self.run.url
        self.say(f"tracked by wandb: {place}")
        return True

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Report values, numbers or arrays uint8 [H, W, 3] (pictures), at a step of the training."""
        if self.run is None:
            return
        import wandb

        self.state["rows"] += 1
        try:
            write_atomically(self.file, json.dumps(self.state).encode())
            shown = {name: wandb.Image(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}
            self.run.log({"step": step} | shown, step=self.state["rows"])
        except Exception as error:
            self._fail(error, "no")

    def close(self) -> None:
        """Send what is left, for at most a minute."""
        if self.run is None:
            return
        try:
            self.run.finish()
        except Exception as error:
            self._fail(error, "no")
        self.run = None

    def _fail(self, error: Exception, more: str) -> None:
        self.run = None
        self.say(f"wandb failed, {more} tracking from here on: {type(error).__name__}: {one_line(error)}")


def _read(path: pathlib.Path, track: str) -> dict[str, Any]:
    """The id and the number of reports of the run in `path`; {} where there is none, or it is of another project."""
    try:
        state = json.loads(path.read_text())
        return {"id": str(state["id"]), "rows": int(state["rows"])} if state["track"] == track else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
