"""Checkpoint -> described model -> exact rewrites -> verified ONNX -> bundle (needs torch)."""
