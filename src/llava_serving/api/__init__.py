"""HTTP and JSON: the bytes of a request to a ScoreRequest, and completions, errors and events to bytes.

Knows every form of request and answer. Knows no tensor, no checkpoint and no scheduling.
"""
