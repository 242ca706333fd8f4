"""The load generator of `llava-serving bench`, for any server. It imports no torch."""
