"""Files of requests through the scorer, all at once: the batch endpoint and `llava-serving batch`.

It knows input files, rows and result files. It knows requests as bytes and answers as JSON.
"""
