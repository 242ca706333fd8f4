"""The service as one process: start-up, the scorer, the request log, metrics, and shutdown.

It joins the other rooms. It knows no JSON form, no kernel and no file format.
"""
