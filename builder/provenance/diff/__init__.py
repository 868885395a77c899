"""What differs between two recipes, locks or built folders, in words."""
