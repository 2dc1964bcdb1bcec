"""Exact rewrites: one file per architecture or shared part, and the one that applies them all."""
