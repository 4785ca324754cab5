"""What every function stands on: argument checks, the Jacobian, compilation."""
