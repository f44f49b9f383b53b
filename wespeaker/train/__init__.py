"""Training: schedules, processes, checkpoints, the run folder, and the loop."""
