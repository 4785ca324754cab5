"""S11: new images of the same label, by moving on the data leaf."""
