"""What images are scored by: pixel metrics, feature networks, distances between distributions."""
