"""The stand-in's blob storage through Azure's client."""

import http.client
import random
import urllib.error
import urllib.parse
import urllib.request

import pytest
from azure.ai.ml import MLClient
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.storage.blob import ContainerClient


@pytest.fixture
def container(client: MLClient) -> ContainerClient:
    store = client.datastores.get_default(include_secrets=True)
    url = f"https://{store.account_name}.blob.{store.endpoint}/{store.container_name}?sig=unchecked"
    return ContainerClient.from_container_url(
        url, max_single_put_size=1000, max_block_size=1000, max_single_get_size=700, max_chunk_get_size=300
    )


@pytest.mark.parametrize("size", [0, 1, 999, 1001, 12_345])
def test_upload_in_blocks_and_download_in_ranges_keep_the_content(container: ContainerClient, size: int) -> None:
    content = random.Random(size).randbytes(size)
    blob = container.upload_blob(f"a folder/{size} bytes", content, overwrite=True, metadata={"kind": "test"})
    assert blob.get_blob_properties().size == size
    assert container.download_blob(f"a folder/{size} bytes").readall() == content
    assert f"a folder/{size} bytes" in [listed.name for listed in container.list_blobs("a folder")]


def test_missing_blob_is_not_found(container: ContainerClient) -> None:
    with pytest.raises(ResourceNotFoundError):
        container.download_blob("missing")


def test_connection_stays_open_after_404(container: ContainerClient) -> None:
    address = urllib.parse.urlsplit(container.primary_endpoint)
    connection = http.client.HTTPSConnection(address.netloc, timeout=10)
    for method in ("HEAD", "GET", "HEAD"):
        connection.request(method, f"{address.path}/missing")
        response = connection.getresponse()
        assert response.status == 404
        response.read()
    connection.close()


def test_blob_name_that_leads_out_of_the_container_is_refused(container: ContainerClient) -> None:
    address = container.primary_endpoint.partition("?")[0]
    for path in ("../../../../etc/passwd", "..%2f..%2f..%2f..%2fetc/passwd", "../../key.pem"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"{address}/{path}")
    with pytest.raises(HttpResponseError):
        container.upload_blob("../../outside", b"no")
