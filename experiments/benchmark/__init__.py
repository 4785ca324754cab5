"""What G, walks, F·v and training cost: beside forward passes, and beside PyTorch."""
