"""The run directory: records, snapshots, spectra and TensorBoard events."""
