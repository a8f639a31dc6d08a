"""Measuring: numbers only, no opinion. What they mean is decided in :mod:`wan_trt_core.gates`."""
