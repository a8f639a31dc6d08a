"""TensorRT 10.3 to 11.x: engines for NVIDIA GPUs.

``api`` knows TensorRT's versions, ``builder`` makes plans, ``verification`` checks them, ``runtime`` runs them,
``cuda`` records CUDA graphs, ``plan`` is what lies on disk.
"""

from __future__ import annotations

from wan_trt_core.backends.tensorrt.backend import TensorRtBackend

BACKEND = TensorRtBackend()
