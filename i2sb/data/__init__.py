"""Images on disk: where they lie, how they are decoded, in which order they come."""
