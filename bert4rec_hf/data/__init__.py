"""From raw interactions to histories of ids, prepared datasets and training batches."""
