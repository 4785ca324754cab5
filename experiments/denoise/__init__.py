"""S9: denoising by projection on the data leaf, beside what people use."""
