"""From a model folder to a model on its devices: what a folder holds, the delta's arithmetic, and loading.

It knows checkpoints and devices. It knows no request and no server.
"""
