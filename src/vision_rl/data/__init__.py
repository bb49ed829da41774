"""Data sets that need no download, and readers of data that is on disk."""
