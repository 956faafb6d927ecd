"""A server of S3's protocol (moto) that tests start, and a bucket in it."""

from __future__ import annotations

import pytest

from distill_jax.io import buckets


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """A bucket of its own; ``AWS_ENDPOINT_URL`` names the server, as for any tool."""
    import boto3
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "DISTILL_JAX_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(buckets, "_places", {})
    buckets._fetched.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"b{tmp_path.name.replace('_', '-').lower()[:50]}"
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket=name)

    class Bucket:
        url = f"s3://{name}"

        def put(self, key, text):
            client.put_object(Bucket=name, Key=key, Body=text.encode())

        def names(self):
            found = client.list_objects_v2(Bucket=name).get("Contents", [])
            return sorted(each["Key"] for each in found)

        def get(self, key):
            return client.get_object(Bucket=name, Key=key)["Body"].read()

    return Bucket()
