"""The torch encoder: what turns a text into token weights, and what a loader, a head and surgery do to it."""
