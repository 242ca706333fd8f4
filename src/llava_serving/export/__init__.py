"""A merged model as a folder that transformers and vLLM load.

It knows their file formats. It knows no engine and no server.
"""
