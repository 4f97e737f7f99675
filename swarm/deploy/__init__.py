"""Real Dask processes on this machine: started, supervised and stopped so that nothing is left behind.

`swarm.deploy.local` is the way in. Every child preloads `swarm.deploy.leash`, so this file imports nothing.
"""
