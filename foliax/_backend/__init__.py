"""Workarounds for XLA, to be deleted when XLA no longer needs them: rewriting, precision."""
