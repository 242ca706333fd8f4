"""A stand-in for Azure Machine Learning on this machine, for tests and for learning. It is not a product.

It answers the requests that Azure's Python SDK sends to the control plane for online and batch endpoints, over TLS. It
stores the files that the SDK uploads, and starts the real service as a process for each deployment. Traffic, keys, 429
and 424 follow Azure's documentation. It does not build environments (its own Python runs everything), start virtual
machines, check identities or charge money.
"""
