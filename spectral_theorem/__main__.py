"""Make `python -m spectral_theorem` the same as `spectral-theorem`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
