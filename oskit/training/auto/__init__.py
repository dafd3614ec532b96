"""``oskit train auto``: look at data, machine and models; choose a recipe, and say why."""
