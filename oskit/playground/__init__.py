"""One page, served on this machine, that compares two ways to search, hit by hit and token by token."""
