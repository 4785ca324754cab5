"""Keras runs on JAX here, which is to be said before it is imported."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
