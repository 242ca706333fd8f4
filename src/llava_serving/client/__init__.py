"""A caller of any endpoint of this service: what `az ml online-endpoint invoke` cannot do, streaming for one."""

from .access import entra_token
from .endpoint import Answer, Endpoint
from .endpoint_error import EndpointError
from .request_body import ask

__all__ = ["Answer", "Endpoint", "EndpointError", "ask", "entra_token"]
