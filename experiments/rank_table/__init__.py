"""S1: the rank of the local data matrix is below the number of classes."""
