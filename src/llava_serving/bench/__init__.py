"""The load generator of `llava-serving bench`: it measures any server and imports no torch."""
