"""How the runs of a sweep are started: the slot, and what fills it."""

from ldis_lightning.sweeps.launchers.launcher import Job, Launcher, Outcome, Watcher, last_line, log_end
from ldis_lightning.sweeps.launchers.local import Local

__all__ = ["Job", "Launcher", "Local", "Outcome", "Watcher", "last_line", "log_end"]
