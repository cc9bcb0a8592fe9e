"""What is kept on disk between two starts: checkpoints, exported weights, released runs, folders of restored images."""
