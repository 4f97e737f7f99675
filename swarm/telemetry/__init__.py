"""What the machine says about itself: sources, the sampler that reads them, and the log."""
