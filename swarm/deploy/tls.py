"""Temporary certificates for a cluster of local processes: `swarm deploy --tls`.

One self-signed certificate for everybody (`distributed.Security.temporary`), in a private folder that goes with the
cluster. Whoever has the key may talk to the cluster; for more than that, make certificates of your own and name them in
Dask's configuration (https://distributed.dask.org/en/stable/tls.html).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask.config
import yaml
from distributed.security import Security

from swarm.deploy.folder import PrivateFolder

CLIENT_FILE = "dask-client.yaml"


@contextmanager
def temporary_certificates() -> Iterator[Path]:
    """Have all comms of Dask use TLS inside the block, here and in processes that are started from here.

    Yields the path of a configuration file for clients: with `DASK_CONFIG=<path>` they reach the cluster.

    Raises
    ------
    ImportError
        The package cryptography is not installed.
    """
    security = Security.temporary()
    folder = PrivateFolder()
    try:
        certificate, key = folder.path / "certificate.pem", folder.path / "key.pem"
        for path, content in ((certificate, security.tls_ca_file), (key, security.tls_client_key)):
            _write(path, str(content))
        comm = {"default-scheme": "tls", "require-encryption": True, "tls.ca-file": str(certificate)}
        for who in ("scheduler", "worker", "client"):
            comm |= {f"tls.{who}.cert": str(certificate), f"tls.{who}.key": str(key)}
        with dask.config.set({f"distributed.comm.{name}": value for name, value in comm.items()}):
            client = folder.path / CLIENT_FILE
            _write(client, yaml.safe_dump({"distributed": {"comm": dask.config.get("distributed.comm")}}))
            yield client
    finally:
        folder.remove()


def _write(path: Path, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)
