"""How the runs of a sweep are started: the slot, and what fills it."""

from ldis_lightning.sweeps.launchers.launcher import Job, Launcher, Outcome, Watcher
from ldis_lightning.sweeps.launchers.local import Local

__all__ = ["Job", "Launcher", "Local", "Outcome", "Watcher"]
