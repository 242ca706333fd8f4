"""A caller of any endpoint of this service: what `az ml online-endpoint invoke` cannot do, streaming for one."""

from .endpoint import Answer, Endpoint, EndpointError, entra_token
from .request import ask

__all__ = ["Answer", "Endpoint", "EndpointError", "ask", "entra_token"]
