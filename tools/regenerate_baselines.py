"""Make, check or accept baselines from a checkout: ``wan-trt baselines regenerate``, which see.

python tools/regenerate_baselines.py --suite perf --dry-run
"""

from __future__ import annotations

import sys

from wan_trt_core.cli.regenerate import main

if __name__ == "__main__":
    sys.exit(main())
