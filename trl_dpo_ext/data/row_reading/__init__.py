"""One row of any accepted form to a ranked row, with every fault named."""
