"""One thread for everybody, as the agent's systemd unit has it; import this before anything that imports numpy."""

from __future__ import annotations

import os
import sys

assert "numpy" not in sys.modules, "numpy has read its environment already; import _one_thread first"
for _pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_pool] = "1"
# As TensorFlow comes: the trainer turns oneDNN off for repeatable training, which would slow the rival.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SET = True
