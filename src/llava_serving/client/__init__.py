"""Sends requests to any endpoint of this service. It streams, which `az ml online-endpoint invoke` cannot do."""

from .credentials import entra_token
from .endpoint import Answer, Endpoint
from .endpoint_error import EndpointError
from .request_body import ask

__all__ = ["Answer", "Endpoint", "EndpointError", "ask", "entra_token"]
