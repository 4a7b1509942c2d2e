"""What a running agent answers to operators and monitors."""
