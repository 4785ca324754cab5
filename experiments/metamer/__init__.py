"""What a network cannot tell apart."""
