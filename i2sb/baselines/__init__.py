"""What the bridge is compared to: diffusions, and their way to use a known degradation."""
