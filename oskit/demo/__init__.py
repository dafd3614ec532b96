"""The main job from end to end: an encoder, a node, both formats, a real collection, and the proof."""
