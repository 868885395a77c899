"""The scheme of a recipe: its table, its rules, what a budget picked, what a quantized checkpoint has."""
