"""What a run is told: recipes, their files, their mistakes."""
