"""The server's front: connections to whole requests, inside the gunicorn of Azure's server.

It knows bytes, sockets and gunicorn. It knows no JSON form and no model.
"""
