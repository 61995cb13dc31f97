"""What a row says, without a database."""
