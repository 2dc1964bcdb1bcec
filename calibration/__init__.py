"""Precision, written into the ONNX file: activation ranges, INT8 Q/DQ placement, FP16.

Importing this package imports nothing heavy; take what you need from its modules, which need
onnx and onnxruntime.
"""
