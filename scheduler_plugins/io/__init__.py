"""What the scheduler's side of swarm keeps outside of the process."""
