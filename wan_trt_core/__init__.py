"""Validation and regression suite for the Wan text-to-video models on TensorRT and ONNX Runtime."""

__version__ = "0.1.0"
