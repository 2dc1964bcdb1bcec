"""The parts of scripts/compare_ptq.py."""
