"""The networks that reason by recursion, and the parts of the loop that they share."""
