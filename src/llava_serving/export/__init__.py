"""Writes a merged model as a folder that transformers and vLLM load.

It knows their file formats. It knows neither the engine nor the server.
"""
