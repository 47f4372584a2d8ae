"""How much memory a recipe takes at its peak, part by part, found out before anything is loaded."""
