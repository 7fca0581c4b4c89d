"""One thread for torch: the machines of CI are shared, and the tests' tensors are small.

None for ducc0, with whose results some tests compare: a process that has used it waits for its threads when it forks,
and on a busy machine has been seen to wait for ever.
"""

from __future__ import annotations

import os

os.environ.setdefault("DUCC0_NUM_THREADS", "1")

import torch

import perrin  # noqa: F401  (before MKL's first product: see perrin._keep_bits)

torch.set_num_threads(1)
