"""Credentials for an endpoint: its key, or a Microsoft Entra token."""

import functools
import logging
from typing import Any

from .endpoint_error import EndpointError

# The commands read the key from this environment variable, so that no process list shows it.
KEY_VARIABLE = "AZUREML_ENDPOINT_KEY"
# Azure's scope for scoring with a Microsoft Entra token.
ENTRA_SCOPE = "https://ml.azure.com/.default"


def entra_token(scope: str = ENTRA_SCOPE) -> str:
    """Returns a Microsoft Entra token, for scoring unless `scope` says otherwise.

    azure-identity chooses the login: the environment's, a managed identity's or that of `az login`. Raises
    EndpointError if there is no login.
    """
    # Imported here because azure-identity comes with Azure's server, and a caller with a key does not need it.
    from azure.core.exceptions import AzureError

    try:
        token: str = _credential().get_token(scope).token
    except AzureError as error:
        reason = str(error).strip().splitlines()[0]
        raise EndpointError(None, "", f"there is no Microsoft Entra token, `az login` gets one: {reason}") from None
    return token


@functools.cache
def _credential() -> Any:
    """Returns the process's one credential, which caches its token until the token expires."""
    from azure.identity import DefaultAzureCredential

    logging.getLogger("azure.identity").setLevel(logging.ERROR)  # it logs a warning for every login that is missing
    return DefaultAzureCredential()
