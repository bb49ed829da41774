"""Data sets that need no download, and loaders of data that is on disk."""
