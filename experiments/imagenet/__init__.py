"""S1 at the size of ImageNet: the spectrum of G for EfficientNet-Lite0 on real photographs."""
