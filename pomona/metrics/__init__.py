"""Floor 3: what a run says about itself. Records, rates, the live line."""
