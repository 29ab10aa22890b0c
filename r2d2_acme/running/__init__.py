# What all nodes need: the process from which they are forked imports it.
MODULES = ('r2d2_acme.program', 'r2d2_acme.running.entry')
NETWORKS = (PRIVATE, HOST) = ('private', 'host')  # see `launching.launch`
