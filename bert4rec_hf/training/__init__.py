"""One loop for every model, its optimizer and its checkpoints."""
