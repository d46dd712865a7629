"""`python -m ldis_lightning` is the `ldis` command."""

import sys

from ldis_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
