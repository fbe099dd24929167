"""What the server tells of its requests: one record each, from which figures, access log and spans are made."""
