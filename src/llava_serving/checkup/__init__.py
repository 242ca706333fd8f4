"""What a model folder is, whether it is whole, and whether it can talk."""
