"""What watches a run: pictures of episodes, the table at the end of a test, predicted masks as files."""

if __name__ != "ldis_lightning.callbacks":  # from the checkout's root; it would make a second copy of every class
    raise ImportError(f"import ldis_lightning.callbacks instead of {__name__}")

from ldis_lightning.callbacks.ceiling import Ceiling
from ldis_lightning.callbacks.predictions import PredictedMasks
from ldis_lightning.callbacks.previews import Previews
from ldis_lightning.callbacks.results import ResultTable
from ldis_lightning.callbacks.rows import ResultRows

__all__ = ["Ceiling", "PredictedMasks", "Previews", "ResultRows", "ResultTable"]
