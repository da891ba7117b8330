"""Workers: turn one claimed job into a bundle of result objects. Stateless; they know the node's address only."""
