"""Models of a cluster: register, upload, deploy, predict, compare, remove."""
