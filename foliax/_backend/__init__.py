"""Workarounds for XLA, to be deleted when it needs them no more: rewriting, precision."""
