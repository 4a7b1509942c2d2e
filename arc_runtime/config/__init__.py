"""Configuration: its sections and options, the YAML file, and how they are merged."""
