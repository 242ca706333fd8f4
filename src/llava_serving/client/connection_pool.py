"""HTTP connections to an endpoint, directly or through the environment's proxy."""

import urllib.request
from urllib.parse import unquote, urlsplit

import urllib3


def connection_pool(url: str) -> urllib3.PoolManager:
    """Returns a pool for `url` that uses the proxy of the environment, if the environment names one for `url`.

    Raises ValueError if urllib3 does not support the proxy.
    """
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
        raise ValueError(f"the environment's proxy for {parts.scheme} is not supported") from None
