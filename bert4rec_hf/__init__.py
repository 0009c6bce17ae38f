"""BERT4Rec for the Hugging Face ecosystem: a pipeline from interactions to recommendations."""
