"""What a worker and its nanny note of each other and of tasks: flight recorder, witness, notices, memory of tasks."""
