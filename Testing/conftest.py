"""What all tests share: none reads or fills the user's store of embeddings."""

from __future__ import annotations

import os

os.environ["MEDZEROSEG_EMBEDDINGS_GB"] = "0"  # also for the processes that tests start
