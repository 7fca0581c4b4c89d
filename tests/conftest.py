"""One thread for torch: the machines of CI are shared, and the tests' tensors are small."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
