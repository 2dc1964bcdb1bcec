"""From the raw five-band data set to composites, masks and a split."""
