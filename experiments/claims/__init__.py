"""Which claims of the slides hold, for which network and at which epoch: S3 to S7, side by side."""
