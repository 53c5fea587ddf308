"""How a run starts: local set-up, demo, tests, TPU VMs, GKE, Slurm. See README.md."""
