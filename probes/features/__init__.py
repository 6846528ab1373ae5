"""Where features are read in a model's forward, and how they are reduced to a few numbers."""
