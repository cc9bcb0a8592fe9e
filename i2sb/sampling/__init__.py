"""Restoring a split or pictures of one's own."""
