"""Every test runs without a network: nothing here may ask the hub by accident."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

collect_ignore = ["slow"]  # those run where they are named: `make test-slow`
