"""What changes an encoder and has to survive saving: fewer layers, fitted heads, inference-free queries."""
