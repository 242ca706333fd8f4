"""Runs files of requests through the scorer: the batch endpoint and `llava-serving batch`.

It knows input files, their rows and result files. It knows requests only as bytes and answers only as JSON.
"""
