"""An S3 server of the tests' own (moto's, on a port of this machine), which fails, dawdles or goes away on demand."""

import threading
import time

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server


class S3Server:
    """`environment` is what a client needs to reach it. Its objects outlive `stop`."""

    def __init__(self):
        S3FileSystem.clear_instance_cache()  # one of them would go on asking an earlier server
        self.fail = lambda method, path: False  # asked for each request; True: answer 503
        self.failed = 0
        self.seconds = 0.0  # that each answer takes
        self._in_turn = threading.Lock()
        self._backend = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self._server = None
        self.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "geheim",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self):
        """Begin to answer, after `stop` at the same port."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="s3", daemon=True).start()

    def stop(self):
        """Go away: connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def client(self):
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "geheim", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], **keys)

    def bucket(self, name):
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def keys(self, bucket):
        """All object names in a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def content(self, bucket, key):
        return self.client().get_object(Bucket=bucket, Key=key)["Body"].read()

    def _answer(self, environ, start_response):
        time.sleep(self.seconds)
        if self.fail(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            self.failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ServiceUnavailable</Code><Message>injected</Message></Error>"]
        if "HTTP_IF_NONE_MATCH" in environ:  # moto looks, and then writes; S3 does both at once
            with self._in_turn:
                return list(self._backend(environ, start_response))
        return self._backend(environ, start_response)


def every(n, method="PUT"):
    """Fail each n-th request of a method."""
    count = 0

    def fail(asked, path):
        nonlocal count
        count += asked == method
        return asked == method and count % n == 0

    return fail
