"""The page `/swarm` on the scheduler's own dashboard server: a fold of events, its drawing, its routes."""
