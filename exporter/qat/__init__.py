"""Models that were quantized before: exported with the scales they came with."""
