"""Floor 1: the only room that knows mesh axes. Processes, the mesh, and the table from logical axes to it."""
