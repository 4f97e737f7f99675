"""How agents talk: rings in shared memory on a host, sockets where those do not serve, Dask's comms between hosts."""
