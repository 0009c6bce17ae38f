"""What a step costs: workloads, contestants that train on them in turn, and the floor of it all."""
