"""Services that answer in our stead: connections, patience, retries, health, and what their replies say."""
