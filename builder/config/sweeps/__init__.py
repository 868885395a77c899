"""Many recipes from one command line: composed by choice, remembered as a whole, thinned by rules."""
