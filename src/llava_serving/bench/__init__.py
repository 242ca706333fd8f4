"""The load generator behind `llava-serving bench`: needs no torch, and measures any server."""
