"""What a handler holds."""
