"""In-context segmentation with latent diffusion models: train, ablate and measure LDIS-1 and LDIS-n."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout, `datamodules/`, `callbacks/` and `configs/` lie beside this folder; in a wheel they lie inside it.
# Adding the checkout's root to the package's search path makes `ldis_lightning.datamodules` the one name for both.
_here = Path(__file__).resolve().parent
if not (_here / "datamodules").is_dir() and (_here.parent / "datamodules").is_dir():
    __path__.append(str(_here.parent))
