"""The way to an endpoint: its key or a Microsoft Entra token, and the proxy in between."""

import functools
import logging
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import urllib3

from .refusal import EndpointError

# Where the commands look for a key, so that no process list shows it.
KEY_VARIABLE = "AZUREML_ENDPOINT_KEY"
# Azure's scope for scoring with a Microsoft Entra token.
ENTRA_SCOPE = "https://ml.azure.com/.default"


def entra_token() -> str:
    """A Microsoft Entra token for scoring, of whatever login azure-identity finds: the environment's, a managed
    identity's, `az login`'s. Raises EndpointError."""
    # Here, so that a key takes no azure-identity, which comes with Azure's server.
    from azure.core.exceptions import AzureError

    try:
        token: str = _credential().get_token(ENTRA_SCOPE).token
    except AzureError as error:
        why = str(error).strip().splitlines()[0]
        raise EndpointError(None, "", f"there is no Microsoft Entra token, `az login` gets one: {why}") from None
    return token


@functools.cache
def _credential() -> Any:
    """It remembers its token until that expires."""
    from azure.identity import DefaultAzureCredential

    logging.getLogger("azure.identity").setLevel(logging.ERROR)  # tells at length of every login that there is not
    return DefaultAzureCredential()


def connections(url: str) -> urllib3.PoolManager:
    """Through the proxy that the environment names for that URL, if it does."""
    parts = urlsplit(url)
    proxy = None if urllib.request.proxy_bypass(parts.hostname or "") else urllib.request.getproxies().get(parts.scheme)
    return urllib3.ProxyManager(proxy, retries=False) if proxy else urllib3.PoolManager(retries=False)
