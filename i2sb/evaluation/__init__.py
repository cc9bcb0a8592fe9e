"""A folder of restored images in, metrics.json and a report out."""
