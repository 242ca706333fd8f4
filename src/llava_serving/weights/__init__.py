"""From a model directory to a model on its device: what a folder is, the delta's arithmetic, and loading.

It knows checkpoints and devices. It knows no request and no server.
"""
