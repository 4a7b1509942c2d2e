"""Where bodies above the inline limit are kept."""
