"""The picture of a network: its graph, traced, laid out and drawn."""
