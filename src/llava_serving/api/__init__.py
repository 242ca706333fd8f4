"""HTTP and JSON: the bytes of a request to a ScoreRequest, and completions, errors and events to bytes.

It knows every form of request and answer. It knows no tensor, no checkpoint and no scheduling.
"""
