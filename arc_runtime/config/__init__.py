"""Loading a configuration: YAML, environment and command line into checked sections."""
