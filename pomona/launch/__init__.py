"""Floor 7: where. Several processes of one run: on this machine, under Kubernetes, under Slurm."""
