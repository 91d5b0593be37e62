"""`python -m kaggle_kit`, and so `torchrun -m kaggle_kit`, is `kaggle-kit`."""

from __future__ import annotations

import sys

from kaggle_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
