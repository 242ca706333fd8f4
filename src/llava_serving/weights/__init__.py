"""From files on disk to a model on its device: find, read, merge, load."""
