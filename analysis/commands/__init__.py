"""The commands of `thermoscope`, one file each: `add` says what it takes, and what it runs."""
