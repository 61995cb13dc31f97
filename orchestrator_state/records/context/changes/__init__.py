"""Values as JSON texts, and what differs between two of them."""
