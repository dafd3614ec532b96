"""What was found, for people: tables, plots, the page."""
