"""Probes that train along with the model, on the features of each step."""
