"""Scores to ranks, ranks to metrics, and the baselines to beat."""
