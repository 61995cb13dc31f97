"""What is done beside live runs, page by page."""
