"""What a run leaves, shows and heeds: its directory, log, checkpoints, signals and diagnosis."""
