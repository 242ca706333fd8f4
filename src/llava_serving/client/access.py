"""The way to an endpoint: its key or a Microsoft Entra token, and the proxy in between."""

import functools
import logging
import urllib.request
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3

from .endpoint_error import EndpointError

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
    """Through the proxy that the environment names for that URL, if it does. Raises ValueError for one that is none."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return urllib3.PoolManager(retries=False)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    login = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=unquote(login)) if login else None
    try:
        return urllib3.ProxyManager(proxy, proxy_headers=headers, retries=False)
    except urllib3.exceptions.HTTPError:
        raise ValueError(f"the environment's proxy for {parts.scheme} cannot be gone through") from None
