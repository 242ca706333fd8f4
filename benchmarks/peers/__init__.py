"""Compares this service with its peers on a CPU (peers.py)."""
