"""A stand-in for Azure Machine Learning on this machine, to test and to learn with. Not a product.

It answers what Azure's Python SDK asks of the control plane for online and batch endpoints, over TLS, stores what the
SDK uploads, and starts the real service for each deployment as a process. Traffic, keys, 429 and 424 are as Azure
documents them. What it does not do: build environments (its own Python runs everything), start virtual machines,
check identities, charge.
"""
