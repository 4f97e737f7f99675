"""Where swarm touches Dask's scheduler. Every private name of distributed that is used lives in this folder."""
